"""The form in which texts are compared: expectations by hand, and properties of all characters."""

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdmr1_rewards.builtin.ocr_match import find_targets, match_score
from tdmr1_rewards.builtin.text_comparison import KEPT_FORMS, normalize
from tdmr1_rewards.builtin.visible import has_visible

pytestmark = pytest.mark.unit

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
CHARACTERS = [
    character
    for character in map(chr, range(sys.maxunicode + 1))
    if (category := unicodedata.category(character)) not in ("Cn", "Co", "Cs")
    and (category != "Lo" or unicodedata.decomposition(character))
]
"""All assigned characters except letters without a decomposition, such as ideographs: nothing changes these."""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CAFE\u0301", "café"),  # combining acute accent
        ("Zu\u0308rich", "ZÜRICH"),
        ("Å", "A\u030a"),
        ("\u212bngstr\u00f6m", "ångström"),  # the Ångström sign
        ("q\u0307\u0323", "q\u0323\u0307"),  # marks above and below, in both orders
        ("Phở bò Việt", "PHO\u031b\u0309 BO\u0300 VIE\u0323\u0302T"),
        ("đường", "ĐƯỜNG"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", "한글"),  # jamo, as in NFD
        ("ㅋㅋㅋ", "\u110f\u110f\u110f"),  # letters, and what NFKC makes of them
        ("ﾡ", "ㄱ"),  # half-width
        ("ＳＡＬＥ　５０％", "sale 50%"),
        ("ｶﾞｿﾘﾝ", "ガソリン"),  # half-width katakana with dakuten
        ("ﾊﾟﾝ", "ハ\u309aン"),
        ("Straße", "STRASSE"),
        ("STRAẞE", "strasse"),
        ("İstanbul", "I\u0307STANBUL"),
        ("Kırmızı", "kırmızı"),
        ("ΟΔΟΣ", "οδος"),
        ("ΟΔΟΣ", "οδός".replace("ό", "ο")),  # final sigma
        ("ﬁne oﬃce", "FINE OFFICE"),
        ("ĳs", "ijs"),
        ("ﷺ", "صلى الله عليه وسلم"),
        ("\ufeb3\ufefc\ufee1", "سلام"),  # presentation forms, with the ligature of lam and alef
        ("don’t don‘t don‛t donʼt don′t don´t don＇t", "don't " * 7),
        ("“a” „b‟ «c» ″d″ 〝e〟 ＂f＂", '"a" "b" "c" "d" "e" "f"'),
        ("‚a‘ ‹b›", "'a' 'b'"),
        ("1–2—3‑4−5‐6―7－8﹣9", "1-2-3-4-5-6-7-8-9"),
        ("Wait…", "wait..."),
        ("a\u00a0b\u2009c\u202fd\u3000e\tf\ng\u2028h", "abcdefgh"),
        ("co\u00adop", "coop"),  # soft hyphen
        ("\ufeffA\u200bB\u2060C", "ABC"),  # byte order mark, zero-width space, word joiner
        ("می\u200cخواهم", "میخواهم"),  # zero-width non-joiner
        ("क्\u200dष", "क्ष"),
        ("\u202bשלום\u202c \u200fעולם\u200e", "שלום עולם"),  # bidirectional marks
        ("I ❤️ NY ☺︎", "I ❤ NY ☺"),  # variation selectors
        ("👨\u200d👩\u200d👧", "👨👩👧"),
        ("葛\U000e0100城", "葛城"),  # an ideographic variation
        ("𝐁𝐨𝐥𝐝 𝒮𝒸𝓇𝒾𝓅𝓉", "bold script"),
        ("5 µm, 20 ℃, 3 ㎏, 4 ㎡", "5 μm, 20 °C, 3 kg, 4 m²"),
        ("Ⅷ ⅻ", "viii XII"),
        ("Acme™ Care℠", "AcmeTM CareSM"),
        ("K\u3164O\u2800", "KO"),  # characters that look like a blank
    ],
)
def test_the_same_visible_text_has_one_form(one, other):
    assert normalize(one) == normalize(other)
    assert match_score(normalize(one), normalize(other)) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x²", "x2"),
        ("H₂O", "H2O"),
        ("½", "1/2"),
        ("1½", "11/2"),
        ("①", "1"),
        ("Nº", "No"),
        ("École", "ecole"),
        ("ㄱㅏ", "가"),  # letters are not a syllable
        ("ガ", "カ"),
        ("İ", "I"),  # dots are visible, and the language of the text is unknown
        ("ı", "i"),
        ("a\u00a8", "ä"),  # a spacing accent does not become a combining one
        ("it's", "it`s"),
        ("'", '"'),
        ("ー", "-"),
        ("~", "-"),
        ("ö", "o\u0338"),
        ("👍", "👍🏽"),
        ("О", "O"),  # Cyrillic and Latin
    ],
)
def test_different_visible_texts_have_different_forms(one, other):
    assert normalize(one) != normalize(other)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Cafe\u0301 d’Or", "caféd'or"),
        ("STRAẞE", "strasse"),
        ("İstanbul", "i\u0307stanbul"),
        ("ΣΟΦΟΣ", "σοφοσ"),
        ("ﾊﾟﾝ ＃１", "パン#1"),
        ("‹—›", "'-'"),
        ("㈱①½x²", "(株)①½x²"),
        ("𝟙ⅳ™", "1ivtm"),
    ],
)
def test_forms_by_hand(text, form):
    assert normalize(text) == form


