"""Every `tdmr1` command in the docs is in a list of tests/support/doc_commands.py, and its arguments are valid."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from builder.commands_page import commands
from support.doc_commands import (
    DRY_RUN,
    DRY_RUN_LONG,
    ELSEWHERE,
    PAGES,
    PARSED,
    RUN,
    RUN_LONG,
    DocCommand,
    doc_commands,
)
from support.paths import TESTS

pytestmark = pytest.mark.unit

LISTS = (RUN, RUN_LONG, DRY_RUN, DRY_RUN_LONG, PARSED)
FOUND = doc_commands()


def test_every_command_of_the_docs_is_in_one_list():
    listed = Counter(DocCommand(page, line) for commands in LISTS for page, lines in commands.items() for line in lines)
    assert [each for each, count in listed.items() if count > 1] == []
    missing = [each for each in FOUND if each not in listed and each.page not in ELSEWHERE]
    assert missing == [], "add these commands to a list of tests/support/doc_commands.py"
    assert [each for each in listed if each not in FOUND] == [], "these commands are in no page"
    assert len(FOUND) >= 80


def test_the_tests_of_other_pages_exist_and_read_their_page():
    for page, test in ELSEWHERE.items():
        assert any(each.page == page for each in FOUND), page
        text = (TESTS / test).read_text()
        assert page in text or "protocol_page" in text, (page, test)


@pytest.mark.parametrize("command", FOUND, ids=lambda command: f"{command.page}: {command.line}")
def test_the_arguments_of_a_command_are_valid(command):
    words, verb, arguments = _split(command.arguments)
    verb.make_context(words, arguments, resilient_parsing="--help" in arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_sentences_exist(page):
    known = commands()
    groups = {words.split()[0] for words in known if " " in words}
    for inline in re.findall(r"(?<!`)`tdmr1 ([a-z][^`]*)`(?!`)", page.read_text(encoding="utf-8")):
        words = inline.split()
        name = " ".join(words[: 2 if words[0] in groups else 1])
        if name in groups:  # the group alone
            continue
        assert name in known, inline
        options = {option for each in known[name].params for option in (*each.opts, *each.secondary_opts)}
        options |= {"--help", "--json"} if name != "train" else {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, inline


def _split(arguments: list[str]) -> tuple[str, object, list[str]]:
    """The words of a command, the command, and its arguments."""
    known = commands()
    length = 2 if " ".join(arguments[:2]) in known else 1
    words = " ".join(arguments[:length])
    return words, known[words], arguments[length:]
