"""Compares what two versions of the code compute, bit by bit, on one machine and with one thread.

    python benchmarks/same_bits.py                        # commit bd1871c and this repository
    python benchmarks/same_bits.py --only tiny-tdm ocr --cache build/same_bits --keep build/last

Each job is a `tdmr1` command. It runs once with the old tree (a temporary git worktree) and once with the new tree, in
the same virtual environment: PYTHONPATH selects the tree. A training job has three iterations. The script compares

- the SHA-256 hash of dtype, shape and bytes of every tensor of the last checkpoint (LoRAs of all roles, the averaged
  generator, optimizer moments), and the counters in its `state.json`;
- every value in `metrics.jsonl` (except times), `evaluations.jsonl` and `guard.jsonl`;
- the pixels of `sample` and of the sample grids, and the tensors of an exported LoRA.

The resume jobs take a run of the old tree back to its first checkpoint and continue it with the new tree; the result
must equal that of the uninterrupted run. Do not edit the new tree meanwhile. Hashes depend on the machine, so the key
of a cached result contains the boot id. A killed script leaves its worktree registered: run `git worktree prune`.

The new tree gets the former values of settings whose defaults changed (FORMER, and memory.lora). The metric loss/reward
is not compared where `generator.trunc_steps` is 2: the reward term of images at k >= trunc_steps is no longer computed
and counts as 0.

The script prints one line a job. Exit code 1 if a job differs or fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
BASELINE = "bd1871c"
ITERATIONS = 3
CLOCK = ("time/", "images_per_second")
"""Prefixes of the metrics that depend on the clock."""
LEAST = {"train": 14 * 90, "distill": 9 * 90, "sample": 4, "export": 90}
"""Tensors or images of a complete output. The LoRA of a role has 90 tensors, and AdamW keeps three more of each."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Items = dict[str, str]
"""What a job computed: the name of a tensor, metric or image to its hash or value."""


@dataclass(frozen=True)
class Job:
    """One command; `{out}` is its own output folder and `{run}` the output folder of the job `after`."""

    name: str
    command: tuple[str, ...]
    after: str | None = None
    resumes: bool = False
    """Continue a copy of the old tree's run `after` from its first checkpoint."""


def _settings(*settings: str) -> tuple[str, ...]:
    return tuple(part for setting in settings for part in ("--set", setting))


def _without_overridden(command: tuple[str, ...]) -> tuple[str, ...]:
    """The command without a `--set` whose setting a later one sets."""
    sets = [place for place, part in enumerate(command) if part == "--set"]
    last = {command[place + 1].partition("=")[0]: place for place in sets}
    dropped = {part for place in sets if place not in last.values() for part in (place, place + 1)}
    return tuple(part for place, part in enumerate(command) if place not in dropped)


SMALL = (
    *("--quiet", "--iterations", str(ITERATIONS), "--output", "{out}"),
    *_settings("threads=1", "batch.groups=2", "batch.group_size=4", "evaluation.images=12"),
    *_settings("saving.samples_every=0", "saving.tensorboard=false", "saving.checkpoint_every=1", "saving.keep=3"),
)
TINY = ("train", "--model", "tiny-tdm", *SMALL)
FORMER = _settings(
    *("timesteps.k_sharing=step", "timesteps.tau_sharing=step", "surrogate.tau_sharing=step", "fake.start=generator"),
    *("model.lora_init=kaiming", "generator.ema_warmup=false", "rollout.dpm_levels=euler"),
    "generator.joint_huber=false",
)
"""Former values of settings that have new defaults or are new. The new tree gets them with published presets."""
OCR = (*TINY, "--preset", "ocr")
PROMPTS = ("--prompt", "two red circles", "--prompt", "one blue square", "--images", "2", "--output", "{out}")
NO_REWARD_TERM = "generator.trunc_steps=2"
"""Without a reward term at the last steps."""
ALTERNATIVES = _settings(
    *("rollout.eta=0.3", "advantages.permute=true", "advantages.binary=true", "scoring.combine=normalised"),
    *("timesteps.k_sharing=sample", "timesteps.optimizer_step=each", "fake.start=zero", "fake.updates=2"),
    *("surrogate.time_weight=false", "surrogate.boundary=last", NO_REWARD_TERM),
    *("memory.gradient_checkpointing=true", "memory.decoder=sliced"),
    *("evaluation.images=24", "evaluation.every=2", "saving.samples_every=2"),
)
HUBER_DPM = _settings("generator.loss=huber", NO_REWARD_TERM, "rollout.sampler=dpm-solver++")
CLIPPED = _settings("surrogate.trust_region=0.0001", "surrogate.drift_threshold=0.002", "advantages.std=group")

