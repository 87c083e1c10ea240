"""Reads and writes LoRA files of several toolkits: keys, ranks, alphas and metadata."""
