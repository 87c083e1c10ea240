"""The shape of latents, and the image sizes that a model supports, from its configs. Torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.families import Family, Layout, positions

PATCH = 2
"""The patch size in latents, if the config does not contain it."""


@dataclass(frozen=True)
class LatentGrid:
    """The latents of a model. A latent covers `pixels` x `pixels` pixels, a token `patch` x `patch` latents."""

    channels: int
    pixels: int
    patch: int
    positions: float
    """Tokens in one direction that the network has positions for."""

    @property
    def multiple(self) -> int:
        """Height and width of an image must be multiples of this number of pixels."""
        return self.pixels * self.patch

    @property
    def largest(self) -> float:
        """The largest height and width in pixels; infinity without a limit."""
        return self.positions * self.multiple

    def shape(self, height: int, width: int) -> tuple[int, int, int]:
        """The shape (C, H, W) of the latents of an image in pixels. Raises Tdmr1Error for an unsupported size."""
        self.check(height, width)
        return self.channels, height // self.pixels, width // self.pixels

    def tokens(self, height: int, width: int) -> int:
        """The number of image tokens of the network."""
        return (height // self.multiple) * (width // self.multiple)

    def check(self, height: int, width: int) -> None:
        """Raise Tdmr1Error unless the network supports images of `height` x `width` pixels.

        They must be multiples of pixels x patch, and the network must have positions for so many tokens.
        """
        if height % self.multiple or width % self.multiple:
            raise Tdmr1Error(
                f"the image size is {width}×{height} pixels; this model needs multiples of {self.multiple}",
                "change model.height and model.width",
                code="setting-invalid",
                values={"width": width, "height": height, "multiple": self.multiple},
            )
        if max(height, width) > self.largest:
            raise Tdmr1Error(
                f"the image size is {width}×{height} pixels; this model supports at most {self.largest:g} in each "
                "direction",
                "reduce model.height and model.width",
                code="setting-invalid",
                values={"width": width, "height": height, "largest": self.largest},
            )


def latent_grid(family: Family, denoiser: Mapping[str, Any], pixels: int) -> LatentGrid:
    """The latents of a model of a family, from the config of its denoiser.

    A latent of the autoencoder covers `pixels` x `pixels` pixels (`pixels_per_latent`).
    """
    channels = int(denoiser["in_channels"])
    if family.layout == Layout.PACKED:
        return LatentGrid(channels // PATCH**2, pixels, PATCH, positions(denoiser))
    if family.layout == Layout.PATCHIFIED:
        return LatentGrid(channels, pixels * PATCH, 1, positions(denoiser))
    return LatentGrid(channels, pixels, int(denoiser.get("patch_size") or PATCH), positions(denoiser))


def has_levels(autoencoder: Mapping[str, Any]) -> bool:
    """Whether the config of an autoencoder contains its levels."""
    return bool(autoencoder.get("temperal_downsample") or autoencoder.get("block_out_channels"))


def pixels_per_latent(autoencoder: Mapping[str, Any]) -> int:
    """The pixels in a latent of the autoencoder, along each axis. Raises KeyError if the config lacks its levels."""
    if "temperal_downsample" in autoencoder:  # the spelling of diffusers; it has one entry per level
        return int(2 ** len(autoencoder["temperal_downsample"]))
    return int(2 ** (len(autoencoder["block_out_channels"]) - 1))
