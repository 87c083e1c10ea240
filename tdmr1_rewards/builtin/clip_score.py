"""How well a picture fits its prompt: the cosine of their CLIP embeddings (CLIPScore, arXiv 2104.08718, without its
factor and its floor at 0: only differences within a group count here).

Scores are `scale` times a cosine, so -1 to 1 by default; real pictures of their prompt lie around 0.2 to 0.35.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tdmr1_rewards.builtin.clip_models import (
    PRECISION_HELP,
    ClipModel,
    CosineReward,
    OpenClip,
    Precision,
    TransformersClip,
)
from tdmr1_rewards.options import RewardOptions


class ClipScoreOptions(RewardOptions):
    """Which CLIP judges."""

    library: Literal["transformers", "open_clip"] = Field("transformers", description="the library that runs the model")
    model: str = Field(
        "openai/clip-vit-large-patch14",
        description="transformers: a hub name or folder; open_clip: a model's name, local-dir:DIR or hf-hub:ORG/REPO",
    )
    weights: str | None = Field(
        None, description="open_clip: a tag or a file; none takes those that lie with the folder or repository"
    )
    scale: float = Field(1.0, gt=0, description="factor of the cosine; CLIPScore's is 2.5, torchmetrics' is 100")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class ClipScore(CosineReward):
    """Scores N pictures by `scale` · cosine(picture, prompt)."""

    def __init__(self, options: ClipScoreOptions) -> None:
        super().__init__()
        self._options = options

    def load(self, device: str) -> ClipModel:
        """The model that the options name."""
        options = self._options
        if options.library == "open_clip":
            return OpenClip(options.model, options.weights, device=device, precision=options.precision)
        return TransformersClip(options.model, device=device, precision=options.precision)

    def factor(self, model: ClipModel) -> float:
        """The options' own."""
        return self._options.scale
