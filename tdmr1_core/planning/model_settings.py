"""What the settings of the model name: an image size and a device. They are checked without loading the model."""

from __future__ import annotations

from tdmr1_core.config import RunConfig
from tdmr1_core.distributed import named_device
from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.latent_shape import has_levels, latent_grid, pixels_per_latent
from tdmr1_core.models.pipeline_files import is_hub_id
from tdmr1_core.models.registry import ModelEntry
from tdmr1_core.planning.published_configs import PUBLISHED, config_of

KNOWN_DEVICES = ("auto", "cpu", "cuda")
"""Names that need no torch to be checked, which takes seconds to import."""


def check_model_settings(config: RunConfig, entry: ModelEntry) -> None:
    """Raise Tdmr1Error for an image size that the model does not support, and for a device that torch does not know.

    The size is checked if the configs of the model are local or built in.
    """
    if entry.base in PUBLISHED or not is_hub_id(entry.base):
        _check_size(config, entry)
    if config.model.device not in KNOWN_DEVICES:
        named_device(config.model.device)


def _check_size(config: RunConfig, entry: ModelEntry) -> None:
    """Raise Tdmr1Error for an unsupported size. A config without the levels of the autoencoder is refused later."""
    denoiser, autoencoder = (config_of(entry.base, f"{part}/config.json") for part in ("transformer", "vae"))
    if has_levels(autoencoder):
        height, width = config.model.height or entry.height, config.model.width or entry.width
        latent_grid(FAMILIES[entry.family], denoiser, pixels_per_latent(autoencoder)).check(height, width)
