"""Loads diffusion pipelines, gives them one interface (Backbone), and puts the LoRAs of all roles on them."""
