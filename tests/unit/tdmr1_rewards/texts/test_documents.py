"""The one reader of files and JSON from outside, and that every reader uses it."""

import os
import re

import pytest
from support.paths import ROOT

from tdmr1_rewards.texts.documents import (
    MOST_DEPTH,
    TooDeepError,
    UnreadableDocument,
    parse_json,
    read_file,
    read_json,
)

pytestmark = pytest.mark.unit


def nested(depth):
    return "[" * depth + "]" * depth


def test_json_up_to_the_depth_limit_is_read():
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_json(nested(MOST_DEPTH)) is not None
    assert parse_json(nested(MOST_DEPTH + 1), None) is not None


@pytest.mark.parametrize("text", [nested(MOST_DEPTH + 1), nested(100_000), '{"a":' * 100_000, b"[" * 100_000])
def test_deeper_json_is_refused(text):
    with pytest.raises(TooDeepError):
        parse_json(text)


@pytest.mark.parametrize("text", ["", "[", "9" * 5000, b"\xff", b'"\xed\xa0\x80"'])
def test_other_content_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_a_pipe_and_a_device_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UnreadableDocument, match="a pipe or device"):
            read_file(path)


def test_a_file_above_the_limit_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(tmp_path / "a.json", 3) == [1]
    with pytest.raises(UnreadableDocument, match="larger than 2 bytes"):
        read_json(tmp_path / "a.json", 2)


def test_no_other_file_parses_json():
    own = {"tdmr1_rewards/texts/documents.py", "tdmr1_rewards/worker.py"}  # a worker starts without the package
    sources = [path for name in ("tdmr1_core", "tdmr1_rewards", "tdmr1_cli") for path in (ROOT / name).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in sources if re.search(r"\bjson\.loads?\(", path.read_text())}
    assert found == own
