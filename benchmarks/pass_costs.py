"""What a pass of the embedded network costs: with and without a LoRA, with gradient, and for different numbers of rows.

    python benchmarks/pass_costs.py

One thread. Each value is the smallest CPU time of `--repeats` passes; variants take turns. The first table is relative
to a pass without LoRA and without gradient. The second table has milliseconds per row without gradient, and how much
faster one pass of 2 n rows is than two passes of n rows: the most that a shared pass of two roles could gain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from lora_error import VARIANTS, build

from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import FAKE, TEACHER

SIZES = (6, 12, 24, 48, 96, 192)


def passes(engine: Engine, role: str, rows: int, *, gradient: bool = False) -> Callable[[], None]:
    """A function that evaluates the network once."""
    conditioning = engine.roles.backbone.unconditional.expand(rows)
    latents, level = torch.randn(rows, *engine.roles.backbone.latent_shape(*engine.size)), torch.full((rows,), 0.5)
    weights = list(engine.roles.parameters(FAKE).values())

    def once() -> None:
        with torch.set_grad_enabled(gradient), engine.roles.acting(role) as backbone:
            velocity = backbone.velocity(latents, level, conditioning)
        if gradient:
            torch.autograd.grad(velocity.square().sum(), weights, allow_unused=True)

    return once


def fastest(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """The smallest CPU seconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.thread_time()
            call()
            times[name].append(time.thread_time() - started)
    return {name: min(found) for name, found in times.items()}


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    engines = {name: build(setting) for name, setting in VARIANTS.items()}
    calls = {"no LoRA": passes(engines["merged"], TEACHER, options.rows)}
    for name, engine in engines.items():
        calls[f"forward, {name}"] = passes(engine, FAKE, options.rows)
        calls[f"forward and backward, {name}"] = passes(engine, FAKE, options.rows, gradient=True)
    found = fastest(calls, options.repeats)
    for name, seconds in found.items():
        print(f"{name}: {seconds / found['no LoRA']:.2f}")
    sized = fastest({str(rows): passes(engines["merged"], FAKE, rows) for rows in SIZES}, options.repeats)
    for rows, seconds in sized.items():
        double = sized.get(str(2 * int(rows)))
        gain = f", two passes / one of twice the rows: {2 * seconds / double:.2f}" if double else ""
        print(f"{rows} rows: {seconds / int(rows) * 1e3:.2f} ms per row{gain}")


if __name__ == "__main__":
    main()
