"""Boards without Python: a worker in POSIX sh runs NEON binaries, which time themselves; everything is judged here.

`worker.sh` does the steps of a job one after another, detached, and leaves one report; `snapshot.py` reads what it saw
of the board, `job.py` starts, watches and collects it, `records.py` says which steps a measurement needs and makes the
records of the Python worker of them.
"""
