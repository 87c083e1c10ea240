"""The colour of an object: what a CLIP calls its crop, as GenEval asks it (arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tdmr1_rewards.builtin.detection.detections import Detection

if TYPE_CHECKING:
    from torch import Tensor

    from tdmr1_rewards.builtin.clip_models import ClipModel

COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's ten colours."""
TEMPLATES = ("a photo of a {colour} {thing}", "a photo of a {colour}-colored {thing}", "a photo of a {colour} object")
"""GenEval's sentences; a colour's text embedding is the mean over the three."""
BLANK = (0x99, 0x99, 0x99)
"""The grey that GenEval lays over what is not the object, where a detector draws masks."""
CROPS_AT_ONCE = 16


class ClipColours:
    """Tells colours by zero-shot classification with a CLIP of transformers, by hub name or folder.

    The network is loaded by the first question. Raises Tdmr1Error if it can't be.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._device = "cpu"
        self._model: ClipModel | None = None
        self._classifiers: dict[str, Tensor] = {}

    def set_up(self, device: str) -> None:
        """The torch device to compute on."""
        self._device = device

    def name(self, image: Any, objects: Sequence[Detection], thing: str) -> list[str]:
        """One of GenEval's ten colours for each object of a PIL RGB image; `thing` is the word for its class."""
        model = self._loaded()
        classifier = self._classifier(model, thing)
        names: list[str] = []
        for start in range(0, len(objects), CROPS_AT_ONCE):
            crops = [cut_out(image, item) for item in objects[start : start + CROPS_AT_ONCE]]
            likeness = model.embed_images(crops) @ classifier.T  # (n, 10)
            names += [COLOUR_WORDS[int(index)] for index in likeness.argmax(dim=1)]
        return names

    def _loaded(self) -> ClipModel:
        if self._model is None:
            from tdmr1_rewards.builtin.clip_models import TransformersClip

            self._model = TransformersClip(self._source, device=self._device)
        return self._model

    def _classifier(self, model: ClipModel, thing: str) -> Tensor:
        """The ten colours' embeddings (10, D), of unit length."""
        if thing not in self._classifiers:
            texts = [template.format(colour=word, thing=thing) for word in COLOUR_WORDS for template in TEMPLATES]
            mean = model.embed_texts(texts).unflatten(0, (len(COLOUR_WORDS), len(TEMPLATES))).mean(dim=1)
            self._classifiers[thing] = mean / mean.norm(dim=1, keepdim=True)
        return self._classifiers[thing]


def cut_out(image: Any, item: Detection) -> Any:
    """The box of an object out of a PIL RGB image, at least a pixel wide and high; grey outside of its mask."""
    from PIL import Image

    if item.mask is not None:
        blank = Image.new("RGB", image.size, BLANK)
        image = Image.composite(image, blank, Image.fromarray(item.mask.astype(np.uint8) * 255))
    left, top, right, bottom = (round(edge) for edge in item.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
