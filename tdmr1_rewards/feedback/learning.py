"""Trains a preference model on the answers of one or several stores, again when there are new answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from tdmr1_rewards.calling.image_files import read_image
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.features import Extractor
from tdmr1_rewards.feedback.preference import Evidence, PreferenceModel
from tdmr1_rewards.feedback.store import FeedbackStore

if TYPE_CHECKING:
    from PIL.Image import Image


class PreferenceLearner:
    """A preference model of all likes and dislikes in `stores`; skips are ignored.

    `extractor` computes the image features. The model is fitted only with `least` answers or more.
    """

    def __init__(self, stores: Sequence[FeedbackStore], extractor: Extractor, least: int) -> None:
        self._stores = stores
        self._extractor = extractor
        self._least = least
        self._features: dict[str, np.ndarray] = {}
        self._fitted_to: list[tuple[str, bool]] | None = None
        self._model: PreferenceModel | None = None

    def learn(self, until: int | None = None) -> Evidence:
        """Fit the model again if the answers have changed, and return its evidence.

        If `until` is given, answers of the first store to rounds after that step are ignored.
        """
        answers = []
        for store in self._stores:
            last = math.inf if until is None or store is not self._stores[0] else until
            given = [answer for answer in store.answers() if answer.answer != "skip" and (answer.step or 0) <= last]
            self._extract(store, [answer.item.hash for answer in given])
            known = [answer for answer in given if answer.item.hash in self._features]
            answers += [(answer.item.hash, answer.answer == "like") for answer in known]
        if self._model is None or answers != self._fitted_to:
            rows = [self._features[name] for name, _ in answers]
            features = np.stack(rows) if rows else np.zeros((0, 1))
            liked = np.array([like for _, like in answers], dtype=int)
            self._model = PreferenceModel(features, liked, np.array([name for name, _ in answers]), self._least)
            self._fitted_to = answers
        return self._model.evidence

    def predict(self, images: Sequence[Image]) -> list[float | None]:
        """The probability of a like for each of N RGB images, 0 to 1; None for all if the evidence is insufficient."""
        if not images or self._model is None or not self._model.evidence.sufficient:
            return [None] * len(images)
        return list(self._model.predict(self._extractor(images)))

    def _extract(self, store: FeedbackStore, names: Sequence[str]) -> None:
        """Compute the features of the images with these hashes, except of images whose files are deleted or broken."""
        images = {}
        for name in dict.fromkeys(names):
            path = None if name in self._features else store.image_path(name)
            if path is not None:
                with suppress(Tdmr1Error):
                    images[name] = read_image(path)
        if images:
            self._features.update(zip(images, self._extractor(list(images.values())), strict=True))
