"""Scores of perfect readings in both comparisons of `ocr_match`, for docs/differences.md.

    python benchmarks/ocr_comparison.py

Each row is a text as a prompt may have it, and what an OCR engine reads in an image that shows exactly this text. The
score should be 1. The script prints a Markdown table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tdmr1_rewards.builtin.ocr_match import match_score
from tdmr1_rewards.builtin.text_comparison import Comparison, normalize


@dataclass(frozen=True)
class Reading:
    """A text of a prompt, how it is written there, and what an engine reads."""

    what: str
    asked: str
    read: str

    def score(self, comparison: Comparison) -> float:
        """The score of the reading, 0 to 1."""
        return match_score(normalize(self.asked, comparison), normalize(self.read, comparison))


READINGS = (
    Reading("English", "Fresh Bread, 50% off!", "FRESH BREAD, 50% OFF!"),
    Reading("combining accent (NFD, macOS)", "CAFE\u0301", "CAFÉ"),
    Reading("combining marks (NFD)", "PHO\u031b\u0309 VIE\u0323\u0302T", "PHỞ VIỆT"),
    Reading("jamo (NFD)", "\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),
    Reading("full-width letters", "ＳＡＬＥ", "SALE"),
    Reading("half-width katakana", "ｶﾞｿﾘﾝ", "ガソリン"),
    Reading("typographic apostrophe", "DON’T", "DON'T"),
    Reading("en dash", "MON–FRI", "MON-FRI"),
    Reading("ligature", "ﬁne oﬃce", "fine office"),
    Reading("German ß in capitals", "Straße", "STRASSE"),
    Reading("Greek final sigma in capitals", "οδος Αθηνας", "ΟΔΟΣ ΑΘΗΝΑΣ"),
    Reading("zero-width space", "A\u200bB", "AB"),
    Reading("soft hyphen", "CO\u00adOP", "COOP"),
    Reading("right-to-left mark", "\u200fשלום", "שלום"),
    Reading("no-break space", "OPEN\u00a024", "OPEN 24"),
    Reading("variation selector", "I ❤\ufe0f NY", "I ❤ NY"),
)


def table() -> Iterator[str]:
    """The rows as Markdown."""
    yield "| text of the prompt | `comparison: published` | `comparison: unicode` |"
    yield "|---|---|---|"
    for reading in READINGS:
        scores = [f"{reading.score(comparison):.2f}" for comparison in ("published", "unicode")]
        yield f"| {reading.what} | {' | '.join(scores)} |"


if __name__ == "__main__":
    print("\n".join(table()))
