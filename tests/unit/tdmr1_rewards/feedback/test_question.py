"""A folder of answers has one question."""

from __future__ import annotations

import json

import pytest
from support.errors import raises
from support.feedback_images import open_round, solid_image

from tdmr1_rewards.api import RewardBatch, RewardContext, RunPreview
from tdmr1_rewards.feedback.exporting import export_answers
from tdmr1_rewards.feedback.human import Human, HumanOptions, check_answers
from tdmr1_rewards.feedback.question import LONGEST, read_question, shared_question
from tdmr1_rewards.feedback.store import DEFAULT_QUESTION, FeedbackStore

pytestmark = pytest.mark.unit

READABLE = "Is the text readable?"


def answer_one(store):
    """Answer one image, and return the round."""
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    store.give(key="k", item_id=item.id, round_id=opened.id, person="p", answer="like")
    return opened


@pytest.fixture
def stores(tmp_path):
    """Two stores with an answer each, to the default question and to another one."""
    made = [FeedbackStore(tmp_path / name) for name in ("a", "b")]
    made[1].set_question(READABLE)
    for store in made:
        answer_one(store)
    yield made
    for store in made:
        store.close()


def test_the_question_can_change_until_the_first_answer(store):
    assert store.question() == DEFAULT_QUESTION
    assert store.answered_question() is None
    store.set_question("x?")
    store.set_question(READABLE)
    answer_one(store)
    assert store.question() == store.answered_question() == READABLE
    store.set_question(READABLE)
    with raises("feedback-item", path=str(store.folder), question=READABLE, expected="x?"):
        store.set_question("x?")
    assert store.question() == READABLE
    store.undo("p")
    store.set_question("x?")
    assert store.question() == "x?"


def test_answers_of_older_versions_belong_to_the_default_question(store):
    answer_one(store)
    assert store.answered_question() == DEFAULT_QUESTION
    with raises("feedback-item"):
        store.set_question(READABLE)
    store.set_question(DEFAULT_QUESTION)


@pytest.mark.parametrize("text", ["", " \n ", "x" * (LONGEST + 1)])
def test_a_question_that_cannot_be_shown_is_refused(text):
    with raises("argument-invalid"):
        read_question(text)
    with pytest.raises(ValueError, match="question"):
        HumanOptions(question=text)


def test_a_question_is_one_line():
    assert read_question(" Is it\n good? ") == "Is it good?"


def test_answers_to_two_questions_are_not_mixed(stores, tmp_path):
    first, second = stores
    assert shared_question([], None) is None
    assert shared_question([], READABLE) == READABLE
    assert shared_question([second], None) == READABLE
    assert shared_question([second], READABLE) == READABLE
    with raises("feedback-item", questions=[DEFAULT_QUESTION, READABLE]):
        shared_question(stores, None)
    with raises("feedback-item", path=str(first.folder), question=DEFAULT_QUESTION, expected=READABLE):
        shared_question(stores, READABLE)


def test_a_run_is_checked_before_it_starts(stores, tmp_path):
    options = HumanOptions(mode="model", answers=tuple(store.folder for store in stores))
    with raises("feedback-item", questions=[DEFAULT_QUESTION, READABLE]):
        check_answers(RunPreview(prompts=["a"], metadata=[{}], options=options))


def test_a_run_asks_the_question_of_the_answers_that_it_uses(stores, tmp_path):
    reward = Human(HumanOptions(mode="stored", answers=(stores[1].folder,)))
    reward.setup("cpu")
    context = RewardContext(tmp_path / "run", 0, 0)
    reward(RewardBatch([solid_image(1)], ["p"], [{}], [0], [0], context))
    reward.close()
    own = FeedbackStore(tmp_path / "run" / "feedback")
    assert own.question() == READABLE
    own.close()


def test_an_export_names_the_question(stores, tmp_path):
    export_answers(stores[1], tmp_path / "a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text())["question"] == READABLE
