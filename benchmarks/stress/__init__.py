"""The stress test: items that try to break the command line, run in forks of one process (`stress_kit.py`)."""