PRESETS = tuple(
    Job(f"{model}{suffix}", ("train", "--model", model, *SMALL, *more))
    for model in ("tiny-tdm", "tiny-words-tdm", "tiny-pairs-tdm")
    for suffix, more in (("", ()), ("-fp64", _settings("model.precision=fp64")))
)
JOBS = (
    *PRESETS,
    Job("distill", ("distill", "--model", "tiny-tdm", *SMALL)),
    Job("two-processes", (*TINY, "--processes", "2")),
    Job("micro-batch-4", (*TINY, *_settings("batch.micro_batch=4"))),
    Job("ocr", OCR),
    Job("ocr-huber-dpm", (*OCR, *CLIPPED, *HUBER_DPM)),
    Job("ocr-ema", (*OCR, *_settings("surrogate.reference=ema"))),
    Job("ocr-alternatives", (*OCR, *ALTERNATIVES, "--reward", "object_count", "--reward", "jpeg_size:0.5")),
    Job("sample", ("sample", "{run}", *PROMPTS), after="tiny-tdm"),
    Job("sample-teacher", ("sample", "tiny-tdm", "--role", "teacher", *PROMPTS)),
    Job("export", ("export", "{run}", "--output", "{out}"), after="tiny-tdm"),
    Job("resume-old", ("train", "--quiet", "--resume", "{out}"), after="tiny-tdm", resumes=True),
    Job("resume-old-ema", ("train", "--quiet", "--resume", "{out}"), after="ocr-ema", resumes=True),
    Job("resume-old-huber", ("train", "--quiet", "--resume", "{out}"), after="ocr-huber-dpm", resumes=True),
)
BY_NAME = {job.name: job for job in JOBS}


class Failed(Exception):
    """A command failed, or its output is incomplete."""


@dataclass
class Tree:
    """One version of the code, and the folder that keeps its results."""

    name: str
    code: Path
    results: Path
    commit: str = ""
    """Part of the key of its results; empty where results must not be used again."""

    def check(self) -> None:
        """Raise Failed unless PYTHONPATH selects this tree."""
        script = "import tdmr1_cli, tdmr1_core, tdmr1_rewards; print(tdmr1_cli, tdmr1_core, tdmr1_rewards)"
        found = subprocess.check_output((sys.executable, "-c", script), env=self._environment(), cwd="/", text=True)
        if found.count(f"'{self.code}/") != 3:
            raise Failed(f"the packages are not imported from {self.code}: {found}")

    def folder(self, job: Job) -> Path:
        """Where the job writes: its name, and with a commit also the key of the definition, versions and machine."""
        if not self.commit:
            return self.results / job.name
        packages = [version(package) for package in ("torch", "diffusers", "transformers", "peft", "numpy")]
        parents = asdict(BY_NAME[job.after]) if job.after else None
        key = json.dumps([self.commit, BOOT_ID.read_text(), platform.python_version(), packages, asdict(job), parents])
        return self.results / f"{job.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def run(self, job: Job, old: Tree) -> Items:
        """Run the job unless its result exists already. Raises Failed."""
        folder = self.folder(job)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run of this script
            folder.mkdir(parents=True)
            if job.resumes:
                _copy_first_checkpoint(old.folder(BY_NAME[str(job.after)]) / "out", folder / "out")
            elif job.after:
                self.run(BY_NAME[job.after], old)
            self._execute(job, folder)
            (folder / "done").touch()
        return read(job, folder / "out")

    def _execute(self, job: Job, folder: Path) -> None:
        places = {"{out}": str(folder / "out")}
        if job.after and not job.resumes:
            places["{run}"] = str(self.folder(BY_NAME[job.after]) / "out")
        given = job.command
        if self.name == "new" and "ocr" in given:
            given = (*given[: len(OCR)], *FORMER, *given[len(OCR) :])  # settings of the job override them
        if self.name == "new" and given[0] in ("train", "distill") and not job.resumes:
            given = (*given, *_settings("memory.lora=peft"))
        given = _without_overridden(given)
        command = (sys.executable, "-m", "tdmr1_cli", *(places.get(part, part) for part in given))
        with (folder / "log").open("w+") as file:
            code = subprocess.call(command, env=self._environment(), cwd=folder, stdout=file, stderr=file)
            file.seek(0)
            last = " ".join(file.read().splitlines()[-5:])
        if code != 0:
            raise Failed(f"exit code {code} in the {self.name} tree: {last}")

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(self.code), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _copy_first_checkpoint(run: Path, copy: Path) -> None:
    """Copy a finished run as if it had been stopped after its first iteration."""
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("step-00000[2-9]"))
    (copy / "checkpoints" / "latest").write_text("step-000001\n")


