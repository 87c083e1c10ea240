"""The state of a run on a few lines: sparklines, speed, time left, memory and the last alarm."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, pairwise

from rich.text import Text

from tdmr1_rewards.errors import printable

TREND = 10
"""Values that the trend is computed over."""
SPARKS = "▁▂▃▄▅▆▇█"
SPARKLINE = 24
"""Columns of a sparkline."""
LABEL = 10
"""Columns of the names at the left."""
MOST_HELD_OUT = 3
"""Lines for rewards of evaluations."""
GB = 1e9


@dataclass
class Readings:
    """What a run has reported so far.

    `held_out` has the means of each evaluation reward, by prompt set; the prompt set that was evaluated last is held
    out. `alarm` is the last alarm of the guard.
    """

    rewards: list[float] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    held_out: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    evaluated: str = ""
    """The prompt set that was evaluated last."""
    checkpoint: str = ""
    alarm: str = ""

    def add_evaluation(self, prompt_set: str, means: Mapping[str, float]) -> None:
        """Take the means of an evaluation."""
        self.evaluated = prompt_set
        series = self.held_out.setdefault(prompt_set, {})
        for reward, mean in means.items():
            series.setdefault(reward, []).append(mean)


def numbers(readings: Readings) -> list[str]:
    """The newest metrics in a few words each: reward or loss, groups without signal, speed, memory."""
    metrics, parts = readings.metrics, []
    if readings.rewards:
        parts.append(f"reward {readings.rewards[-1]:.3f} {trend(readings.rewards)}".rstrip())
    elif "loss/generator" in metrics:
        parts.append(f"generator loss {metrics['loss/generator']:.4f}")
    return [*parts, *_state(metrics)]


def view(readings: Readings) -> Text:
    """The lines below the bar. Each is cut where the terminal ends."""
    rows: list[tuple[str, str]] = []
    if readings.rewards:
        rows.append(("reward", _series(readings.rewards)))
    for reward, means in islice(readings.held_out.get(readings.evaluated, {}).items(), MOST_HELD_OUT):
        rows.append(("held-out", f"{_series(means)}  {reward} on {readings.evaluated}"))
    state = numbers(readings) if not readings.rewards else _state(readings.metrics)
    rows.append(("now", "  ".join([*state, f"checkpoint {readings.checkpoint or 'none yet'}"])))
    text = Text(no_wrap=True, overflow="ellipsis")
    for label, line in rows:
        text.append(printable(f"{label:<{LABEL}}{line}") + "\n")
    alarm = printable(f"{'alarm':<{LABEL}}{readings.alarm or 'none'}")
    text.append(alarm, style="bold red" if readings.alarm else "")
    return text


def _state(metrics: Mapping[str, float]) -> list[str]:
    parts = []
    if "zero_std_ratio" in metrics:
        parts.append(f"no signal {metrics['zero_std_ratio']:.0%}")
    if "images_per_second" in metrics:
        parts.append(f"{metrics['images_per_second']:.1f} images/s")
    return [*parts, memory_in_use()]


def _series(values: Sequence[float]) -> str:
    """The last value, its trend and all values as a sparkline."""
    return f"{values[-1]:.3f} {trend(values):<19} {sparkline(values)}"


def trend(values: Sequence[float]) -> str:
    """An arrow and the change over the last TREND values, or over fewer; empty for a single value."""
    if len(values) < 2:
        return ""
    back = min(TREND, len(values) - 1)
    change = values[-1] - values[-1 - back]
    arrow = "→" if abs(change) < 5e-4 else "↗" if change > 0 else "↘"
    return f"{arrow} {change:+.3f} in {back}"


def sparkline(values: Sequence[float], columns: int = SPARKLINE) -> str:
    """All values as a line of blocks, scaled from minimum to maximum; a block is a mean if there are too many.

    A value that is not finite is a blank.
    """
    count = min(len(values), columns)
    edges = [len(values) * number // max(count, 1) for number in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, span = min(finite, default=0.0), max(finite, default=0.0) - min(finite, default=0.0)
    return "".join(
        SPARKS[int((mean - low) / span * (len(SPARKS) - 1)) if span else 0] if math.isfinite(mean) else " "
        for mean in means
    )


def memory_in_use() -> str:
    """The peak of the GPU's memory if this process uses a GPU, else the memory of this process (RSS)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"memory {torch.cuda.max_memory_allocated() / GB:.1f} of {total / GB:.0f} GB (GPU)"
    import psutil

    return f"memory {psutil.Process().memory_info().rss / GB:.1f} GB"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, such as 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
