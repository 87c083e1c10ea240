"""Aesthetic score of an image: LAION's aesthetic predictors, a small head on CLIP ViT-L/14 image embeddings.

Two published heads are supported; the keys of the state dict decide which one it is: `Linear(768, 1)` of the first
predictor (LAION-AI/aesthetic-predictor), and the layers 768-1024-128-64-16-1 without activations of the improved one
(christophschuhmann/improved-aesthetic-predictor), which DDPO and flow_grpo use as a reward. Both take embeddings of
unit length. Scores range from about 1 to 10; typical images score 4 to 7. The prompt is not used.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, OpenClip, Precision
from tdmr1_rewards.builtin.optional import find_file, read_state_dict
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.options import RewardOptions

if TYPE_CHECKING:
    from torch import Tensor

HEADS = {"linear": ("",), "mlp": tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7))}
"""For each supported head, the key prefixes of its linear layers in the state dict, first layer first."""


class AestheticOptions(RewardOptions):
    """The CLIP model that embeds the images, and the head that scores the embeddings."""

    head: str = Field(
        "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        description="weights of the head: a file (.pth or .safetensors), or a file on the hub as ORG/REPO/FILE",
    )
    model: str = Field(
        "ViT-L-14-quickgelu",
        description="open_clip model that embeds the images: a name, local-dir:DIR or hf-hub:ORG/REPO",
    )
    weights: str | None = Field(
        "openai", description="open_clip weights: a tag or a file; null: the weights of the folder or repository"
    )
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class Head:
    """Linear layers applied one after the other: unit embeddings (N, D) to N scores.

    `layout` is a key of HEADS, `sha256` the hash of the file, `width` is D. Raises Tdmr1Error if the file is not a
    supported head.
    """

    def __init__(self, path: Path, device: str) -> None:
        state = read_state_dict(path, "the aesthetic head")
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.layout = _find_layout(state, path)
        self._layers = [
            (state[f"{prefix}weight"].float().to(device), state[f"{prefix}bias"].float().to(device))
            for prefix in HEADS[self.layout]
        ]
        self.width = self._layers[0][0].shape[1]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Float32 embeddings (N, D) to scores (N,)."""
        for weight, bias in self._layers:
            embeddings = embeddings @ weight.T + bias  # (N, width of the layer)
        return embeddings[:, 0]


class Aesthetic:
    """Scores N images. The details hold the layout of the head and the first 12 digits of its SHA-256."""

    def __init__(self, options: AestheticOptions) -> None:
        self._options = options
        self._model: OpenClip | None = None
        self.head: Head | None = None

    def setup(self, device: str) -> None:
        """Load the head and the model. Raises Tdmr1Error if either cannot be loaded or their widths differ."""
        options = self._options
        head = Head(find_file(options.head), device)
        model = OpenClip(options.model, options.weights, device=device, precision=options.precision)
        if head.width != model.width:
            raise Tdmr1Error(
                f"the head {options.head} takes embeddings of width {head.width}, but {options.model} produces"
                f" width {model.width}",
                "use the model that the head was trained on; LAION's heads were trained on ViT-L-14",
                code="reward-weights",
                values={
                    "head": options.head,
                    "head_width": head.width,
                    "model": options.model,
                    "model_width": model.width,
                },
            )
        self.head, self._model = head, model

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images."""
        if self._model is None:
            self.setup("cpu")
        assert self._model is not None
        assert self.head is not None
        scores = self.head(self._model.embed_images(batch.images))  # (N,)
        details = {"head": self.head.layout, "head_sha256": self.head.sha256[:12]}
        return RewardResult([float(score) for score in scores], [details] * len(batch))


def _find_layout(state: dict[str, Any], path: Path) -> str:
    """The key of HEADS whose keys and shapes the state dict has. Raises Tdmr1Error if there is none."""
    for layout, prefixes in HEADS.items():
        if set(state) == {f"{prefix}{part}" for prefix in prefixes for part in ("weight", "bias")}:
            weights = [state[f"{prefix}weight"] for prefix in prefixes]
            chained = all(after.shape[1] == before.shape[0] for before, after in pairwise(weights))
            if chained and weights[-1].shape[0] == 1:
                return layout
    keys = sorted(state)[:6]
    raise Tdmr1Error(
        f"{path} is not a supported aesthetic head; its first keys: {', '.join(keys) or 'none, not a state dict'}",
        "supported are LAION's Linear(768, 1) and the five layers without activations of the improved predictor",
        code="reward-weights",
        values={"path": str(path), "keys": keys},
    )
