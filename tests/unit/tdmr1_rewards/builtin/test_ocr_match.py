"""Targets, scores by hand, the choice of the engine, and the errors of missing engines."""

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.errors import raises
from support.reward_batches import batch_of

from tdmr1_rewards.api import RunPreview
from tdmr1_rewards.builtin import ocr_match
from tdmr1_rewards.builtin.ocr_engines import Line, open_engine, recognized
from tdmr1_rewards.builtin.ocr_match import (
    OcrMatch,
    OcrMatchOptions,
    Targets,
    check_prompts,
    find_targets,
    match_score,
    resolve_engine,
)
from tdmr1_rewards.builtin.text_comparison import normalize
from tdmr1_rewards.calling.reference import validate_options

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("target", "reading", "expected"),
    [
        ("Open", "open", 1.0),
        ("Open 24 Hours", "OPEN24 hours", 1.0),
        ("open", "weareopennow", 1.0),  # contained
        ("open", "", 0.0),
        ("open", "opan", 0.75),
        ("open", "pen", 0.75),
        ("open", "o pe n!", 1.0),
        ("open", "oxpen", 0.75),
        ("open", "opeeeeeeeeen", 0.0),  # eight insertions, limited to the target's length
        ("open", "xyz", 0.0),
        ("kitten", "sitting", 0.5),  # the textbook distance of 3
        ("ab", "ba", 0.0),
        ("Straße", "STRASSE", 1.0),
        ("Straße", "strase", 6 / 7),  # the normalized target has seven letters
        ("ÉCOLE", "école", 1.0),
        ("École", "ecole", 0.8),
        ("東京 駅", "東京駅", 1.0),
        ("東京駅", "東京", 2 / 3),
        ("Привет", "ПРИВЕТ МИР", 1.0),
        ("Привет", "привіт", 5 / 6),
        ("مرحبا", "مرحبا", 1.0),
        ("a", "b", 0.0),
        ("50% off!", "50%0ff!", 6 / 7),
    ],
)
def test_scores_by_hand(target, reading, expected):
    assert match_score(normalize(target), normalize(reading)) == pytest.approx(expected, abs=1e-12)


@given(st.text("abc d", min_size=1).filter(str.strip), st.text("abc d"), st.text("abc d"))
def test_scores_are_0_to_1_and_1_if_the_target_is_contained(target, before, after):
    target = normalize(target)
    assert 0 <= match_score(target, normalize(before)) <= 1
    assert match_score(target, normalize(before + target + after)) == 1


@pytest.mark.parametrize(
    ("prompt", "first", "every"),
    [
        ('A sign that says "Open"', ("open",), ("open",)),
        ('A sign "Open Now" beside "Exit"', ("opennow",), ("opennow", "exit")),
        ('"" beside "Exit"', (), ("exit",)),
        ('an unclosed "quote', (), ()),
        ("no quotes", (), ()),
        ("single 'quotes'", (), ()),
        ("typographic “quotes”", ("quotes",), ("quotes",)),
        ('mixed “quotes"', ("quotes",), ("quotes",)),
        ("an unclosed “quote", (), ()),
        ("English single ‘quotes’", ("quotes",), ("quotes",)),
        ("‘Don’t stop’", ("don'tstop",), ("don'tstop",)),
        ("rock ‘n’ roll", (), ()),
        ("it’s the ’80s", (), ()),
        ("German „Katze“ and ‚Hund‘", ("katze",), ("katze", "hund")),
        ("Polish „kot”, Swedish ”katt”", ("kot",), ("kot", "katt")),
        ("French « chat » and ‹ chien ›", ("chat",), ("chat", "chien")),
        ("Danish »kat« and Finnish »kissa»", ("kat",), ("kat", "kissa")),
        ("「猫」と『犬』", ("猫",), ("猫", "犬")),
        ("＂猫＂ and 〝犬〟", ("猫",), ("猫", "犬")),
        ('two “A” and "B" and «C»', ("a",), ("a", "b", "c")),
        ('empty ""', (), ()),
        ('blank "  "', (), ()),
        ('invisible "\u200b" and "\u3164"', (), ()),
        ('marks "\ufeff\u200e\ufe0f" and "A\u200d"', (), ("a",)),
        ('a 5" pipe and 6" hose', (), ()),
        ("a 5” pipe and 6” hose", (), ()),
        ('a 5" pipe with a sign "Open"', ("open",), ("open",)),
        ('a sign "Route 66" and "Exit 7"', ("route66",), ("route66", "exit7")),
        ('a sign ""HI""', (), ()),
        ('"A""B""C"', ("a",), ("a", "b", "c")),
        ('a sign "東京"', ("東京",), ("東京",)),
        ('"World\'s Smallest Elephant"', ("world'ssmallestelephant",), ("world'ssmallestelephant",)),
    ],
)
def test_targets_in_prompts(prompt, first, every):
    assert find_targets(prompt, {}, "first").texts == first
    assert find_targets(prompt, {}, "all").texts == every


