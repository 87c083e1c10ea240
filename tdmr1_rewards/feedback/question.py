"""The question that people answer with like (yes), dislike (no) or skip (no opinion).

A folder of answers has one question: the score of an image mixes its answers, which must therefore mean the same. The
question can be changed until the first answer is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import StringConstraints

from tdmr1_rewards.errors import Tdmr1Error, one_line
from tdmr1_rewards.feedback.store import FeedbackStore

LONGEST = 300
"""Characters of the longest question."""
Question = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST)]


def read_question(text: str) -> str:
    """The question as one line. Raises Tdmr1Error if it is empty or longer than LONGEST."""
    question = one_line(text)
    if not 1 <= len(question) <= LONGEST:
        raise Tdmr1Error(
            f"the question has {len(question)} characters; it must have 1 to {LONGEST}",
            'give a question that can be answered with yes or no, such as --question "Is the text readable?"',
            code="argument-invalid",
            values={"characters": len(question), "longest": LONGEST},
        )
    return question


def shared_question(stores: Sequence[FeedbackStore], wanted: str | None) -> str | None:
    """The question of all answers in several stores and of `wanted`; None if there are neither.

    Raises Tdmr1Error if they are answers to different questions.
    """
    found = {question: store.folder for store in stores if (question := store.answered_question()) is not None}
    wrong = [question for question in found if wanted is not None and question != wanted]
    if wrong:
        raise Tdmr1Error(
            f"the answers in {found[wrong[0]]} are answers to {wrong[0]!r}, not to {wanted!r}",
            "use folders whose answers have the question of the run, or set the option `question` of the reward human",
            code="feedback-item",
            values={"path": str(found[wrong[0]]), "question": wrong[0], "expected": wanted},
        )
    if len(found) > 1:
        (first, folder), (second, other) = list(found.items())[:2]
        raise Tdmr1Error(
            f"the answers in {folder} are answers to {first!r}, and those in {other} to {second!r}",
            "use folders whose answers have the same question",
            code="feedback-item",
            values={"paths": [str(folder), str(other)], "questions": [first, second]},
        )
    return next(iter(found), wanted)
