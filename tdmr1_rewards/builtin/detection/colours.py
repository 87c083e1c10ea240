"""The color of an object, by zero-shot CLIP classification of its crop as in GenEval (arXiv 2310.11513)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tdmr1_rewards.builtin.detection.detections import Detection

if TYPE_CHECKING:
    from torch import Tensor

    from tdmr1_rewards.builtin.clip_models import ClipModel

COLOUR_WORDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
"""GenEval's ten colors."""
TEMPLATES = ("a photo of a {colour} {thing}", "a photo of a {colour}-colored {thing}", "a photo of a {colour} object")
"""GenEval's sentences. The text embedding of a color is the mean over the three."""
BACKGROUND = (0x99, 0x99, 0x99)
"""The gray with which GenEval fills the pixels outside of the object's mask."""
CROPS_AT_ONCE = 16


@dataclass(eq=False)
class ClipColours:
    """Classifies the color of objects with a transformers CLIP model, given by hub name or folder.

    The model is loaded at the first call of `classify`.
    """

    source: str
    _device: str = field(default="cpu", init=False)
    _model: ClipModel | None = field(default=None, init=False)
    _text_embeddings: dict[str, Tensor] = field(default_factory=dict, init=False)

    def set_up(self, device: str) -> None:
        """Set the torch device."""
        self._device = device

    def classify(self, image: Any, objects: Sequence[Detection], thing: str) -> list[str]:
        """One of COLOUR_WORDS for each object of a PIL RGB image; `thing` is the name of the objects' class.

        Raises Tdmr1Error if the model cannot be loaded.
        """
        model = self._load()
        embeddings = self._embed_colours(model, thing)
        names: list[str] = []
        for start in range(0, len(objects), CROPS_AT_ONCE):
            crops = [crop_object(image, item) for item in objects[start : start + CROPS_AT_ONCE]]
            similarity = model.embed_images(crops) @ embeddings.T  # (n, 10)
            names += [COLOUR_WORDS[int(index)] for index in similarity.argmax(dim=1)]
        return names

    def _load(self) -> ClipModel:
        """The CLIP model, loaded at the first call."""
        if self._model is None:
            from tdmr1_rewards.builtin.clip_models import TransformersClip

            self._model = TransformersClip(self.source, device=self._device)
        return self._model

    def _embed_colours(self, model: ClipModel, thing: str) -> Tensor:
        """The text embeddings of the ten colors for a class: (10, D), of unit length."""
        if thing not in self._text_embeddings:
            texts = [template.format(colour=word, thing=thing) for word in COLOUR_WORDS for template in TEMPLATES]
            mean = model.embed_texts(texts).unflatten(0, (len(COLOUR_WORDS), len(TEMPLATES))).mean(dim=1)  # (10, D)
            self._text_embeddings[thing] = mean / mean.norm(dim=1, keepdim=True)
        return self._text_embeddings[thing]


def crop_object(image: Any, item: Detection) -> Any:
    """The part of a PIL RGB image inside the box of an object, at least 1 x 1 pixels; gray outside of its mask."""
    from PIL import Image

    if item.mask is not None:
        background = Image.new("RGB", image.size, BACKGROUND)
        image = Image.composite(image, background, Image.fromarray(item.mask.astype(np.uint8) * 255))
    left, top, right, bottom = (round(edge) for edge in item.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
