"""What `seapeft export` writes: a module for each target, and what is copied into its folders (`scans.py`, `masks.py`, `steps.py`)."""
