"""Training from Python: `train` and the run object that it returns."""
