"""Writes run folders with logs and images of any length, as training does, for tests of reports."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump, read_preset, resolve
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.evaluation.guard import GuardReading
from tdmr1_core.runs.output import image_grids

ALARM = "object count rose from 0.2 to 0.9 (+3.1 deviations) while entropy fell from 3.1 to 1.2 (-2.4 deviations)"
PROMPTS = ("two red circles", "three <b>blue</b> squares", "a green triangle above a very small yellow circle")
COLUMNS = 4
BEGAN = 1_790_000_000.0
"""The Unix time of the start of every run: 2026-09-21 14:13 UTC."""


def write_run(
    folder: Path, iterations: int, *, size: int = 24, every: int = 10, seed: int = 0, **settings: Any
) -> Path:
    """A run of the tiny preset with these settings: all log files, grids every `every` iterations, and an alarm.

    Images have `size` pixels a side. The rewards rise like a logistic curve; `seed` changes the noise around it.
    """
    (folder / "samples").mkdir(parents=True)
    changes = {"iterations": iterations, "rewards": [{"name": "object_count"}], "seed": seed, **settings}
    config = resolve([read_preset("tiny"), changes])
    write_config(folder, config)
    noise = np.random.default_rng(seed)
    write_lines(folder / "metrics.jsonl", [metrics(step, iterations, noise) for step in range(1, iterations + 1)])
    steps = range(0, iterations + 1, max(1, iterations // 5))
    write_lines(folder / "evaluations.jsonl", [row for step in steps for row in evaluations(step, iterations)])
    write_lines(folder / "guard.jsonl", [guard_row(step, iterations, step == steps[-1]) for step in steps])
    write_lines(folder / "resources.jsonl", [resources(step, iterations // 2) for step in range(iterations + 1)])
    resume = {"checkpoint": f"step-{iterations // 2:06d}", "changes": {"saving.keep": [2, 5]}, "differences": []}
    write_lines(folder / "resumes.jsonl", [resume])
    for step in range(0, iterations + 1, every):
        write_grid(folder, step, size, noise)
        if step:
            write_group(folder, step, size, noise)
    return folder


def write_config(folder: Path, config: RunConfig) -> None:
    header = {"versions": {"python": "3.11.7", "torch": "2.13.0"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"tdmr1": header, **dump(config)}, sort_keys=False))


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reward(step: int, iterations: int) -> float:
    """The expected reward after an iteration, from about 0.2 to about 0.9."""
    return 0.2 + 0.7 / (1 + math.exp(6 - 12 * step / iterations))


def metrics(step: int, iterations: int, noise: np.random.Generator) -> dict:
    """The metrics that the engine writes, with plausible values."""
    jitter = noise.standard_normal(16)
    mean = reward(step, iterations) + 0.05 * jitter[0]
    times = {"rollout": 0.9, "score": 0.15, "fake": 1.6, "surrogate": 2.7, "generator": 3.4, "other": 0.05}
    seconds = {f"time/{name}": value * (1 + 0.05 * jitter[1]) for name, value in times.items()}
    return {
        "step": step,
        **seconds,
        "time/iteration": sum(seconds.values()),
        "images_per_second": 96 / sum(seconds.values()),
        "reward/mean": mean,
        "reward/std": 0.4 - 0.2 * step / iterations,
        "reward/object_count/mean": mean,
        "reward/object_count/std": 0.4 - 0.2 * step / iterations,
        "reward/object_count/unjudged": 0.0,
        "reward/object_count/failed": float(step == 3),
        "reward/object_count/objects": 2 + jitter[2],
        "zero_std_ratio": 0.3 * step / iterations,
        "advantage/max": 2 + 0.3 * jitter[3],
        "loss/fake": 0.9 + 0.05 * jitter[4],
        "loss/preference": -0.02 + 0.002 * jitter[5],
        "loss/generator": 0.45 + 0.03 * jitter[6],
        "loss/kl": 0.26 + 0.02 * jitter[7],
        "loss/cfg": 0.21,
        "loss/reward": 0.06 + 0.01 * jitter[8],
        "grad_norm/fake": 0.9 + 0.1 * abs(jitter[9]),
        "grad_norm/surrogate": 0.05 + 0.01 * abs(jitter[10]),
        "grad_norm/generator": 1.1 + 0.2 * abs(jitter[11]),
        "surrogate/clipped": 0.0,
        "surrogate/drifted": min(1.0, 0.02 * abs(jitter[12])),
        "surrogate/drift": 0.01 * abs(jitter[13]),
    }


def evaluations(step: int, iterations: int) -> list[dict]:
    mean = reward(step, iterations)
    return [
        {
            "step": step,
            "role": "generator_ema",
            "prompts": prompts,
            "n": 288,
            "object_count/mean": mean - less,
            "object_count/stderr": 0.02,
        }
        for prompts, less in (("count", 0.0), ("count-held-out", 0.05))
    ]


def guard_row(step: int, iterations: int, alarms: bool) -> dict:
    fraction = step / iterations
    measures = {
        "reward/object_count": Measure(reward(step, iterations), 0.02, 288),
        "held_out/jpeg_size": Measure(-1.2 - 0.3 * fraction, 0.01, 288),
        "picture/entropy": Measure(3.1 - 1.9 * fraction, 0.05, 288),
        "picture/edge_density": Measure(0.05, 0.001, 288),
    }
    return {"step": step, **GuardReading(step, measures, (ALARM,) if alarms else ()).row()}


def resources(step: int, resumed_at: int) -> dict:
    """Nine seconds for each iteration, and a pause of an hour before the second session."""
    machine = {"device": "CPU", "processes": "1", "CPU cores": "2"}
    paused = 3600.0 if step >= resumed_at else 0.0
    row = {"step": step, "time": BEGAN + 9.0 * step + paused, "memory": {"process": 0.9 + 1e-5 * step}}
    return row | ({"machine": machine} if step in (0, resumed_at) else {})


def write_grid(folder: Path, step: int, size: int, noise: np.random.Generator) -> None:
    """A grid with a row for each prompt, and its JSON file."""
    count = len(PROMPTS) * COLUMNS
    images = draw(count, size, noise)
    document = {
        "step": step,
        "columns": COLUMNS,
        "height": size,
        "width": size,
        "prompts": PROMPTS,
        "scores": {"object_count": [None if index == 1 else index / count for index in range(count)]},
    }
    file = folder / "samples" / f"step-{step:06d}.png"
    file.with_suffix(".json").write_text(json.dumps(document))
    file.write_bytes(image_grids.grid(images, COLUMNS))


def write_group(folder: Path, step: int, size: int, noise: np.random.Generator) -> None:
    scores = {word: {"object_count": value} for word, value in (("best", 0.75), ("worst", 0.25))}
    document = {"step": step, "prompt": PROMPTS[1], "rewards": [0.25, 0.5, 0.75], "scores": scores}
    name = folder / "samples" / f"group-{step:06d}"
    name.with_suffix(".json").write_text(json.dumps(document))
    for word, image in zip(("best", "worst"), draw(2, size, noise), strict=True):
        Image.fromarray(image).save(f"{name}-{word}.png")


def draw(count: int, size: int, noise: np.random.Generator) -> np.ndarray:
    """Images uint8 (count, size, size, 3) with a circle each, and a little noise, so that they do not compress well."""
    y, x = np.mgrid[:size, :size] / size
    images = 40 + 12 * noise.standard_normal((count, size, size, 3))
    for image in images:
        center, radius = noise.uniform(0.3, 0.7, 2), noise.uniform(0.1, 0.3)
        image[np.hypot(x - center[0], y - center[1]) < radius] += noise.uniform(40, 190, 3)
    return images.clip(0, 255).astype(np.uint8)
