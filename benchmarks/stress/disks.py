"""Full and read-only disks: a run stops with an error, keeps what is saved, and continues when there is space."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import threading
import time
from pathlib import Path

from stress import base_run
from stress.base_run import ITERATIONS, SETTINGS
from stress.case import Case, Done, rows_of, steps_of
from stress.scheduler import Part

CLONE_NEWNS = 0x20000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x4000, 0x40000
LARGE = "size=400m"
COMMANDS = ("report", "export", "sample", "evaluate", "config", "rewards")


def run(case: Case) -> None:
    """One kind of disk: full, read-only, with a limit on files, or full for another command."""
    disk = case.folder / "disk"
    disk.mkdir()
    has_mount = _mount_disk(disk)
    if not has_mount:
        case.notes.append("no tmpfs can be mounted here, so files have a size limit instead")
    kinds = (_full, _read_only, _full, _limited, _other_command)
    (kinds[case.number % len(kinds)] if has_mount else _limited)(case, disk)


def _full(case: Case, disk: Path) -> None:
    """A disk on which the run has space for nothing, some files, or one or two checkpoints."""
    size = case.rng.choice([4, 64, case.rng.randrange(1, 512), *[case.rng.randrange(512, 60 * 1024)] * 4])
    _mount(disk, f"size={size}k", MS_REMOUNT)
    done = case.tdmr1("train", *SETTINGS, "--output", disk / "run")
    _mount(disk, LARGE, MS_REMOUNT)
    _continue(case, disk / "run", done)
    case.faults = [f"a disk of {size} KiB: {fault}" for fault in case.faults]


def _read_only(case: Case, disk: Path) -> None:
    """A disk that becomes read-only during an iteration, or that is read-only."""
    after = case.rng.randrange(ITERATIONS)
    delay = case.rng.uniform(0, 1)

    def protect() -> None:
        metrics = disk / "run" / "metrics.jsonl"
        until = time.monotonic() + 60
        while after and len(rows_of(metrics)) < after and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(delay if after else 0)
        _mount(disk, "", MS_BIND)
        _mount(disk, "", MS_BIND | MS_REMOUNT | MS_RDONLY)

    if after == 0:
        protect()
    protecting = threading.Thread(target=protect if after else lambda: None)
    protecting.start()
    done = case.tdmr1("train", *SETTINGS, "--output", disk / "run")
    protecting.join()
    if ctypes.CDLL(None).umount2(os.fsencode(disk), 2):
        raise OSError(ctypes.get_errno(), "umount")
    _continue(case, disk / "run", done)
    case.faults = [f"read-only after iteration {after} and {delay:.2f} s: {fault}" for fault in case.faults]


def _limited(case: Case, disk: Path) -> None:
    """A limit on the size of each file, so that writes fail in the middle."""
    limit = int(10 ** case.rng.uniform(1, 7.3))

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = case.tdmr1("train", *SETTINGS, "--output", disk / "run", prepare=set_limit, pipes=True)
    _continue(case, disk / "run", done)
    case.faults = [f"files of at most {limit} bytes: {fault}" for fault in case.faults]


def _other_command(case: Case, disk: Path) -> None:
    """Another command that writes to a full or read-only disk leaves no half-written result."""
    command = case.rng.choice(COMMANDS)
    size = case.rng.choice([4, 64, 1024, 8192])
    _mount(disk, f"size={size}k", MS_REMOUNT)
    if case.rng.random() < 0.3:
        _mount(disk, "", MS_BIND)
        _mount(disk, "", MS_BIND | MS_REMOUNT | MS_RDONLY)
    (case.folder / "run").symlink_to(case.shared / "run")
    source, target = case.shared / "run", disk / "out"
    words: dict[str, list[object]] = {
        "report": ["report", source, "--output", target],
        "export": ["export", source, "--output", target, "--comfyui"],
        "sample": ["sample", source, "--prompt", "two", "--images", 4, "--output", target],
        "evaluate": ["evaluate", source, "--images", 2, "--teacher-steps", 1],
        "config": ["train", *SETTINGS, "--dry-run", "--output", target],
        "rewards": ["rewards", "new", "mine", "--output", target],
    }
    done = case.tdmr1(*words[command])
    if done.code == 2 and command in ("report", "export", "sample"):
        left = [path for path in disk.rglob("*") if path.is_file()]
        case.check(not left, f"{command} has left {[path.name for path in left]}")
    case.faults = [f"a disk of {size} KiB, {command}: {fault}" for fault in case.faults]


def _continue(case: Case, folder: Path, done: Done) -> None:
    """Resume the run, or start it again if nothing is saved; the result has the bits of an undisturbed run."""
    steps = steps_of(folder)
    latest = folder / "checkpoints" / "latest"
    if done.code == 2:
        case.check("[not-writable]" in done.err or "cannot be" in done.err, f"another error: {done.err[-400:]}")
    if latest.is_file():
        case.tdmr1("train", "--resume", folder, allowed=[0])
    else:
        case.check(len(steps) <= 1, f"no checkpoint after the iterations {steps}")
        shutil.rmtree(folder, ignore_errors=True)
        case.tdmr1("train", *SETTINGS, "--output", folder, allowed=[0])
    for name in ("metrics.jsonl", "evaluations.jsonl", "guard.jsonl"):
        case.check(rows_of(folder / name) == rows_of(case.shared / "run" / name), f"{name} differs in the end")


def _mount_disk(disk: Path) -> bool:
    """Mount an empty disk that only this item and its commands see; false if this is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        return False
    try:
        _mount(disk, LARGE)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENODEV):
            return False
        raise
    return True


def _mount(disk: Path, options: str, flags: int = 0) -> None:
    """Mount a tmpfs at a folder, or change the mount there."""
    place = os.fsencode(disk)
    source = place if flags & MS_BIND else b"none"
    kind = None if flags & MS_BIND else b"tmpfs"
    if ctypes.CDLL(None, use_errno=True).mount(source, place, kind, flags, options.encode() or None):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}")


PART = Part("disks", run, seconds=9, prepare=base_run.prepare, shared=base_run.NAME)
