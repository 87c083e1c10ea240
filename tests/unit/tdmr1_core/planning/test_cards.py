"""Names of well-known cards, as typed and as drivers write them."""

from __future__ import annotations

import pytest

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.planning.cards import CARDS, SUSTAINED, card_of, parse_room

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("H100", "H100"),
        ("h100", "H100"),
        ("RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("A100", "A100 80GB"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX A6000", "RTX A6000"),
    ],
)
def test_names_of_cards(typed, name):
    card = card_of(typed)
    assert card is not None
    assert card.name == name


@pytest.mark.parametrize("name", ["", "  ", "NVIDIA", "Radeon", "RTX", "RTX 6000"])
def test_unknown_names_are_no_card(name):
    assert card_of(name) is None


def test_no_name_stands_for_two_cards():
    for card in CARDS:
        assert all(card_of(name) is card for name in (card.name, *card.aliases)), card.name


def test_the_assumed_speed_is_that_measured_on_an_h100():
    card = card_of("H100")
    assert card is not None
    assert card.sustained == pytest.approx(139)
    assert card.sustained / 774 == pytest.approx(0.18, abs=0.001)
    assert pytest.approx(0.14, abs=0.001) == SUSTAINED


def test_every_card_has_a_source_and_speeds_and_sizes_of_real_cards():
    assert len(CARDS) > 20
    for card in CARDS:
        assert card.source.startswith("NVIDIA "), card.name
        assert 16 <= card.gigabytes <= 180
        assert 70 <= card.tflops <= 2250


@pytest.mark.parametrize(("text", "expected"), [("24GB", 24e9), ("24", 24e9), ("1.5 GiB", 1.5 * 2**30), ("L4", 24e9)])
def test_memory_as_typed(text, expected):
    assert parse_room(text).memory == expected


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("H101", ["H100"]),
        ("rtx 6000", ["RTX PRO 6000", "RTX 6000 Ada"]),
        ("a lot", []),
        ("24TB", []),
        ("H100 SX", ["H100", "H100 NVL", "H100 PCIe"]),
    ],
)
def test_another_text_is_refused_with_similar_names(text, near):
    with pytest.raises(Tdmr1Error, match="neither a known card nor a size") as raised:
        parse_room(text)
    assert raised.value.code == "argument-invalid"
    assert raised.value.values["near"] == near
    assert ("did you mean" if near else "known cards: B200, H200") in str(raised.value.hint)
