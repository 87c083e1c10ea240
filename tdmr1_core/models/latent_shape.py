"""The shape of latents, and the image sizes that a model supports, from its configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import positions

PATCH = 2
"""The patch size in latents, if the config does not contain it."""


def shape_of_latents(
    denoiser: Mapping[str, Any], pixels: int, patch: int, height: int, width: int
) -> tuple[int, int, int]:
    """The shape (C, H, W) of the latents of an image of `height` x `width` pixels, from the config of the denoiser.

    A latent covers `pixels` x `pixels` pixels, a patch of the network covers `patch` x `patch` latents. Raises
    Tdmr1Error for a size that the model does not support.
    """
    check_image_size(denoiser, pixels, patch, height, width)
    return int(denoiser["in_channels"]), height // pixels, width // pixels


def check_image_size(denoiser: Mapping[str, Any], pixels: int, patch: int, height: int, width: int) -> None:
    """Raise Tdmr1Error unless the network supports images of `height` x `width` pixels.

    They must be multiples of pixels x patch, and the network must have positions for so many patches.
    """
    multiple = pixels * patch
    if height % multiple or width % multiple:
        raise Tdmr1Error(
            f"the image size is {width}×{height} pixels; this model needs multiples of {multiple}",
            "change model.height and model.width",
            code="setting-invalid",
            values={"width": width, "height": height, "multiple": multiple},
        )
    largest = positions(denoiser) * multiple
    if max(height, width) > largest:
        raise Tdmr1Error(
            f"the image size is {width}×{height} pixels; this model supports at most {largest:g} in each direction",
            "reduce model.height and model.width",
            code="setting-invalid",
            values={"width": width, "height": height, "largest": largest},
        )


def patch_size(denoiser: Mapping[str, Any]) -> int:
    """The latents in a patch of the network, along each axis."""
    return int(denoiser.get("patch_size") or PATCH)


def pixels_per_latent(autoencoder: Mapping[str, Any]) -> int:
    """The pixels in a latent, along each axis."""
    return int(2 ** (len(autoencoder["block_out_channels"]) - 1))
