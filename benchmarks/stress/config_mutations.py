"""Damaged config files: each is validated, and trained if it is still valid and small."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stress.case import Case, small
from stress.scheduler import Part

NUMBER = "another number"
"""The most frequent mutation, because it often leaves a valid file."""
MOST = 16
"""Largest number of images, steps and iterations of a damaged config that is trained."""
HOSTILE = ("null", "true", "-1", "0", "1e400", ".nan", ".inf", "''", "'\\ud800'", "[]", "{}", "[[[]]]", "9" * 40, "é")
HOSTILE += ("1_000", "0x10", "0o7", "1:30", "2026-01-01", "!!python/object:os.system x", "*a", "&a 1", "yes", "~", "@x")
HOSTILE += ("/dev/null", "../../etc/passwd", "1.5", "'1'", "! x", "!!binary aGk=", "|", ">", "<<: 1", "{a: 1}", "\t")


def prepare(case: Case) -> None:
    """A small config file with every setting."""
    path = case.folder / "config.yaml"
    path.write_text(case.tdmr1("train", *small("iterations=1"), "--dry-run", allowed=[0]).out)
    case.tdmr1("config", "validate", path, allowed=[0])


def run(case: Case) -> None:
    """Damage the config file, validate it, and train with it."""
    content = (case.shared / "config.yaml").read_bytes()
    names = [case.rng.choice([*sorted(MUTATIONS), *[NUMBER] * 8]) for _ in range(case.rng.choice([1, 1, 2]))]
    for name in names:
        content = MUTATIONS[name](content, case.rng)
    path = case.folder / "config.yaml"
    path.write_bytes(content)
    validated = case.tdmr1("config", "validate", path)
    if validated.code == 0 and _is_small(path):
        run_folder = case.folder / "run"
        trained = case.tdmr1("train", path, "--output", run_folder)
        if trained.code in (0, 1):
            case.check_saved(run_folder, 1)
        elif trained.code == 2:
            case.notes.append("a valid config was refused by train")
    elif validated.code == 0:
        case.notes.append("valid, but too large to train")
    case.faults = [f"{' and '.join(names)}: {fault}" for fault in case.faults]


def _is_small(path: Path) -> bool:
    from tdmr1_core.errors import Tdmr1Error
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.layers import Flags, resolve_settings

    try:
        config: Any = resolve_settings(Flags(config=path), "train", discover()).config
    except Tdmr1Error:  # such as a config of a distillation
        return False
    sizes = [config.batch.groups * config.batch.group_size, config.evaluation.images, config.iterations]
    sizes += [config.rollout.steps or 4, config.fake.updates, config.surrogate.updates]
    sizes += [max(config.model.height or 0, config.model.width or 0) // 8]
    return max(sizes) <= MOST


def _on_lines(change: Callable[[list[bytes], int, random.Random], object]) -> Callable[[bytes, random.Random], bytes]:
    """A mutation of the lines at a random place."""

    def mutate(content: bytes, rng: random.Random) -> bytes:
        lines = content.split(b"\n")
        change(lines, rng.randrange(len(lines)), rng)
        return b"\n".join(lines)

    return mutate


def _set_value(lines: list[bytes], place: int, rng: random.Random) -> None:
    lines[place] = lines[place].partition(b":")[0] + b": " + rng.choice(HOSTILE).encode()


def _set_number(lines: list[bytes], place: int, rng: random.Random) -> None:
    """Another number where there is one, so that most of these files stay valid."""
    numbers = [index for index, line in enumerate(lines) if line.rpartition(b": ")[2].replace(b".", b"").isdigit()]
    place = rng.choice(numbers or [place])
    value = rng.choice([b"1", b"2", b"3", b"0.5", b"0", b"1e-3", b"4"])
    lines[place] = lines[place].partition(b":")[0] + b": " + value


def _misspell(lines: list[bytes], place: int, rng: random.Random) -> None:
    key, colon, rest = lines[place].partition(b":")
    at = rng.randrange(len(key) + 1)
    lines[place] = key[:at] + rng.choice([b"", b"x", b"_", b" ", b"\xff", b"."]) + key[at + 1 :] + colon + rest


def _move(lines: list[bytes], place: int, rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), lines.pop(place))


def _indent(lines: list[bytes], place: int, rng: random.Random) -> None:
    lines[place] = rng.choice([b" ", b"  ", b"\t", b"- ", b"? ", b"# "]) + lines[place]


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 5])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


MUTATIONS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bits": lambda content, rng: _flip(content, rng) if content else content,
    "a hostile value": _on_lines(_set_value),
    "another hostile value": _on_lines(_set_value),
    NUMBER: _on_lines(_set_number),
    "a misspelt key": _on_lines(_misspell),
    "a missing line": _on_lines(lambda lines, place, rng: lines.pop(place)),
    "a double line": _on_lines(lambda lines, place, rng: lines.insert(place, lines[place])),
    "a moved line": _on_lines(_move),
    "an indented line": _on_lines(_indent),
    "truncated": lambda content, rng: content[: rng.randrange(len(content) + 1)],
    "Windows line ends": lambda content, rng: content.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda content, rng: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content, rng: content.decode(errors="replace").encode("utf-16"),
    "a second document": lambda content, rng: content + b"\n---\n" + content[: rng.randrange(len(content) + 1)],
    "deep nesting": lambda content, rng: content + b"\nscoring: " + b"[" * 50_000,
    "a list of configs": lambda content, rng: b"- " + content.replace(b"\n", b"\n  "),
}

PART = Part("config-mutations", run, seconds=1.5, prepare=prepare)
