"""Damaged run folders: one file of a run is changed, and then the run is reported, resumed, exported or sampled."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from stress import base_run
from stress.case import Case, Done, rows_of, steps_of
from stress.scheduler import Part

BIG = 1 << 20
"""Files of at least this many bytes are linked, not copied: no command changes a checkpoint that exists."""
OUTPUTS = ("report.html", "export", "tensorboard", "output_lost.txt", ".lock")
"""Files and folders that a command may write again."""


def run(case: Case) -> None:
    """Change one file, and run a report and one other command."""
    base, folder = case.shared / "run", case.folder / "run"
    files = sorted(path.relative_to(base) for path in base.rglob("*") if path.is_file())
    damaged = files[case.number % len(files)]
    shutil.copytree(base, folder, copy_function=lambda source, target: _copy(source, target, base / damaged))
    before = {path: _signature(base / path) for path in files}
    name = case.rng.choice(sorted(DAMAGES))
    DAMAGES[name](folder / damaged, case.rng)
    action = case.rng.choice([resume, resume, export, sample, evaluate, label])
    context = f"{name} {damaged}, {action.__name__}"
    case.tdmr1("report", folder)
    _check_kept(case, folder, damaged, before)
    done = action(case, folder)
    if action is resume:
        _check_resumed(case, folder, base, damaged, done)
    else:
        _check_kept(case, folder, damaged, before)
    case.check(all(_signature(base / path) == found for path, found in before.items()), "the base run has changed")
    case.faults = [f"{context}: {fault}" for fault in case.faults]


def resume(case: Case, folder: Path) -> Done:
    """Resume the run for a third iteration."""
    return case.tdmr1("train", "--resume", folder, "--iterations", 3)


def export(case: Case, folder: Path) -> Done:
    """Export its LoRA."""
    return case.tdmr1("export", folder, "--output", case.folder / "exported")


def sample(case: Case, folder: Path) -> Done:
    """Sample an image."""
    return case.tdmr1("sample", folder, "--prompt", "two", "--images", 1, "--output", case.folder / "sampled")


def evaluate(case: Case, folder: Path) -> Done:
    """Evaluate it with few steps of the teacher."""
    return case.tdmr1("evaluate", folder, "--images", 2, "--teacher-steps", 1, "--json")


def label(case: Case, folder: Path) -> Done:
    """Export answers, of which the run has none."""
    return case.tdmr1("label", folder, "--export", case.folder / "answers.jsonl")


def _check_kept(case: Case, folder: Path, damaged: Path, before: dict[Path, tuple[int, bytes]]) -> None:
    """A fault unless the command has left all other files as they were."""
    for path, found in before.items():
        if path == damaged or path.parts[0] in OUTPUTS:
            continue
        if not (folder / path).is_file():
            case.fault(f"{path} was deleted")
        elif _signature(folder / path) != found:
            case.fault(f"{path} was changed")


def _check_resumed(case: Case, folder: Path, base: Path, damaged: Path, done: Done) -> None:
    """A fault unless a resume has kept the metrics and checkpoints of completed iterations."""
    if damaged.name != "metrics.jsonl":
        expected = [1, 2, 3] if done.code == 0 else [1, 2]
        steps = steps_of(folder)
        case.check(steps[:2] == [1, 2] and (done.code or steps == expected), f"metrics of iterations: {steps}")
        if not damaged.name.startswith("config.yaml"):
            same = rows_of(folder / "metrics.jsonl")[:2] == rows_of(base / "metrics.jsonl")
            case.check(same, "the metrics of the first iterations have changed")
    for step in ("step-000001", "step-000002"):
        case.check((folder / "checkpoints" / step).exists(), f"checkpoint {step} was deleted")


def _copy(source: str, target: str, damaged: Path) -> None:
    """Link a big file that no one changes, copy any other."""
    if Path(source) != damaged and os.path.getsize(source) >= BIG:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _signature(path: Path) -> tuple[int, bytes]:
    """The size and the content of a file; of a big file, its time of change."""
    status = path.stat()
    return status.st_size, path.read_bytes() if status.st_size < BIG else str(status.st_mtime_ns).encode()


def _edit(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Callable[[Path, random.Random], None]:
    def damage(path: Path, rng: random.Random) -> None:
        path.write_bytes(change(bytearray(path.read_bytes()), rng))

    return damage


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    for _ in range(min(rng.choice([1, 1, 3, 20]), len(content))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _zero(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content) + 1)
    length = min(len(content) - start, rng.choice([1, 64, 4096]))
    content[start : start + length] = bytes(length)
    return content


def _shuffled_lines(content: bytearray, rng: random.Random) -> bytes:
    lines = bytes(content).splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join([*lines, *lines[:1]])


def _replace(make: Callable[[Path], object]) -> Callable[[Path, random.Random], None]:
    def damage(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "bits of": _edit(_flip),
    "more bits of": _edit(_flip),
    "zeros in": _edit(_zero),
    "truncated": _edit(lambda content, rng: content[: rng.randrange(len(content) + 1)]),
    "empty": _edit(lambda content, rng: b""),
    "garbage after": _edit(lambda content, rng: content + rng.randbytes(rng.choice([1, 100, 5000]))),
    "shuffled lines of": _edit(_shuffled_lines),
    "deeply nested": _edit(lambda content, rng: b"[" * 100_000),
    "deleted": lambda path, rng: path.unlink(),
    "a folder for": _replace(lambda path: path.mkdir()),
    "a pipe for": _replace(os.mkfifo),
    "a link to itself for": _replace(lambda path: path.symlink_to(path.name)),
    "a link to /dev/zero for": _replace(lambda path: path.symlink_to("/dev/zero")),
    "a dangling link for": _replace(lambda path: path.symlink_to("nowhere")),
}

PART = Part("folders", run, seconds=3.5, prepare=base_run.prepare, shared=base_run.NAME)
