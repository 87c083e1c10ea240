"""LoRA files of other toolkits: names, ranks and metadata."""
