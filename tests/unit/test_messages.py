"""Compares one example message per error code with a text file. `python tests/unit/test_messages.py` rewrites it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tdmr1_rewards.errors import CODES, Tdmr1Error

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).parents[1] / "golden" / "messages.txt"
EXAMPLES_FOLDER = Path(__file__).parent / "messages"
Example = Callable[[Path], None]


def all_examples() -> Iterator[tuple[str, Example]]:
    """The examples of all files in tests/unit/messages. Each provokes the error or warning of its code."""
    for path in sorted(EXAMPLES_FOLDER.glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"messages_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield from module.EXAMPLES.items()


EXAMPLES = dict(all_examples())


def describe(kind: str, error: Tdmr1Error | Warning, folder: Path) -> str:
    """An error or a warning as text: its code, its message, and its hint if there is one."""
    hint = getattr(error, "hint", None)
    lines = [error.code, f"  {kind}: {error}" if kind else f"  {error}", *([f"  hint: {hint}"] if hint else [])]
    return stable("\n".join(lines) + "\n", folder)


def run_example(code: str, folder: Path) -> tuple[str, Tdmr1Error | Warning]:
    """The error or warning with this code that its example provokes, and its kind."""
    for kind, error in provoked(EXAMPLES[code], folder):
        if error.code == code:
            return kind, error
    raise AssertionError(f"the example raises no error and no warning with the code {code!r}")


def provoked(example: Example, folder: Path) -> list[tuple[str, Tdmr1Error | Warning]]:
    """The error that an example raises, if any, and the warnings with a code."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("always")
        found: list[tuple[str, Tdmr1Error | Warning]] = []
        try:
            example(folder)
        except Tdmr1Error as error:
            found.append((getattr(error, "kind", "error"), error))
    return found + [("warning", item.message) for item in recorded if hasattr(item.message, "code")]


def stable(text: str, folder: Path) -> str:
    """The text without the paths of this machine and without process numbers."""
    text = text.replace(str(folder), "<tmp>").replace(sys.executable, "<python>")
    return re.sub(r"\bpid \d+", "pid <pid>", text)


def golden_blocks() -> dict[str, str]:
    """The text of each code in the file."""
    blocks = GOLDEN.read_text(encoding="utf-8").split("\n\n")
    return {block.split("\n", 1)[0]: block.rstrip("\n") + "\n" for block in blocks}


@pytest.mark.parametrize("code", sorted(EXAMPLES))
def test_the_message_is_the_one_in_the_file(tmp_path, code):
    kind, error = run_example(code, tmp_path)
    expected = golden_blocks().get(code)
    assert describe(kind, error, tmp_path) == expected, "for an intended change: python tests/unit/test_messages.py"
    assert json.loads(json.dumps(error.values, allow_nan=False)) == error.values


def test_each_code_has_one_example():
    assert Counter(code for code, _ in all_examples()) == dict.fromkeys(CODES, 1)


def test_the_file_has_each_code_once():
    assert list(golden_blocks()) == sorted(CODES)


def main() -> None:
    """Rewrite the file."""
    blocks = []
    for code in sorted(EXAMPLES):
        with tempfile.TemporaryDirectory() as folder:
            blocks.append(describe(*run_example(code, Path(folder)), Path(folder)))
    GOLDEN.write_text("\n".join(blocks), encoding="utf-8")


if __name__ == "__main__":
    main()
