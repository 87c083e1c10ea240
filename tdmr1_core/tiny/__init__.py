"""The embedded world: renderer, captions, and the packaged tiny SD3 pipeline with its 4-step LoRA."""
