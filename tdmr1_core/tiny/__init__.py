"""The embedded worlds: renderers, captions, and the packaged tiny SD3 pipelines with their 4-step LoRAs."""
