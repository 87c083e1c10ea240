"""Human preference score v2.1 (arXiv 2306.09341): the cosine of picture and prompt under a CLIP-H trained on rankings.

As published, a picture is fitted by its longest side and padded with black, and the score is the bare cosine: usual
pictures lie around 0.2 to 0.35. The checkpoint is a state dict under the key `state_dict`. Pillow resizes here, where
the published code resizes tensors, so scores agree closely but not to the last digit.
"""

from __future__ import annotations

from pydantic import Field

from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, ClipModel, CosineReward, OpenClip, Precision
from tdmr1_rewards.builtin.optional import find_file
from tdmr1_rewards.options import RewardOptions


class HpsOptions(RewardOptions):
    """Where the checkpoint lies."""

    checkpoint: str = Field(
        "xswu/HPSv2/HPS_v2.1_compressed.pt", description="a file, or one on the hub as ORG/REPO/FILE"
    )
    model: str = Field("ViT-H-14", description="open_clip architecture of the checkpoint: a name or local-dir:DIR")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class HpsScore(CosineReward):
    """Scores N pictures by cosine(picture, prompt)."""

    def __init__(self, options: HpsOptions) -> None:
        super().__init__()
        self._options = options

    def load(self, device: str) -> ClipModel:
        """The architecture with the checkpoint's weights."""
        options = self._options
        return OpenClip(
            options.model, find_file(options.checkpoint), device=device, precision=options.precision, fit="longest"
        )
