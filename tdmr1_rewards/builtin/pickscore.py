"""Which picture people would pick for a prompt: PickScore (arXiv 2305.01569), a CLIP-H trained on people's choices.

The published score is exp(logit_scale) · cosine, around 18 to 24; it is divided by `divisor`, 26 by default as in
flow_grpo, which brings usual scores to about 0.7 to 0.9.
"""

from __future__ import annotations

from pydantic import Field

from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, ClipModel, CosineReward, Precision, TransformersClip
from tdmr1_rewards.options import RewardOptions


class PickScoreOptions(RewardOptions):
    """Where the model lies, and the scale of its score."""

    model: str = Field("yuvalkirstain/PickScore_v1", description="hub name or folder of the checkpoint")
    processor: str = Field(
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", description="hub name or folder of its tokenizer and pre-processing"
    )
    divisor: float = Field(26.0, gt=0, description="divides the published score; 1 leaves it as it is")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class PickScore(CosineReward):
    """Scores N pictures by exp(logit_scale) · cosine(picture, prompt) / divisor."""

    def __init__(self, options: PickScoreOptions) -> None:
        super().__init__()
        self._options = options

    def load(self, device: str) -> ClipModel:
        """The checkpoint with the processor it was trained with."""
        options = self._options
        return TransformersClip(options.model, processor=options.processor, device=device, precision=options.precision)

    def factor(self, model: ClipModel) -> float:
        """exp(logit_scale) / divisor."""
        return model.logit_scale / self._options.divisor
