"""The number of parameters of published denoisers, as their authors state it."""

CARD_PARAMETERS = {
    "stabilityai/stable-diffusion-3.5-large": 8.1e9,
    "Tongyi-MAI/Z-Image-Turbo": 6.15e9,
    "black-forest-labs/FLUX.2-klein-4B": 3.88e9,
    "black-forest-labs/FLUX.2-klein-9B": 9.08e9,
    "krea/Krea-2-Turbo": 12.8e9,
    "Qwen/Qwen-Image": 20.4e9,
    "black-forest-labs/FLUX.1-schnell": 11.9e9,
    "baidu/ERNIE-Image-Turbo": 8.03e9,
}
"""Parameters by hub id."""
