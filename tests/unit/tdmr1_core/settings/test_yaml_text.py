"""YAML of settings: numbers that cannot be misread, the round trip of `yaml.safe_dump`, and mistakes in plain words."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.errors import raises

from tdmr1_core.config_loading import read_file
from tdmr1_core.settings.yaml_text import explain, load_yaml

pytestmark = pytest.mark.unit

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.from_regex(r"[-+]?[0-9._:]{1,6}([eE][-+]?[0-9]{1,3})?", fullmatch=True),
    st.sampled_from(["010", "1:30", "1_000", "0b1", "0o7", "0x1F", "1e4", "1.5e3", "-.5", "+.5", "yes", "off", "~"]),
)


@pytest.mark.parametrize("text", ["010", "-010", "00", "1:30", "1:30.5", "1_000", "1_0.5", "0b11", "0o10", "0x"])
def test_what_yaml_1_1_reads_as_another_number_is_text(text):
    assert load_yaml(text) == text
    assert load_yaml(f"a: [{text}]") == {"a": [text]}


@pytest.mark.parametrize(
    ("text", "value"), [("10", 10), ("-3", -3), ("+3", 3), ("0", 0), ("0x1F", 31), ("1.5", 1.5), ("1.0e-4", 1e-4)]
)
def test_decimal_and_hexadecimal_numbers(text, value):
    found = load_yaml(text)
    assert (type(found), found) == (type(value), value)


@given(SCALARS | st.dictionaries(st.text(min_size=1), SCALARS, max_size=3))
def test_what_safe_dump_writes_is_read_as_the_same_value(value):
    found = load_yaml(yaml.safe_dump(value, sort_keys=False))
    assert repr(found) == repr(value)


@pytest.mark.parametrize("text", ["!!int 010", "!!int '1:30'", "!!float 1:30.5", "!!int x", "!!int 1.5"])
def test_an_explicit_tag_does_not_make_another_number(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


@pytest.mark.parametrize(
    ("text", "line", "character"),
    [("seed: 1\x07", 1, "U+0007"), ("a: 1\nb: \x00", 2, "U+0000"), ("\x1b", 1, "U+001B"), ("a: \x7f", 1, "U+007F")],
)
def test_a_control_character_is_refused_with_its_place(tmp_path, text, line, character):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with raises("config-unreadable", file=str(path), line=line) as caught:
        read_file(path)
    assert character in caught.value.message


BOMB = "a: &a0 [x, x]\n" + "".join(f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 8))
"""Lists of aliases of lists: 20 million values in eight lines."""
MERGED = "a: &a0 {k: 1}\n" + "".join(f"b{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 8))
BROKEN = {
    "a: 1\n---\nb: 2\n": (2, "second document"),
    "a: 1\n...\nb: 2\n": (3, "ends the document"),
    "a: &x 1\nb: &x 2\n": (2, "defined before"),
    "a: *x\n": (1, "no anchor &x"),
    "a: b: c\n": (1, "colon"),
    "a:\n   b: 1\n  c: 2\n": (3, "indentation"),
    "a: [1\nb: 2\n": (2, "[ from line 1"),
    "a: {b: 1\nc: 2\n": (2, "{ from line 1"),
    'a: "x\nb: 1\n': (3, "text from line 1"),
    "a:\n\tb: 1\n": (2, "tab"),
    "a: @x\n": (1, "begin with @"),
    "a: !foo 1\n": (1, "tag !foo"),
    "a: 1\nb\nc: 2\n": (3, "no colon"),
    'a: "\\q"\n': (1, "\\q means nothing"),
    "a: 1\n- b\n": (2, "list item"),
    "- a\nb: 1\n": (2, "key stands"),
    'a: "x" y\n': (1, "already complete"),
    "a: ]\n": (1, "in place of ]"),
    "a: * x\n": (1, "after & or *"),
    "a: |x\n  b\n": (1, "next line"),
    "{[1]: 2}\n": (1, "cannot be a key"),
    "<<: 1\n": (1, "insert a table"),
    "%YAML 3.0\n---\na: 1\n": (1, "version"),
    "a: 2026-13-45\n": (None, "does not exist"),
    f"a: {'9' * 5000}\n": (None, "too many digits"),
    f"a: {'[' * 2000}{']' * 2000}\n": (None, "levels deep"),
    f"a: {'[' * 200}{']' * 200}\n": (1, "levels deep"),
    "a: " + "x" * 2**18 + "\n": (None, "characters"),
    "a: &a [*a]\n": (1, "inside the value"),
    BOMB: (5, "more than 100000 values"),
    MERGED: (5, "more than 100000 values"),
    BOMB + "? *a3\n: 1\n": (4, "cannot be a key"),
    "a: &a [[1]]\n? *a\n: 1\n": (1, "cannot be a key"),
}
"""Texts that are not YAML, with the line of the mistake and words of its explanation."""
JARGON = ("expected <", "token", "node", "mapping", "scalar", "sequence", "stream", "parsing", "constructor")


@pytest.mark.parametrize("text", BROKEN)
def test_a_mistake_is_explained_in_plain_words(text):
    with pytest.raises(yaml.YAMLError) as caught:
        load_yaml(text)
    problem, line = explain(caught.value)
    expected_line, words = BROKEN[text]
    assert line == expected_line
    assert words in problem
    assert [word for word in JARGON if word in problem] == []
