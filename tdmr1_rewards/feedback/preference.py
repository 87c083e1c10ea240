"""A small model of what people like: logistic regression on picture features, which knows how much it knows."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from tdmr1_rewards.builtin.optional import import_optional

FOLDS = 5
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidates for scikit-learn's C, the inverse strength of the squared penalty."""


@dataclass(frozen=True)
class Evidence:
    """What a preference model rests on.

    `accuracy` is the cross-validated share of `answers` that a model which never saw the picture foretells, None where
    there are too few to tell, and `stderr` its standard error; `majority` is what always saying the commoner answer
    would get.
    """

    answers: int
    likes: int
    accuracy: float | None = None
    stderr: float | None = None

    @property
    def majority(self) -> float:
        """The share of the commoner answer, 0.5 to 1; 1 without answers."""
        return max(self.likes, self.answers - self.likes) / self.answers if self.answers else 1.0

    @property
    def sufficient(self) -> bool:
        """Whether the model foretells people better than their commoner answer does, by two standard errors."""
        return self.accuracy is not None and self.accuracy - 2 * (self.stderr or 0.0) > self.majority

    def __str__(self) -> str:
        told = f"{self.answers} answers, {self.likes} likes"
        if self.accuracy is None:
            return f"{told}: too few of each to learn from"
        return f"{told}: foretells {self.accuracy:.0%} ± {self.stderr:.0%}, the commoner answer {self.majority:.0%}"


class PreferenceModel:
    """The probability that a person likes a picture with these features.

    Fitted to `features` (N, D), `liked` (N,) of 0 and 1, and `pictures` (N,), equal for answers to the same picture:
    these stay together in cross-validation. The penalty is chosen inside every fold, so that `evidence` is of pictures
    and penalties the model didn't see. With fewer than ten pictures of either answer, or fewer answers than
    `least`, nothing is fitted. The same input gives the same model.
    """

    def __init__(self, features: np.ndarray, liked: np.ndarray, pictures: np.ndarray, least: int) -> None:
        self.evidence = Evidence(len(liked), int(liked.sum()))
        self._model = None
        rarer = min(len(np.unique(pictures[liked == value])) for value in (0, 1))
        if len(liked) < least or rarer < 2 * FOLDS:
            return
        selection = import_optional("sklearn.model_selection", "tdmr1[human]")
        folds = selection.StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
        right = np.zeros(len(liked), dtype=bool)
        for rest, held_out in folds.split(features, liked, pictures):
            right[held_out] = _fit(features[rest], liked[rest]).predict(features[held_out]) == liked[held_out]
        accuracy = float(right.mean())
        stderr = math.sqrt(max(accuracy * (1 - accuracy), 1 / len(liked) / 4) / len(liked))
        self.evidence = Evidence(len(liked), int(liked.sum()), accuracy, stderr)
        self._model = _fit(features, liked)

    def predict(self, features: np.ndarray) -> list[float]:
        """The probability for each row of (N, D); only of a model whose evidence is sufficient."""
        assert self._model is not None, "nothing was fitted"
        return [float(probability) for probability in self._model.predict_proba(features)[:, 1]]


def _fit(features: np.ndarray, liked: np.ndarray) -> Any:
    """A fitted scikit-learn pipeline."""
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
        warnings.simplefilter("ignore")  # of penalties that don't converge: they lose
        return pipeline.make_pipeline(preprocessing.StandardScaler(), estimator).fit(features, liked)
