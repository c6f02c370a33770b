"""The part that runs on the board: standard library only, Python >= 3.6, imports nothing of EdgeSDK but itself.

`harness/pack.py` packs this folder into one zip file that Python runs directly. `main.py` lists its commands.
"""
