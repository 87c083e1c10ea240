"""Print the results of `gpu_day.sh` as Markdown tables for docs/performance.md.

python benchmarks/gpu_day_tables.py build/gpu-day
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

STAGES = ("rollout", "fake", "surrogate", "generator")
MODEL_PARTS = ("sd3.5-tdm", "z-image-turbo", "flux2-klein-4b", "quantized", "compile")
PARTS = ("card", *MODEL_PARTS, "paired", "precision", "tests")
GB = 1e9
Rows = dict[str, dict[str, Any]]


def tables(folder: Path) -> Iterator[str]:
    """The tables, line by line. Parts and rows that are missing are named at the end."""
    found = {part: json.loads(path.read_text()) for part in PARTS if (path := folder / f"{part}.json").exists()}
    if not found:
        yield "Nothing was measured."
        return
    rows: dict[str, Rows] = {part: document["rows"] for part, document in found.items()}
    peak = rows.get("card", {}).get("matmul", {}).get("tflops")
    yield from _heading(next(iter(found.values()))["context"], peak)
    models = [(part, name, row) for part in MODEL_PARTS for name, row in rows.get(part, {}).items()]
    measured = [each for each in models if "stages" in each[2]]
    if measured:
        yield from _stage_table(measured, peak)
        yield from _memory_table(measured)
    for part, name, row in models:
        if "refused" in row:
            yield f"- {part}, {name}: {row['refused']}"
    yield from _paired(rows.get("paired", {}))
    yield from _precision(rows.get("precision", {}))
    for row in rows.get("tests", {}).values():
        yield from ("", f"`pytest -m gpu`: {row['summary'].strip('= ')}")
    missing = [part for part in PARTS if not found.get(part, {}).get("finished")]
    if missing:
        yield from ("", f"Not complete: {', '.join(missing)}.")


def _heading(context: dict[str, Any], peak: float | None) -> Iterator[str]:
    versions = context["versions"]
    driver = f", driver {context['driver']} with CUDA {context['cuda']}" if context["driver"] else ""
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "peft"))
    yield f"{context['device']}{driver}, {packages}, commit `{context['commit']}`."
    if context["toy"]:
        yield "These are tiny networks, which test the script: their numbers mean nothing."
    if peak is not None:
        yield f"A bf16 product of two large matrices reaches {peak:.3g} TFLOP/s."


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    yield from ("", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}")
    for cells in lines:
        yield f"| {' | '.join(cells)} |"


def _stage_table(models: Sequence[tuple[str, str, dict[str, Any]]], peak: float | None) -> Iterator[str]:
    """Images per second of each stage; FLOPs that `tdmr1 plan` counts per second, and as a fraction of the peak."""
    head = ["model", "images × micro-batch", "variant", *STAGES, "whole iteration", "TFLOP/s", "of the peak"]
    head += ["peak memory", "warm-up"]
    lines = []
    for _, name, row in models:
        speeds = [f"{row['stages'][stage]['images_per_second']:.3g}" for stage in STAGES]
        fraction = "" if peak is None else f"{100 * row['tflops'] / peak:.0f} %"
        lines.append(
            [
                f"{row['model']}, {row['size']} px",
                f"{row['images']} × {row['micro_batch']}",
                name,
                *speeds,
                f"{row['images_per_second']:.3g}",
                f"{row['tflops']:.3g}",
                fraction,
                f"{row['peak_bytes'] / GB:.1f} GB",
                f"{row['warm_up_seconds']:.0f} s",
            ]
        )
    yield from _table(head, lines)
    yield from ("", "The columns from rollout to whole iteration are images per second (n = 1).")


def _memory_table(models: Sequence[tuple[str, str, dict[str, Any]]]) -> Iterator[str]:
    """The estimate of `tdmr1 plan` for the generator update beside the measurement."""
    lines = [
        [
            f"{row['model']}, {row['size']} px, micro-batch {row['micro_batch']}",
            name,
            f"{row['estimated_bytes'] / GB:.2f} GB",
            f"{row['measured_bytes'] / GB:.2f} GB",
            f"{100 * (row['estimated_bytes'] / row['measured_bytes'] - 1):+.1f} %",
        ]
        for _, name, row in models
        if row["measured_bytes"]
    ]
    if lines:
        yield from _table(["model", "variant", "estimated", "measured", "difference"], lines)


def _paired(rows: Rows) -> Iterator[str]:
    """Seconds of an iteration of the published sequence divided by those of ours."""
    lines = [
        [name, f"{row['median_ratio']:.3f}", ", ".join(f"{ratio:.3f}" for ratio in row["ratios"])]
        for name, row in rows.items()
    ]
    if lines:
        yield from _table(["network", "published / ours, median", "pairs"], lines)


def _precision(rows: Rows) -> Iterator[str]:
    """What the embedded model learns in each precision, on held-out prompts."""
    lines = [
        [name, *(f"{row[when]['object_count/mean']:.3f} ± {_error(row[when])}" for when in ("first", "last"))]
        for name, row in rows.items()
    ]
    if lines:
        yield from _table(["precision", "`object_count` before", "after"], lines)


def _error(evaluation: dict[str, Any]) -> str:
    error = evaluation.get("object_count/stderr")
    return "?" if error is None else f"{error:.3f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print("\n".join(tables(parser.parse_args().folder)))


if __name__ == "__main__":
    main()
