"""Evaluations of a run, and the guard that reads them."""
