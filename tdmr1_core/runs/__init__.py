"""The life of a run: its folder, checkpoints, evaluations, pictures, tracking, export."""
