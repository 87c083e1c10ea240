"""Agreement, compared with values computed by hand."""

import pytest

from tdmr1_rewards.feedback.agreement import agreement
from tdmr1_rewards.feedback.records import GivenAnswer, Item

pytestmark = pytest.mark.unit

WORDS = {"+": "like", "-": "dislike", "0": "skip"}


def answers(*items):
    """Answers from strings like "++-": one string per item, one character per person."""
    return [
        GivenAnswer(Item(number, f"{number:064}", ""), WORDS[sign], f"p{person}", "", 0.0, "r", None)
        for number, signs in enumerate(items)
        for person, sign in enumerate(signs)
    ]


@pytest.mark.parametrize(
    ("items", "share", "pairs"),
    [
        ([], None, 0),
        (["+", "-"], None, 0),
        (["+0", "00"], None, 0),
        (["++"], 1.0, 1),
        (["+-"], 0.0, 1),
        (["++-"], 1 / 3, 3),
        (["++--", "++"], 3 / 7, 7),
        (["+0+", "+-"], 1 / 2, 2),
    ],
)
def test_share_is_the_fraction_of_equal_answer_pairs(items, share, pairs):
    found = agreement(answers(*items))
    assert (found.share, found.pairs) == (pytest.approx(share) if share is not None else None, pairs)


def test_alpha_of_a_textbook_example():
    """Krippendorff's binary example: two observers, ten units, 14 and 6 answers of each kind, 4 units differ: 0.095."""
    found = agreement(answers("-+", "++", "-+", "--", "--", "--", "--", "--", "+-", "--"))
    assert found.alpha == pytest.approx(1 - 19 * 3 / (15 * 5))
    found = agreement(answers("-+", "++", "-+", "--", "--", "--", "--", "+-", "+-", "--"))
    assert found.alpha == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_full_agreement_of_disagreement_and_where_it_is_undefined():
    assert agreement(answers("++", "--", "+++")).alpha == pytest.approx(1.0)
    assert agreement(answers("+-", "+-")).alpha == pytest.approx(-0.5)
    assert agreement(answers("++", "++")).alpha is None
    assert agreement(answers("+")).alpha is None


def test_items_with_a_single_like_or_dislike_are_ignored():
    assert agreement(answers("++", "+-", "-0", "+")) == agreement(answers("++", "+-"))
