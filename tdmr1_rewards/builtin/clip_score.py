"""How well an image matches its prompt: the cosine of their CLIP embeddings (CLIPScore, arXiv 2104.08718).

Unlike CLIPScore, the cosine is not multiplied by 2.5 and not clipped at 0: only differences within a group matter.
The score is `scale` times the cosine, so -1 to 1 by default; real images score about 0.2 to 0.35 for their captions.
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
    """The CLIP model and the scale of the score."""

    library: Literal["transformers", "open_clip"] = Field("transformers", description="the library that runs the model")
    model: str = Field(
        "openai/clip-vit-large-patch14",
        description="transformers: a hub name or folder; open_clip: a model's name, local-dir:DIR or hf-hub:ORG/REPO",
    )
    weights: str | None = Field(
        None, description="open_clip: a tag or a file; by default the weights of the folder or repository"
    )
    scale: float = Field(1.0, gt=0, description="factor of the cosine; CLIPScore uses 2.5, torchmetrics 100")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class ClipScore(CosineReward):
    """Scores N images by `scale` · cosine(image, prompt)."""

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
        """The option `scale`."""
        return self._options.scale
