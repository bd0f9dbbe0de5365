"""The targets of `seapeft export`: one module each, and the files copied into their folders
(`scans.py`, `masks.py`, `steps.py`).
"""
