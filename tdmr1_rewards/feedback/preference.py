"""A small preference model: logistic regression on image features, with its cross-validated accuracy."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdmr1_rewards.builtin.optional import import_optional

FOLDS = 5
LEAST_OF_EACH = 2 * FOLDS
"""A model needs at least this many images that are liked, and as many that are not."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for scikit-learn's C, the inverse strength of the L2 penalty."""


@dataclass(frozen=True)
class Evidence:
    """The training data and the measured accuracy of a preference model.

    `answers` counts likes and dislikes, `likes` only the likes. `accuracy` is the fraction of answers that
    cross-validation predicts correctly on unseen images, None if there are too few answers; `stderr` is its standard
    error.
    """

    answers: int
    likes: int
    accuracy: float | None = None
    stderr: float | None = None

    @property
    def majority(self) -> float:
        """The accuracy of always predicting the more common answer: 0.5 to 1, and 1 without answers."""
        return max(self.likes, self.answers - self.likes) / self.answers if self.answers else 1.0

    @property
    def sufficient(self) -> bool:
        """Whether the accuracy exceeds `majority` by more than two standard errors."""
        return self.accuracy is not None and self.accuracy - 2 * (self.stderr or 0.0) > self.majority

    def __str__(self) -> str:
        counts = f"{self.answers} answers, {self.likes} likes"
        if self.accuracy is None:
            return f"{counts}; too few to train on"
        accuracy = f"accuracy {self.accuracy:.0%} ± {self.stderr:.0%}"
        return f"{counts}; {accuracy}, always the more common answer: {self.majority:.0%}"


class PreferenceModel:
    """Predicts the probability that a person likes an image, from the features of the image.

    It is fitted to N answers: `features` (N, D), `liked` (N,) of 0 and 1, and `images` (N,), one name per image.
    Cross-validation puts all answers to an image into the same fold and chooses the penalty inside each fold, so
    `evidence` is measured on unseen images. Nothing is fitted with fewer than `least` answers, or with fewer than ten
    images of either answer. The same input gives the same model.
    """

    def __init__(self, features: np.ndarray, liked: np.ndarray, images: np.ndarray, least: int) -> None:
        self.evidence = Evidence(len(liked), int(liked.sum()))
        self._model = None
        rarer = min(len(np.unique(images[liked == value])) for value in (0, 1))
        if len(liked) < least or rarer < LEAST_OF_EACH:
            return
        selection = import_optional("sklearn.model_selection", "tdmr1[human]")
        folds = selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        correct = np.zeros(len(liked), dtype=bool)
        for training, held_out in folds.split(features, liked, images):
            correct[held_out] = _fit(features[training], liked[training]).predict(features[held_out]) == liked[held_out]
        accuracy = float(correct.mean())
        stderr = math.sqrt(max(accuracy * (1 - accuracy), 1 / len(liked) / 4) / len(liked))
        self.evidence = Evidence(len(liked), int(liked.sum()), accuracy, stderr)
        self._model = _fit(features, liked)

    def predict(self, features: np.ndarray) -> list[float]:
        """The probability of a like for each row of `features` (N, D). Call it only if the evidence is sufficient."""
        assert self._model is not None, "the model is not fitted"
        return [float(probability) for probability in self._model.predict_proba(features)[:, 1]]


def _fit(features: np.ndarray, liked: np.ndarray) -> Any:
    """A scikit-learn pipeline fitted to `features` (N, D) and `liked` (N,)."""
    linear_model = import_optional("sklearn.linear_model", "tdmr1[human]")
    pipeline = import_optional("sklearn.pipeline", "tdmr1[human]")
    preprocessing = import_optional("sklearn.preprocessing", "tdmr1[human]")
    if len(np.unique(liked)) < 2 or min(np.bincount(liked)) < FOLDS:
        estimator = linear_model.LogisticRegression(C=1e-2, max_iter=1000)
    else:
        estimator = linear_model.LogisticRegressionCV(
            Cs=list(PENALTIES), cv=FOLDS, max_iter=1000, scoring="neg_log_loss", use_legacy_attributes=False
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # penalties without convergence, which are not chosen
        return pipeline.make_pipeline(preprocessing.StandardScaler(), estimator).fit(features, liked)
