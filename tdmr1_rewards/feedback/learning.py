"""Keeps a preference model up to date with the answers of one or several stores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tdmr1_rewards.feedback.features import Extractor
from tdmr1_rewards.feedback.images import read_image
from tdmr1_rewards.feedback.preference import Evidence, PreferenceModel
from tdmr1_rewards.feedback.store import FeedbackStore

if TYPE_CHECKING:
    from PIL.Image import Image


class PreferenceLearner:
    """A model of every like and dislike in `stores`, over the features that `extractor` gives; skips teach nothing.

    It is fitted to `least` answers or more.
    """

    def __init__(self, stores: Sequence[FeedbackStore], extractor: Extractor, least: int) -> None:
        self._stores = stores
        self._extractor = extractor
        self._least = least
        self._features: dict[str, np.ndarray] = {}
        self._learnt: list[tuple[str, bool]] | None = None
        self._model: PreferenceModel | None = None

    def learn(self, until: int | None = None) -> Evidence:
        """Fit the model again if the answers are others than before; what it rests on.

        Of the first store it knows nothing of what was asked after step `until`, if that is given.
        """
        answers = []
        for store in self._stores:
            last = math.inf if until is None or store is not self._stores[0] else until
            given = [answer for answer in store.answers() if answer.answer != "skip" and (answer.step or 0) <= last]
            self._look(store, [answer.item.hash for answer in given])
            known = [answer for answer in given if answer.item.hash in self._features]
            answers += [(answer.item.hash, answer.answer == "like") for answer in known]
        if self._model is None or answers != self._learnt:
            rows = [self._features[name] for name, _ in answers]
            features = np.stack(rows) if rows else np.zeros((0, 1))
            liked = np.array([like for _, like in answers], dtype=int)
            self._model = PreferenceModel(features, liked, np.array([name for name, _ in answers]), self._least)
            self._learnt = answers
        return self._model.evidence

    def predict(self, images: Sequence[Image]) -> list[float | None]:
        """How probable a like is for each of N RGB images, 0 to 1; None for all while the model knows too little."""
        if not images or self._model is None or not self._model.evidence.sufficient:
            return [None] * len(images)
        return list(self._model.predict(self._extractor(images)))

    def _look(self, store: FeedbackStore, names: Sequence[str]) -> None:
        """Have the features of these pictures of a store, but of those that somebody has deleted."""
        new = [name for name in dict.fromkeys(names) if name not in self._features]
        there = {name: read_image(path) for name in new if (path := store.image_path(name)) is not None}
        if there:
            self._features.update(zip(there, self._extractor(list(there.values())), strict=True))
