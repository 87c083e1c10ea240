"""Agreement against numbers worked out by hand."""

import pytest

from tdmr1_rewards.feedback.agreement import agreement
from tdmr1_rewards.feedback.records import GivenAnswer, Item

pytestmark = pytest.mark.unit

WORDS = {"+": "like", "-": "dislike", "0": "skip"}


def answers(*items):
    """Answers from strings like "++-", one an item, one letter a person."""
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
def test_the_share_of_pairs(items, share, pairs):
    found = agreement(answers(*items))
    assert (found.share, found.pairs) == (pytest.approx(share) if share is not None else None, pairs)


def test_alpha_of_a_textbook_case():
    """Krippendorff's own binary example (two observers, ten units): 0.095 with n = 20, 14 and 6 of each, 4 differ."""
    found = agreement(answers("-+", "++", "-+", "--", "--", "--", "--", "--", "+-", "--"))
    assert found.alpha == pytest.approx(1 - 19 * 3 / (15 * 5))
    found = agreement(answers("-+", "++", "-+", "--", "--", "--", "--", "+-", "+-", "--"))
    assert found.alpha == pytest.approx(0.095, abs=5e-4)


def test_alpha_of_full_agreement_and_of_its_absence():
    assert agreement(answers("++", "--", "+++")).alpha == pytest.approx(1.0)
    assert agreement(answers("+-", "+-")).alpha == pytest.approx(-0.5)
    assert agreement(answers("++", "++")).alpha is None
    assert agreement(answers("+")).alpha is None


def test_an_item_with_one_opinion_changes_nothing():
    assert agreement(answers("++", "+-", "-0", "+")) == agreement(answers("++", "+-"))
