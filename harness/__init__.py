"""Boards: transport, deployment, the worker, measuring. `measure.py` is the entry; read it first."""
