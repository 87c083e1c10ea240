import pytest
from support.errors import raises

from tdmr1_rewards.sources.parsing import FORMS, parse_source, snake_case

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "kind", "place", "attribute", "name"),
    [
        ("object_count", "registered", "object_count", "", "object_count"),
        ("file.py:fn", "file", "file.py", "fn", "fn"),
        ("a/b c/file-2.py:MyReward", "file", "a/b c/file-2.py", "MyReward", "my_reward"),
        ("/a=b/file.py:fn", "file", "/a=b/file.py", "fn", "fn"),
        ("a:b/file.py:fn", "file", "a:b/file.py", "fn", "fn"),
        ("file.py:Holder.fn", "file", "file.py", "Holder.fn", "fn"),
        ("module:fn", "module", "module", "fn", "fn"),
        ("package.sub.module:HPSv2", "module", "package.sub.module", "HPSv2", "hpsv2"),
        ("remote:http://127.0.0.1:8000/ocr", "remote", "http://127.0.0.1:8000/ocr", "", "ocr"),
        ("remote:https://host/a/my-ocr", "remote", "https://host/a/my-ocr", "", "my_ocr"),
        ("remote:http://[::1]:8000/ocr", "remote", "http://[::1]:8000/ocr", "", "ocr"),
        ("remote:http://a:1/ocr,http://b:2/ocr", "remote", "http://a:1/ocr,http://b:2/ocr", "", "ocr"),
    ],
)
def test_a_source_is_parsed_and_formatted(text, kind, place, attribute, name):
    source = parse_source(text)
    assert (source.kind, source.place, source.attribute, source.name) == (kind, place, attribute, name)
    assert str(source) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("remote:http://127.0.0.1:8000", "remote:http://127.0.0.1:8000/object_count"),
        ("remote:ftp://host/x", "remote:http://127.0.0.1:8000/object_count"),
        ("remote:host:8000/x", "remote:http://127.0.0.1:8000/object_count"),
        ("file.py:", "path/to/file.py:my_reward"),
        ("file.py:0.5", "path/to/file.py:my_reward"),
        ("a:b:c", FORMS),
        ("", FORMS),
    ],
)
def test_a_text_that_is_not_a_source_is_rejected(text, hint):
    with raises("reward-source", source=text) as caught:
        parse_source(text)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MyReward", "my_reward"),
        ("ocr-match", "ocr_match"),
        ("HPSReward", "hps_reward"),
        ("_x", "x"),
        ("2d", "reward_2d"),
    ],
)
def test_names_become_snake_case(name, expected):
    assert snake_case(name) == expected


def test_absolute_changes_only_the_path_of_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(parse_source("r/mine.py:fn").absolute()) == f"{tmp_path}/r/mine.py:fn"
    assert str(parse_source("some.module:fn").absolute()) == "some.module:fn"
