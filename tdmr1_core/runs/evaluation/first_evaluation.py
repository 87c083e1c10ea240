"""The scores of the first evaluation of a run, image by image.

They are kept in the run folder, so that a resumed run can also compare every image with that of the start.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmr1_core.durable_files import MALFORMED, replace_durable
from tdmr1_core.prompts.sets import short_names
from tdmr1_core.runs.evaluation.evaluate import Evaluation, EvaluationImages, measure
from tdmr1_core.runs.jsonl import number
from tdmr1_rewards.texts.documents import MOST_BYTES, read_json
from tdmr1_rewards.texts.redaction import redact_texts

FIRST_EVALUATION = "first_evaluation.json"


def save_first_evaluation(folder: Path, subject: str, results: Sequence[Evaluation]) -> None:
    """Write the scores to the run folder. `subject` identifies prompts, noise and rewards (`subject_fingerprint`)."""
    scores = {result.prompt_set: {"role": result.role, "scores": result.scores} for result in results}
    document = {"subject": subject, "prompt_sets": scores}
    replace_durable(folder / FIRST_EVALUATION, json.dumps(redact_texts(document)).encode())


def load_first_evaluation(folder: Path, subject: str) -> tuple[Evaluation, ...]:
    """The first evaluation, without its images. Empty if the file is missing or damaged, or of another subject."""
    try:
        document = read_json(folder / FIRST_EVALUATION, MOST_BYTES)
        if document["subject"] != subject:
            return ()
        names = short_names(list(document["prompt_sets"]))  # earlier versions wrote whole paths
        return tuple(_evaluation(names[name], part) for name, part in document["prompt_sets"].items())
    except (OSError, *MALFORMED):
        return ()


def _evaluation(prompt_set: str, part: dict[str, Any]) -> Evaluation:
    scores = {
        name: [None if value is None else number(value) for value in values] for name, values in part["scores"].items()
    }
    measures = {name: measure(values) for name, values in scores.items()}
    nothing = EvaluationImages(np.zeros((0, 0, 0, 3), np.uint8), (), ())
    return Evaluation(str(part["role"]), prompt_set, measures, nothing, scores)
