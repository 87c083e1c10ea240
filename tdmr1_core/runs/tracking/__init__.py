"""Sends metrics, image grids and settings of a run to trackers such as Weights & Biases.

`Trackers` in `client.py` belongs to the run and never waits. Its process, `worker.py`, has a thread and a bounded queue
for each tracker; `adapters.py` calls the trackers of accelerate; `state.py` records what a tracker has received.
"""
