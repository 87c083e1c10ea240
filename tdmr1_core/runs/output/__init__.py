"""What a run gives to its user: LoRA exports, images and reports."""
