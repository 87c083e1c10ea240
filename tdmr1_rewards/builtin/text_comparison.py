"""The form in which the OCR reward compares texts: target and OCR output are normalized alike.

The form `unicode` removes differences that an image cannot show: case, white space, format characters, composition,
the width and the typographic form of a letter, and the kind of an apostrophe, quotation mark or dash.

It applies Unicode's compatibility mappings (NFKC) where only the form of the same letters differs, such as width and
ligatures, because an OCR engine cannot distinguish these. It does not apply them to superscripts, subscripts, fractions
and circled characters, because that makes different texts equal: x² and x2, 1½ and 11/2. ™ and ℠ are the exceptions:
they are words, and engines read them as letters. ASCII texts have the same form as in lower case without white space.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Literal

from tdmr1_rewards.builtin.visible import BLANK_LETTERS

Comparison = Literal["unicode", "published"]

PUNCTUATION = {
    **dict.fromkeys("‘’‚‛‹›′´ʹʻʼʽˈ՚׳❛❜ꞌ", "'"),
    **dict.fromkeys("“”„‟«»″˝ʺ״〝〞〟❝❞", '"'),
    **dict.fromkeys("‐‑‒–—―−⁃˗֊־᠆⸺⸻", "-"),
}
"""Apostrophes, quotation marks and dashes, and the ASCII character that all of a kind become."""
WORDS = {"™": "TM", "℠": "SM"}
"""Signs that are small letters."""
KEPT_FORMS = ("<super>", "<sub>", "<fraction>", "<circle>")
"""Kinds of compatibility mappings that change what a text says; all others change its form only."""
HANGUL_LETTERS = {unicodedata.normalize("NFKC", letter): letter for letter in map(chr, range(0x3131, 0x318F))}
"""Hangul letters by the jamo that NFKC makes of them. Letters do not compose: ㄱㅏ is not the syllable 가."""
VARIATION_SELECTORS = {
    0x034F,  # combining grapheme joiner
    *(0x17B4, 0x17B5),  # Khmer inherent vowels
    *(0x180B, 0x180C, 0x180D, 0x180F),  # Mongolian
    *range(0xFE00, 0xFE10),
    *range(0xE0100, 0xE01F0),
}
"""Combining characters that are never visible. Unlike other format characters, they are not of the category Cf."""


def normalize(text: str, comparison: Comparison = "unicode") -> str:
    """The form of a text in which it is compared with another.

    `published` is that of flow_grpo's OCR reward: lower case, without the character U+0020.
    """
    if comparison == "published":
        return text.replace(" ", "").lower()
    # As in Unicode's NFKC_Casefold, characters are mapped again after case folding, which may add further ones.
    for _ in range(2):
        text = "".join(map(_fold, unicodedata.normalize("NFD", text))).casefold()
    text = unicodedata.normalize("NFC", text)
    return "".join(HANGUL_LETTERS.get(character, character) for character in text)


@lru_cache(maxsize=4096)
def _fold(character: str) -> str:
    """A character without the differences that an image cannot show, except its case; empty if it is not visible."""
    if character.isspace() or character in BLANK_LETTERS or ord(character) in VARIATION_SELECTORS:
        return ""
    if unicodedata.category(character) == "Cf":
        return ""
    replaced = PUNCTUATION.get(character) or WORDS.get(character)
    if replaced is not None:
        return replaced
    if "\u3131" <= character <= "\u318e":  # Hangul letters
        return character
    kind, _, points = unicodedata.decomposition(character).partition(" ")
    # A mapping that starts with a space is that of a spacing accent. Without the space it would be a combining one.
    if not kind.startswith("<") or kind in KEPT_FORMS or points.startswith("0020 "):
        return character
    return "".join(_fold(chr(int(point, 16))) for point in points.split())
