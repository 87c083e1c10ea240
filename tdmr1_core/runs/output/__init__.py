"""The outputs of a run: LoRA exports, image grids and reports."""
