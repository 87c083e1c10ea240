"""Object detectors: colored blobs and checkpoints of transformers, with class names and colors."""