def test_the_reason_distinguishes_an_empty_text_from_no_text():
    assert "no text between quotation marks" in find_targets("no quotes", {}).reason
    assert "empty" in find_targets('empty ""', {}).reason
    assert "doubled" in find_targets('a sign ""HI""', {}).reason
    assert "doubled" in find_targets("a sign ““HI””", {}).reason
    assert "single straight quotes" in find_targets("a sign 'HI'", {}).reason
    assert "single straight quotes" not in find_targets("the dogs' bed isn't here", {}).reason
    for text in (" ", "\u200b", "\ufeff\u200f\u00ad\ufe0f"):
        assert find_targets('"open"', {"text": text}) == Targets(reason="the metadata's `text` is empty")


def test_metadata_take_precedence_over_the_prompt():
    assert find_targets('a "word"', {"text": "Another Word"}).texts == ("anotherword",)
    with raises("reward-metadata", prompt='a "word"', key="text", found=7):
        find_targets('a "word"', {"text": 7})


class Reader:
    """An engine that returns fixed lines and records the sizes of the images."""

    name = "rapidocr"
    min_confidence = 0.5

    def __init__(self, *lines: Line) -> None:
        self.lines = list(lines)
        self.sizes: list[tuple[int, int]] = []

    def read(self, image: Image.Image) -> list[Line]:
        self.sizes.append(image.size)
        return self.lines


@pytest.fixture
def reader(monkeypatch):
    made = Reader(Line("Op", 0.9), Line("en ", 0.6), Line("Exit", 0.3))
    monkeypatch.setattr(ocr_match, "open_engine", lambda options, device: made)
    return made


IMAGE = Image.new("RGB", (40, 20))


def score(prompt, **options):
    return OcrMatch(OcrMatchOptions(**options))(batch_of([IMAGE], [prompt]))


def test_lines_are_joined_without_those_below_the_confidence(reader):
    assert score('"Open"').details == [{"engine": "rapidocr", "target": "open", "read": "open"}]
    assert score('"Open"', min_confidence=0.7).details[0]["read"] == "op"
    assert score('"Open"', min_confidence=0).details[0]["read"] == "openexit"


def test_target_all_averages_over_every_quoted_text(reader):
    assert score('"Open" and "Shut"').scores == [1.0]
    both = score('"Open" and "Shut"', target="all")
    assert both.scores == [0.5]
    assert both.details[0]["target"] == "open shut"


def test_exact_requires_the_target_and_nothing_else(reader):
    assert score('"Open"', score="exact").scores == [1.0]
    assert score('"Open"', score="exact", min_confidence=0).scores == [0.0]  # "openexit" contains it
    assert score('"Op en" and "Exit"', score="exact", target="all", min_confidence=0).scores == [1.0]


@pytest.mark.parametrize("score_kind", ["graded", "exact"])
def test_a_perfect_reading_scores_1_only_in_the_comparison_that_ignores_its_form(monkeypatch, score_kind):
    """The engine returns NFC and ASCII quotes; the prompt is NFD with a typographic apostrophe and a soft hyphen."""
    engine = Reader(Line("CAF\u00c9 D'", 0.9), Line("OR", 0.9))
    monkeypatch.setattr(ocr_match, "open_engine", lambda options, device: engine)
    prompt = 'a sign "Cafe\u0301 d\u2019\u00ador"'
    (details,) = score(prompt, score=score_kind).details
    assert (details["target"], details["read"]) == ("caf\u00e9d'or", "caf\u00e9d'or")
    assert score(prompt, score=score_kind).scores == [1.0]
    published = 0.0 if score_kind == "exact" else 1 - 4 / 10  # é costs 2, ’ and the hyphen 1 each
    assert score(prompt, score=score_kind, comparison="published").scores == [pytest.approx(published)]


def test_the_metadata_are_compared_in_the_same_form(monkeypatch):
    monkeypatch.setattr(ocr_match, "open_engine", lambda options, device: Reader(Line("SALE", 0.9)))
    metadata = {"text": "\uff33\uff21\uff2c\uff25"}
    for comparison, expected in (("unicode", 1.0), ("published", 0.0)):
        reward = OcrMatch(OcrMatchOptions(comparison=comparison))
        assert reward(batch_of([IMAGE], ["a sign"], metadata=[metadata])).scores == [expected]


def test_an_image_without_a_target_is_not_read(reader):
    result = score("an image")
    assert result.scores == [None]
    assert "quotation marks" in result.details[0]["reason"]
    assert reader.sizes == []


def test_the_image_is_cropped_and_enlarged_before_it_is_read(reader):
    score('"Open"')
    score('"Open"', upscale=3)
    score('"Open"', crop=(0.25, 0.5, 1.0, 1.0), upscale=2)
    assert reader.sizes == [(40, 20), (120, 60), (60, 20)]


@pytest.mark.parametrize("crop", [(0.5, 0, 0.5, 1), (0, 0.9, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1, 1.5)])
def test_an_invalid_crop_is_an_error(crop):
    with raises("reward-options", options=["crop"]):
        validate_options(OcrMatchOptions, {"crop": crop}, "reward 'ocr_match'")


