"""PickScore (arXiv 2305.01569): which image users prefer for a prompt, by a CLIP-H trained on their choices.

The published score is exp(logit_scale) · cosine, about 18 to 24. It is divided by `divisor`, by default 26 as in
flow_grpo, so typical scores are 0.7 to 0.9.
"""

from __future__ import annotations

from pydantic import Field

from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, ClipModel, CosineReward, Precision, TransformersClip
from tdmr1_rewards.options import RewardOptions


class PickScoreOptions(RewardOptions):
    """The checkpoint and the scale of the score."""

    model: str = Field("yuvalkirstain/PickScore_v1", description="hub name or folder of the checkpoint")
    processor: str = Field(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        description="hub name or folder of its tokenizer and image preprocessing",
    )
    divisor: float = Field(26.0, gt=0, description="divides the published score; 1 keeps the published scale")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class PickScore(CosineReward):
    """Scores N images by exp(logit_scale) · cosine(image, prompt) / divisor."""

    def __init__(self, options: PickScoreOptions) -> None:
        super().__init__()
        self._options = options

    def load(self, device: str) -> ClipModel:
        """The checkpoint, with the processor that it was trained with."""
        options = self._options
        return TransformersClip(options.model, processor=options.processor, device=device, precision=options.precision)

    def factor(self, model: ClipModel) -> float:
        """exp(logit_scale) / divisor."""
        return model.logit_scale / self._options.divisor
