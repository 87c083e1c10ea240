"""Measure one part of `gpu_day.sh` and write its results to OUTPUT/PART.json.

    python benchmarks/gpu_day.py sd3.5-tdm --output build/gpu-day
    python benchmarks/gpu_day.py sd3.5-tdm --output build/gpu-day --toy     # a tiny network, on any machine

A part has rows, such as one for each attention kernel. The file is written after each row, and the same command again
measures the rows that are missing. A row that fails is named at the end, with exit code 1. All results of a folder are
of one card, one commit and one version of torch; others are refused with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tdmr1_core.durable_files import replace_durable
from tdmr1_core.versions import versions

ROOT = Path(__file__).resolve().parents[1]
MATRIX = 8192
"""Rows and columns of the matrices whose product gives the speed of the card."""
Row = dict[str, Any]


class Results:
    """The rows of one part, in a file."""

    def __init__(self, folder: Path, part: str, context: Row) -> None:
        self.path = folder / f"{part}.json"
        self._part, self._context = part, context
        self.failed: list[str] = []
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows: dict[str, Row] = found.get("rows", {})

    def measure(self, name: str, action: Callable[[], Row]) -> None:
        """Add the row `name`, unless it is there. Failures are printed and remembered."""
        if name in self.rows:
            return
        started = time.monotonic()
        try:
            row = action()
        except Exception:
            traceback.print_exc()
            self.failed.append(name)
            return
        self.rows[name] = {**row, "seconds_in_total": time.monotonic() - started}
        self.write(finished=False)
        print(f"{self._part}, {name}: {self.rows[name]}", flush=True)

    def write(self, *, finished: bool) -> None:
        """Write the file."""
        document = {"part": self._part, "context": self._context, "rows": self.rows, "finished": finished}
        replace_durable(self.path, json.dumps(document, indent=1).encode())


def context(toy: bool) -> Row:
    """What all results of a folder have in common."""
    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else "",
        "cuda": torch.version.cuda or "",
        "versions": versions(),
        "commit": os.environ.get("COMMIT") or _first_line("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"),
        "toy": toy,
    }


def _first_line(*command: str) -> str:
    """The first line that a program prints, or `unknown`."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0]


def card(results: Results, toy: bool) -> None:
    """The speed of the card in bf16 products of large matrices."""
    results.measure("matmul", lambda: {"tflops": matmul_tflops(64 if toy else MATRIX)})


def matmul_tflops(size: int) -> float:
    """TFLOP/s of a bf16 product of two square matrices: the mean of 20 products after 5."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for number in range(25):
        if number == 5:
            _wait(device)
            started = time.perf_counter()
        torch.mm(matrix, matrix)
    _wait(device)
    return 20 * 2 * size**3 / (time.perf_counter() - started) / 1e12


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def tests(results: Results, toy: bool) -> None:
    """`pytest -m gpu`, on the files that have such tests."""

    def run() -> Row:
        modules = sorted((ROOT / "tests").rglob("test_*.py"))
        files = [str(path) for path in modules if "pytest.mark.gpu" in path.read_text()]
        command = [sys.executable, *["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rfEs"], *files]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(done.stdout[-4000:], flush=True)
        if done.returncode:
            raise RuntimeError(f"pytest ended with exit code {done.returncode}")
        return {"summary": done.stdout.strip().splitlines()[-1]}

    results.measure("pytest", run)


def paired(results: Results, toy: bool) -> None:
    """The ratio published sequence / ours (`published_sequence.py`), on the embedded network and on a larger one."""
    few = ["--set", "batch.groups=1", "--set", "batch.group_size=8"]
    runs = {"tiny-tdm": ["--pairs", "1" if toy else "5", *(few if toy else [])]}
    if not toy:
        runs["random-100m"] = ["--model", "random-100m", "--pairs", "3", *few]
    for name, arguments in runs.items():
        results.measure(name, lambda arguments=arguments: _published_sequence(arguments))  # type: ignore[misc]


def _published_sequence(arguments: list[str]) -> Row:
    """The JSON document that the benchmark prints last."""
    command = [sys.executable, str(ROOT / "benchmarks" / "published_sequence.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout, done.stderr, flush=True)
    done.check_returncode()
    found = json.loads(done.stdout[done.stdout.index("\n{") :])
    return {name: found[name] for name in ("median_ratio", "ratios", "rows_per_iteration")}


def precision(results: Results, toy: bool) -> None:
    """The embedded model, trained in fp32 and in bf16 at the same time: what each learns."""
    folder = results.path.parent
    running = {name: _start_training(folder, name, toy) for name in ("fp32", "bf16") if name not in results.rows}
    for name, (run, process) in running.items():
        results.measure(name, lambda run=run, process=process: _training_row(run, process))  # type: ignore[misc]


def _start_training(folder: Path, name: str, toy: bool) -> tuple[Path, subprocess.Popen[bytes]]:
    settings = ["saving.samples_every=0", f"model.precision={name}", f"evaluation.images={4 if toy else 96}"]
    if toy:
        settings += ["batch.groups=1", "batch.group_size=4", "timesteps.per_iteration=1", "guard.enabled=false"]
    run = Path(tempfile.mkdtemp(prefix=f"precision-{name}-", dir=folder)) / "run"
    arguments = ["train", "--iterations", "1" if toy else "20", "--output", str(run), "--quiet"]
    for setting in settings:
        arguments += ["--set", setting]
    return run, subprocess.Popen([sys.executable, "-m", "tdmr1_cli", *arguments], cwd=ROOT)


def _training_row(run: Path, process: subprocess.Popen[bytes]) -> Row:
    """The first and the last evaluation of held-out prompts."""
    if process.wait():
        raise RuntimeError(f"tdmr1 train ended with exit code {process.returncode}")
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if row["prompts"].endswith("held-out")]
    return {"first": held_out[0], "last": held_out[-1]}


def models(part: str) -> Callable[[Results, bool], None]:
    """A part that measures the stages of a model (`gpu_day_models.py`)."""

    def measure(results: Results, toy: bool) -> None:
        from gpu_day_models import measure_variants

        measure_variants(results, part, toy)

    return measure


PARTS: dict[str, Callable[[Results, bool], None]] = {
    "card": card,
    "tests": tests,
    "paired": paired,
    "precision": precision,
    **{part: models(part) for part in ("sd3.5-tdm", "z-image-turbo", "flux2-klein-4b", "quantized", "compile")},
}


def main() -> int:
    """Measure one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--output", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--toy", action="store_true", help="tiny networks and few images")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    now = context(options.toy)
    for path in options.output.glob("*.json"):
        former = json.loads(path.read_text())["context"]
        if former != now:
            print(f"{path} has results of {former}, not of {now}: name another folder", file=sys.stderr)
            return 2
    results = Results(options.output, options.part, now)
    PARTS[options.part](results, options.toy)
    results.write(finished=not results.failed)
    if results.failed:
        print(f"{options.part}: failed: {', '.join(results.failed)}", file=sys.stderr)
    return 1 if results.failed else 0


if __name__ == "__main__":
    sys.exit(main())
