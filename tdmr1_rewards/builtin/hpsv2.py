"""Human Preference Score v2.1 (arXiv 2306.09341): the cosine of image and prompt under a CLIP-H trained on rankings.

As published, the longest side of an image is resized to the input size, the rest is padded with black, and the score
is the cosine itself: typical images score 0.2 to 0.35. The checkpoint is a state dict under the key `state_dict`.
This code resizes with Pillow and the published code resizes tensors, so scores differ slightly from published ones.
"""

from __future__ import annotations

from pydantic import Field

from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, ClipModel, CosineReward, OpenClip, Precision
from tdmr1_rewards.builtin.optional import find_file
from tdmr1_rewards.options import RewardOptions


class HpsOptions(RewardOptions):
    """The checkpoint and its architecture."""

    checkpoint: str = Field(
        "xswu/HPSv2/HPS_v2.1_compressed.pt", description="a file, or a file on the hub as ORG/REPO/FILE"
    )
    model: str = Field("ViT-H-14", description="open_clip architecture of the checkpoint: a name or local-dir:DIR")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class HpsScore(CosineReward):
    """Scores N images by cosine(image, prompt)."""

    def __init__(self, options: HpsOptions) -> None:
        super().__init__()
        self._options = options

    def load(self, device: str) -> ClipModel:
        """The architecture with the weights of the checkpoint."""
        options = self._options
        return OpenClip(
            options.model, find_file(options.checkpoint), device=device, precision=options.precision, fit="longest"
        )