def test_the_published_form_is_lower_case_without_spaces():
    assert normalize(" Cafe\u0301 D’OR\u00a0\tStraße ", "published") == "cafe\u0301d’or\u00a0\tstraße"


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_texts_are_only_in_lower_case_and_without_white_space(text):
    assert normalize(text) == "".join(text.lower().split())


@given(st.text(st.characters(max_codepoint=126, min_codepoint=32)))
def test_both_forms_of_a_printed_ascii_line_are_equal(text):
    assert normalize(text) == normalize(text, "published")


def test_all_characters_keep_their_form_and_only_invisible_ones_vanish():
    unstable = [text for text in CHARACTERS if normalize(form := normalize(text)) != form]
    composed = [text for text in CHARACTERS if normalize(unicodedata.normalize("NFD", text)) != normalize(text)]
    vanished = [text for text in CHARACTERS if has_visible(text) and not normalize(text)]
    assert (unstable, composed, vanished) == ([], [], [])


def _is_kept(character: str) -> bool:
    """Whether NFKC changes what a character says: by a part that is a superscript or the like, or a spacing accent."""
    mappings = [unicodedata.decomposition(part) for part in unicodedata.normalize("NFD", character)]
    if character in KEPT_UNITS:
        return True
    return any(mapping.startswith(KEPT_FORMS) or re.match("<[a-zA-Z]+> 0020 ", mapping) for mapping in mappings)


KEPT_UNITS = {character for character in CHARACTERS if re.search("SQUARED$|CUBED$", unicodedata.name(character, ""))}
"""Units such as ㎡, which become m²."""
SAME_IN_NFKC = [
    character
    for character in CHARACTERS
    if has_visible(character) and normalize(unicodedata.normalize("NFKC", character)) == normalize(character)
]
JAMO = re.compile("[\u1100-\u11ff\u3130-\u318f\uffa0-\uffdc]")
"""Letters of Hangul, of which NFKC makes syllables."""
LETTERS = [*"Aéß漢字عربी한ｶﾞﾊﾟﬁＳ’“–😀", *(each for each in SAME_IN_NFKC if not JAMO.match(each))]


def test_nfkc_changes_only_characters_of_the_kept_kinds():
    changed = set(filter(has_visible, CHARACTERS)).difference(SAME_IN_NFKC)
    # ″ is a quotation mark and not two apostrophes, and overlines are spacing accents.
    assert {each for each in changed if not _is_kept(each)} == set("″￣﹉﹊﹋﹌")


@given(st.text(st.sampled_from(LETTERS), min_size=1, max_size=8), st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_a_perfect_reading_scores_1_in_every_normalization_form(text, asked, read):
    (target,) = find_targets("", {"text": unicodedata.normalize(asked, text)}).texts
    assert match_score(target, normalize(unicodedata.normalize(read, text))) == 1
