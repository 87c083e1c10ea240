"""Compares docs/errors.md with the table of error codes. `python tests/unit/docs/test_errors.py` rewrites it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tdmr1_rewards import errors

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "errors.md"
MESSAGES = ROOT / "tests" / "golden" / "messages.txt"
HEAD = """# Error codes

Every error and warning has a code. The code is stable, so scripts may depend on it; the wording may change. On the
command line the code is at the end of the message:

```
$ tdmr1 rewards info object_cuont
error: there is no reward 'object_cuont' [reward-unknown]

hint: did you mean 'object_count'?
```

With `--json`, the error is also printed on stdout as one document. `values` has the names and numbers of the message:

```json
{"error": {"code": "reward-unknown", "message": "there is no reward 'object_cuont'",
           "hint": "did you mean 'object_count'?", "values": {"reward": "object_cuont"}}}
```

`config validate --json` prints its own document instead: a list with the keys `file`, `valid`, `error`, `hint`, `code`
and `values` for each file.

In Python, `Tdmr1Error` has the attributes `code`, `message`, `hint` and `values`; `RunWarning` and `RewardWarning` have
`code` and `values`. A plugin may use codes of its own. An error without a code has the code `unspecified`.

| exit code | meaning |
|---|---|
| 0 | success |
| 1 | a check failed, the device is out of memory, or an internal error |
| 2 | an error that the user can correct |
| 3 | another process of the same run failed and reports the reason |
| 130 | stopped by the user |

`<tmp>` stands for a folder in the examples below.
"""


def errors_page() -> str:
    """The text of docs/errors.md: each code with its meaning and an example, in the order and groups of `CODES`."""
    examples = dict(
        re.findall(r"^(\S+)\n  (?:error: |warning: )?(.*)$", MESSAGES.read_text(encoding="utf-8"), re.MULTILINE)
    )
    parts = [HEAD]
    for heading, codes in groups().items():
        rows = [f"| `{code}` | {errors.CODES[code]} | {_cell(examples[code])} |" for code in codes]
        parts.append("\n".join([f"## {heading}\n", "| code | meaning | example |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def groups() -> dict[str, list[str]]:
    """The codes below each comment of `CODES`."""
    source = Path(errors.__file__).read_text(encoding="utf-8")
    table = source[source.index("CODES = {") : source.index("\n}\n")]
    found: dict[str, list[str]] = {}
    for heading, code in re.findall(r'^    (?:# (.+)|"([a-z-]+)":)', table, re.MULTILINE):
        if heading:
            found[heading] = []
        else:
            found[list(found)[-1]].append(code)
    return found


def _cell(text: str) -> str:
    """A message as code in a table."""
    quotes, space = ("``", " ") if "`" in text else ("`", "")
    return f"{quotes}{space}{text}{space}{quotes}".replace("|", "\\|")


def test_the_page_is_generated():
    assert PAGE.read_text(encoding="utf-8") == errors_page(), "run: python tests/unit/docs/test_errors.py"


def test_every_code_is_on_the_page_once():
    assert [code for codes in groups().values() for code in codes] == list(errors.CODES)


if __name__ == "__main__":
    PAGE.write_text(errors_page(), encoding="utf-8")