def read(job: Job, folder: Path) -> Items:
    """Everything that a job computed. Raises Failed for an incomplete output."""
    kind = job.command[0]
    if kind in ("sample", "export"):
        items = _images(folder) | _tensors(folder)
        _at_least(LEAST[kind], items, folder)
        return items
    checkpoint = folder / "checkpoints" / (folder / "checkpoints" / "latest").read_text().strip()
    items = _tensors(checkpoint)
    _at_least(LEAST[kind], items, checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    items |= {f"state.json {key}": json.dumps(state[key]) for key in ("iteration", "updates", "moments", "counters")}
    items |= _lines(folder / "metrics.jsonl", ITERATIONS)
    if kind == "train":
        items |= _lines(folder / "evaluations.jsonl", 4) | _lines(folder / "guard.jsonl", 2)
    return items | _images(folder / "samples")


def _at_least(count: int, found: Sized, where: Path) -> None:
    if len(found) < count:
        raise Failed(f"{where} holds {len(found)} items; {count} or more expected")


def _tensors(folder: Path) -> Items:
    """Hash of dtype, shape and bytes of every tensor of a folder's safetensors files."""
    items = {}
    for file in sorted(folder.glob("*.safetensors")):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        for name in header.keys() - {"__metadata__"}:
            begin, end = (start + offset for offset in header[name]["data_offsets"])
            digest = hashlib.sha256(content[begin:end]).hexdigest()
            items[f"{file.name} {name}"] = f"{header[name]['dtype']} {header[name]['shape']} {digest}"
    return items


def _lines(file: Path, at_least: int) -> Items:
    """Every value of a file of JSON lines, except times and the words of the guard's alarms."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    _at_least(at_least, rows, file)
    return {
        f"{file.name}:{number} {key}": json.dumps(len(value) if key == "alarms" else value, sort_keys=True)
        for number, row in enumerate(rows, 1)
        for key, value in row.items()
        if not key.startswith(CLOCK)
    }


def _images(folder: Path) -> Items:
    """Hash of the pixels of every PNG file, except the grid that contains text."""
    items = {}
    for file in sorted(folder.glob("*.png")):
        if file.name != "grid.png":
            with Image.open(file) as image:
                items[file.name] = f"{image.mode} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"
    return items


def difference(job: Job, old: Items, new: Items) -> str | None:
    """The first item that differs, and how many do; None where all are equal."""
    without_reward = NO_REWARD_TERM in (BY_NAME[job.after] if job.after else job).command
    names = sorted(
        name
        for name in old.keys() | new.keys()
        if old.get(name) != new.get(name) and not (without_reward and name.endswith(" loss/reward"))
    )
    if not names:
        return None
    return f"{len(names)} of {len(old)} items; first {names[0]}: {old.get(names[0])} -> {new.get(names[0])}"


def compare(job: Job, old: Tree, new: Tree) -> bool:
    """Run one job with both trees and print whether they are equal."""
    began = time.monotonic()
    try:
        expected = old.run(BY_NAME[str(job.after)] if job.resumes else job, old)
        between = time.monotonic()
        found = new.run(job, old)
        differs = difference(job, expected, found)
        verdict = f"equal ({len(found)} items)" if differs is None else f"DIFFERENT ({differs})"
    except (Failed, OSError, KeyError, ValueError) as error:
        between, differs, verdict = time.monotonic(), "", f"FAILED ({error!r})"
    print(f"{job.name:20} {verdict}, {between - began:.0f} + {time.monotonic() - between:.0f} s", flush=True)
    return differs is None


def git(*arguments: str) -> str:
    """What git prints for this repository."""
    return subprocess.check_output(("git", "-C", str(REPOSITORY), *arguments), text=True).strip()


@contextmanager
def worktree(commit: str, folder: Path) -> Iterator[Path]:
    """A temporary git worktree of a commit."""
    git("worktree", "add", "--quiet", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git("worktree", "remove", "--force", str(folder))


def main() -> int:
    """Compare all jobs, or the ones that `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--old", default=BASELINE, metavar="COMMIT", help="the old commit (default: %(default)s)")
    parser.add_argument("--new", type=Path, default=REPOSITORY, metavar="DIR", help="the new tree (default: this one)")
    parser.add_argument("--only", nargs="+", choices=BY_NAME, metavar="NAME", help=f"of: {', '.join(BY_NAME)}")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the new tree's outputs here; must not exist")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep and reuse the old tree's results here")
    options = parser.parse_args()
    commit = git("rev-parse", "--verify", f"{options.old}^{{commit}}")
    if options.keep:
        options.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="same_bits-") as name:
        temporary = Path(name).resolve()
        with worktree(commit, temporary / "tree") as code:
            old = Tree("old", code, (options.cache or temporary / "old").resolve(), commit if options.cache else "")
            new = Tree("new", options.new.resolve(), (options.keep or temporary / "new").resolve())
            old.check()
            new.check()
            jobs = [BY_NAME[name] for name in options.only] if options.only else JOBS
            equal = [compare(job, old, new) for job in jobs]
    print(f"{sum(equal)} of {len(equal)} equal")
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
