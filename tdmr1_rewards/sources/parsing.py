"""Parses the source of a reward, a text in one of these forms.

object_count                            a reward that a plugin registered (`tdmr1 rewards list`)
path/to/file.py:fn                      an object in a Python file
package.module:fn                       an object in a module that `python -m` would find
remote:http://host:port/object_count    a reward of `tdmr1 rewards serve`; several servers: URL,URL
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tdmr1_rewards.calling.import_file import load_from_file, load_from_module
from tdmr1_rewards.errors import Tdmr1Error

ATTRIBUTE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
URL = r"https?://[^/,\s]+/[^:,\s]+"
REMOTE = f"remote:{URL}(?:,{URL})*"
FILE = rf".+\.py:{ATTRIBUTE}"
MODULE = rf"[A-Za-z_][\w.]*:{ATTRIBUTE}"
REGISTERED = r"[^:]+"
PATTERN = f"(?:{REMOTE}|{FILE}|{MODULE}|{REGISTERED})"
"""A regular expression for a source. It does not match a weight (`:0.5`) after the source."""

FORMS = (
    "a source is a name of `tdmr1 rewards list`, path/to/file.py:fn, package.module:fn or remote:http://host:port/NAME"
)

Kind = Literal["registered", "file", "module", "remote"]


@dataclass(frozen=True)
class Source:
    """A parsed source. `place` is a registered name, a file, a module or an address.

    `attribute` is the object in the file or module; it is empty for the other kinds.
    """

    kind: Kind
    place: str
    attribute: str = ""

    def __str__(self) -> str:
        if self.kind == "remote":
            return f"remote:{self.place}"
        return f"{self.place}:{self.attribute}" if self.attribute else self.place

    @property
    def name(self) -> str:
        """The default name of the reward, in snake case: that of the function, or the last part of the address."""
        if self.kind == "registered":
            return self.place
        return snake_case((self.attribute or self.place).rpartition("/")[2].rpartition(".")[2])

    @property
    def path(self) -> Path:
        """The path of a source of kind "file"."""
        return Path(self.place).expanduser()

    def absolute(self) -> Source:
        """The same source; the path of a file is made absolute."""
        return replace(self, place=str(self.path.absolute())) if self.kind == "file" else self

    def load(self) -> Any:
        """Import the object of a file or module. Raises Tdmr1Error if it cannot be imported."""
        if self.kind == "file":
            return load_from_file(self.path, self.attribute)
        return load_from_module(self.place, self.attribute)


def parse_source(text: str) -> Source:
    """Parse the text of a source. Raises Tdmr1Error if it has none of the known forms."""
    if re.fullmatch(REMOTE, text):
        return Source("remote", text.removeprefix("remote:"))
    if text.startswith("remote:"):
        raise Tdmr1Error(
            f"{text!r} is not the address of a reward",
            "write it like remote:http://127.0.0.1:8000/object_count",
            code="reward-source",
            values={"source": text},
        )
    if re.fullmatch(f"{FILE}|{MODULE}", text):
        place, _, attribute = text.rpartition(":")
        return Source("file" if place.endswith(".py") else "module", place, attribute)
    if text.partition(":")[0].endswith(".py"):
        raise Tdmr1Error(
            f"{text!r} does not name a function in the file",
            "write it like path/to/file.py:my_reward",
            code="reward-source",
            values={"source": text},
        )
    if re.fullmatch(REGISTERED, text):
        return Source("registered", text)
    raise Tdmr1Error(f"{text!r} is not the source of a reward", FORMS, code="reward-source", values={"source": text})


def snake_case(name: str) -> str:
    """A valid reward name: "MyReward" becomes my_reward, "ocr-match" becomes ocr_match."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})", "_", name)
    plain = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"reward_{plain}".rstrip("_")
