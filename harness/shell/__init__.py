"""Boards without Python: a worker in POSIX sh runs NEON binaries, which time themselves; everything is judged here.

`worker.sh` does the steps of a job one after another, detached, and leaves one report; `job.py` starts, watches and
collects it, `report.py` reads it and `snapshot.py` what was seen of the board, `measure.py` says which steps a
measurement needs and makes the records of the Python worker of them.
"""
