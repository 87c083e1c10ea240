"""Which parts of texts and settings are secrets."""

from __future__ import annotations

import pytest
from support.errors import raises

from tdmr1_rewards.errors import Tdmr1Error, shorten
from tdmr1_rewards.texts.redaction import complete, is_secret_name, redact, redact_tree, remember, remember_arguments
from tdmr1_rewards.texts.variables import expand

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("name", ["token", "API_KEY", "accessToken", "x-api-key", "db.password", "Authorization"])
def test_names_of_secrets(name):
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["max_tokens", "token_variable", "api_key_env", "keyword", "monkey", "metadata_key", "eos_token", ""]
)
def test_names_of_other_options(name):
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see https://me:pw@host/x?page=2 and more", "see https://me:***@host/x?page=2 and more"),
        ("'https://abc123@host/x'", "'https://***@host/x'"),
        ("remote:http://u:p@ss@h:80/n", "remote:http://u:***@h:80/n"),
        ("with url: /v1?a=1&TOKEN=x%20y (Caused", "with url: /v1?a=1&TOKEN=*** (Caused"),
        ("https://h/?X-Amz-Signature=ab#access_token=cd", "https://h/?X-Amz-Signature=***#access_token=***"),
        ("/x?api%5Fkey=abc", "/x?api%5Fkey=***"),
        ("Authorization: Bearer ab.cd-12345", "Authorization: Bearer ***"),
        ("http://u:${PASSWORD}@h/n", "http://u:${PASSWORD}@h/n"),
        ("https://host/x?page=2, me@host, a=b", "https://host/x?page=2, me@host, a=b"),
    ],
)
def test_secrets_in_urls(text, shown):
    assert redact(text) == shown


def test_a_secret_is_redacted_in_every_form_and_before_a_text_is_cut():
    remember('se"cret/1')
    assert redact(r"""se"cret/1 se\"cret/1 se%22cret%2F1 se%22cret/1""") == "*** *** *** ***"
    error = Tdmr1Error('se"cret/1', 'se"cret/1', values={"found": ['se"cret/1', 3]})
    assert error.document() == {"code": "unspecified", "message": "***", "hint": "***", "values": {"found": ["***", 3]}}
    assert shorten('x se"cret/1', 6) == "x ***"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "rewards.0.options.token=swordfish"],
        ["--set=rewards.0.options.token=swordfish"],
        ["--option", "api_key='swordfish'"],
        ["--set", "rewards.0.options={a: 1, password: swordfish"],
        ["https://me:swordfish@host"],
    ],
)
def test_secrets_of_a_command_line(arguments):
    remember_arguments(arguments)
    assert redact("a swordfish") == "a ***"


def test_settings_keep_the_names_of_variables_unless_they_are_compared():
    settings = {"token": "env:T", "secret": "abc", "key": 3, "api_key": 12, "urls": ["http://u:${P}@h", "http://u:x@h"]}
    shown = {
        "token": "env:T",
        "secret": "***",
        "key": 3,
        "api_key": "***",
        "urls": ["http://u:${P}@h", "http://u:***@h"],
    }
    assert redact_tree(settings) == shown
    assert redact_tree(settings, compared=True) == {**shown, "token": "***", "urls": ["http://u:***@h"] * 2}


def test_variables_are_replaced_and_then_redacted(monkeypatch):
    monkeypatch.setenv("MINE", "swordfish")
    options = {"a": "env:MINE", "b": ["$MINE", "${MINE}"], "c": "http://u:${MINE}@h", "d": "costs $MINE", "e": 1}
    expected = {"a": "swordfish", "b": ["swordfish"] * 2, "c": "http://u:swordfish@h", "d": "costs $MINE", "e": 1}
    assert expand(options, "me") == expected
    assert redact("swordfish") == "***"
    with raises("token-invalid", variable="OTHER"):
        expand({"a": "env:OTHER"}, "me")
    with raises("token-invalid", option="options.a.0"):
        expand({"a": ["http://u:***@h"]}, "me")


def test_a_typed_secret_completes_a_text():
    assert complete("***", "p@ss") == "p@ss"
    assert complete("http://u:***@h", "p@ss") == "http://u:p%40ss@h"