def test_auto_selects_rapidocr_if_easyocr_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "easyocr", None)
    options = OcrMatchOptions()
    frozen = resolve_engine(options)
    assert frozen == OcrMatchOptions(engine="rapidocr")
    assert resolve_engine(frozen) is frozen
    reward = OcrMatch(options)
    assert reward.engine == "auto"
    reward.setup("cpu")
    assert reward.engine == "rapidocr"


@pytest.mark.parametrize("engine", ["easyocr", "rapidocr", "pytesseract"])
def test_the_error_of_a_missing_engine_names_the_package_to_install(monkeypatch, engine):
    monkeypatch.setitem(sys.modules, engine, None)
    with raises("dependency-missing", module=engine) as caught:
        open_engine(OcrMatchOptions(engine=engine.removeprefix("py")), "cpu")
    assert "pip install" in caught.value.hint


def test_rows_of_tesseract_without_a_word_and_guesses_on_noise_are_ignored(monkeypatch):
    """A fake module returns rows in the format of image_to_data.

    Rows of pages and lines have no text and confidence -1, guesses on noise confidence 0.
    """
    rows = {"text": ["", "", "Open", " ", "24", "~|", ";"], "conf": ["-1", -1, 91.5, 95, "40", 0, "0.0"]}
    passed = {}

    def image_to_data(image, **arguments):
        passed.update(arguments)
        return rows

    module = SimpleNamespace(
        get_tesseract_version=lambda: "5.3", Output=SimpleNamespace(DICT="dict"), image_to_data=image_to_data
    )
    monkeypatch.setitem(sys.modules, "pytesseract", module)
    assert score('"Open 24"', engine="tesseract", tesseract_language="deu").details[0]["read"] == "open24"
    assert passed == {"lang": "deu", "config": "--psm 11", "output_type": "dict"}
    assert score('"Open 24"', engine="tesseract", min_confidence=0).details[0]["read"] == "open24"
    assert score('"Open 24"', engine="tesseract", min_confidence=0.5).details[0]["read"] == "open"
    score('"Open 24"', engine="tesseract", detect=False)
    assert passed["config"] == "--psm 7"


def test_lines_with_confidence_0_are_no_lines():
    found = recognized([("Open", 0.9), ("~", 0.0), ("|", -1.0), (" ", 0.9), ("", 0.5), ("a", 1e-6)])
    assert found == [Line("Open", 0.9), Line("a", 1e-6)]


def test_lines_of_rapidocr_with_confidence_0_are_ignored(monkeypatch):
    answer = SimpleNamespace(txts=("Open", "~"), scores=(0.9, 0.0))
    monkeypatch.setattr("rapidocr.RapidOCR", lambda params: lambda image, **options: answer)
    for detect in (True, False):
        assert score('"Open"', engine="rapidocr", detect=detect, min_confidence=0).details[0]["read"] == "open"


def test_a_missing_tesseract_program_is_an_error(monkeypatch):
    def missing():
        raise OSError("tesseract is not in your PATH")

    monkeypatch.setitem(sys.modules, "pytesseract", SimpleNamespace(get_tesseract_version=missing))
    with raises("dependency-missing", program="tesseract"):
        open_engine(OcrMatchOptions(engine="tesseract"), "cpu")


def test_a_module_that_cannot_be_imported_has_another_code_than_a_missing_one(monkeypatch, tmp_path):
    (tmp_path / "easyocr.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "easyocr", raising=False)
    problem = "operator torchvision::nms does not exist"
    with raises("reward-environment", module="easyocr", error=problem) as caught:
        open_engine(OcrMatchOptions(engine="easyocr"), "cpu")
    assert "`python:`" in caught.value.hint
    assert open_engine(OcrMatchOptions(), "cpu").name == "rapidocr"


def test_the_error_of_auto_without_any_engine_holds_both_errors(monkeypatch):
    monkeypatch.setitem(sys.modules, "easyocr", None)
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with raises("dependency-missing") as caught:
        open_engine(OcrMatchOptions(), "cpu")
    for engine in ("easyocr", "rapidocr"):
        assert caught.value.values[engine]["code"] == "dependency-missing"
        assert caught.value.values[engine]["values"]["module"] == engine


def test_prompts_are_checked_before_a_run():
    prompts, metadata = ['a sign "A"', "a sign", "a sign"], [{}, {}, {"text": "B"}]
    preview = RunPreview(prompts=prompts, metadata=metadata, options=OcrMatchOptions())
    assert check_prompts(preview) == [None, "the prompt has no text between quotation marks", None]
    invisible = RunPreview(prompts=['"\u200d"', "a"], metadata=[{}, {"text": "\ufe0f"}], options=OcrMatchOptions())
    assert check_prompts(invisible) == ["the quoted text is empty", "the metadata's `text` is empty"]
    with raises("reward-metadata", key="text", found=5):
        check_prompts(RunPreview(prompts=["a"], metadata=[{"text": 5}], options=OcrMatchOptions()))
