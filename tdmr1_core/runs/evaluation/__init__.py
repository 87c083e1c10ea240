"""The evaluations of a run, and the guard."""
