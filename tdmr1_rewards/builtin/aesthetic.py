"""How beautiful people find a picture: LAION's aesthetic predictors, a small head on CLIP ViT-L/14 image embeddings.

Two published heads are known, and told apart by their state dict: the first predictor's `Linear(768, 1)`
(LAION-AI/aesthetic-predictor), and the improved one's layers 768-1024-128-64-16-1 without activations
(christophschuhmann/improved-aesthetic-predictor), which DDPO and flow_grpo reward. Both take embeddings of unit length
and give about 1 to 10, usual pictures 4 to 7. The prompt is not looked at.
"""

from __future__ import annotations

import hashlib
import pickle
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.builtin.clip_models import PRECISION_HELP, OpenClip, Precision
from tdmr1_rewards.builtin.optional import find_file, first_line
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.options import RewardOptions

if TYPE_CHECKING:
    from torch import Tensor

HEADS = {"linear": ("",), "mlp": tuple(f"layers.{i}." for i in (0, 2, 4, 6, 7))}
"""The layouts of a head: where in its state dict each linear layer's `weight` and `bias` stand, in order."""


class AestheticOptions(RewardOptions):
    """Which embedding is judged by which head."""

    head: str = Field(
        "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        description="the head's weights: a file (.pth or .safetensors), or one on the hub as ORG/REPO/FILE",
    )
    model: str = Field(
        "ViT-L-14-quickgelu", description="open_clip model that embeds: a name, local-dir:DIR or hf-hub:ORG/REPO"
    )
    weights: str | None = Field("openai", description="open_clip weights: a tag or a file; none: those of the folder")
    precision: Precision = Field("fp32", description=PRECISION_HELP)


class Head:
    """A head of linear layers that follow each other: unit embeddings (N, D) to N scores.

    `layout` is a key of HEADS, `sha256` the hash of its file. Raises Tdmr1Error for a file that is no such head.
    """

    def __init__(self, path: Path, device: str) -> None:
        state = _read_state(path)
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.layout = _layout(state, path)
        self._layers = [
            (state[f"{place}weight"].float().to(device), state[f"{place}bias"].float().to(device))
            for place in HEADS[self.layout]
        ]
        self.width = self._layers[0][0].shape[1]

    def __call__(self, embeddings: Tensor) -> Tensor:
        """Float32 (N, D) to (N,)."""
        for weight, bias in self._layers:
            embeddings = embeddings @ weight.T + bias
        return embeddings[:, 0]


class Aesthetic:
    """Scores N pictures; details tell the head's layout and the first digits of its hash."""

    def __init__(self, options: AestheticOptions) -> None:
        self._options = options
        self._model: OpenClip | None = None
        self.head: Head | None = None

    def setup(self, device: str) -> None:
        """Load head and model. Raises Tdmr1Error where they can't be had or don't fit."""
        options = self._options
        head = Head(find_file(options.head), device)
        model = OpenClip(options.model, options.weights, device=device, precision=options.precision)
        if head.width != model.width:
            raise Tdmr1Error(
                f"the head {options.head} is for embeddings of {head.width} numbers, and {options.model} gives"
                f" {model.width}",
                "use the model that the head was trained on; LAION's heads belong to ViT-L-14",
            )
        self.head, self._model = head, model

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images."""
        if self._model is None:
            self.setup("cpu")
        assert self._model is not None
        assert self.head is not None
        scores = self.head(self._model.embed_images(batch.images))
        told = {"head": self.head.layout, "head_sha256": self.head.sha256[:12]}
        return RewardResult([float(score) for score in scores], [told] * len(batch))


def _read_state(path: Path) -> dict[str, Any]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise Tdmr1Error(
            f"the aesthetic head {path} can't be read: {first_line(error)}",
            "it must be a state dict that holds tensors alone, or a safetensors file",
        ) from error
    return dict(state) if isinstance(state, dict) else {}


def _layout(state: dict[str, Any], path: Path) -> str:
    """Which of HEADS the state dict is, its shapes included."""
    for layout, places in HEADS.items():
        if set(state) == {f"{place}{part}" for place in places for part in ("weight", "bias")}:
            weights = [state[f"{place}weight"] for place in places]
            chained = all(after.shape[1] == before.shape[0] for before, after in pairwise(weights))
            if chained and weights[-1].shape[0] == 1:
                return layout
    raise Tdmr1Error(
        f"{path} is no aesthetic head that is known: it holds {', '.join(sorted(state)[:6]) or 'no state dict'}",
        "known are LAION's Linear(768, 1) and the improved predictor's five layers without activations",
    )
