"""The charts of a report: which metrics of the log files belong together, and their thinned points as plain data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.output.report import Report
from tdmr1_core.runs.output.thinning import kept_means, kept_points

Point = tuple[int, float, float]
"""Iteration, value, and standard deviation or half width of the interval (0 if there is none)."""
INTERVAL = 1.96
"""Standard errors in half a 95 % interval."""
FREE, FRACTION, POSITIVE = "free", "fraction", "positive"
"""The range of a chart: as the values need it; inside 0 to 1; from 0."""
REWARDS, EVALUATIONS, TRAINING, COST, OTHER = "rewards", "evaluations", "training", "cost", "other"
COUNTERS = ("mean", "std", "unjudged", "failed")
"""The metrics of a reward that the engine adds itself."""
STAGES = ("rollout", "score", "fake", "surrogate", "generator", "other")
MOST_OTHER = 24
"""The largest number of charts of metrics that have no place of their own, such as those of plugins."""


@dataclass(frozen=True)
class Series:
    """One curve. `spread` names what the third part of its points is; `sparse` ones are drawn as single points."""

    name: str
    points: Sequence[Point]
    spread: str | None = None
    sparse: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves with the same unit. `axis` names the vertical axis, `note` explains what good values are."""

    section: str
    title: str
    axis: str
    series: tuple[Series, ...]
    range: str = FREE
    note: str = ""


@dataclass
class Curves:
    """The curves of a run by the name of their metric. `used` has the names that already have a chart."""

    rows: Mapping[str, dict[int, float]]
    used: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, metrics: Iterable[Mapping[str, Any]]) -> Curves:
        """The finite values of every metric, by iteration."""
        found: dict[str, dict[int, float]] = {}
        for row in metrics:
            for name, value in row.items():
                if name != "step" and math.isfinite(value):
                    found.setdefault(name, {})[row["step"]] = float(value)
        return cls(found)

    def series(self, label: str, name: str, spread: str | None = None) -> Series:
        """The curve of a metric, with the metric `spread` as its standard deviation."""
        self.used |= {name} if spread is None else {name, spread}
        deviations = self.rows.get(spread, {}) if spread else {}
        points = [(step, value, deviations.get(step, 0.0)) for step, value in sorted(self.rows.get(name, {}).items())]
        return Series(label, points, "standard deviation" if deviations else None)

    def unused(self, prefix: str = "") -> list[str]:
        """The names without a chart that begin with `prefix`."""
        return [name for name in self.rows if name.startswith(prefix) and name not in self.used]


def charts_of(report: Report) -> list[Chart]:
    """All charts of a run that have points."""
    curves = Curves.of(report.metrics)
    found = [
        *_rewards(report, curves),
        *_evaluations(report),
        *_training(curves),
        *_cost(report, curves),
        *_other(curves),
    ]
    kept = [(chart, tuple(each for each in chart.series if each.points)) for chart in found]
    return [
        Chart(chart.section, chart.title, chart.axis, series, chart.range, chart.note)
        for chart, series in kept
        if series
    ]


def _rewards(report: Report, curves: Curves) -> Iterable[Chart]:
    names = [reward.name for reward in report.config.rewards]
    band = "The band is one standard deviation of the images of an iteration."
    combined = curves.series("combined reward", "reward/mean", "reward/std")
    yield Chart(REWARDS, "Training reward", "reward", (combined,), note=band)
    for name in names:
        single = curves.series(name, f"reward/{name}/mean", f"reward/{name}/std")
        if len(names) > 1:
            yield Chart(REWARDS, f"Reward {name}", "score", (single,), note=band)
        missing = [curves.series(key, f"reward/{name}/{key}") for key in ("failed", "unjudged")]
        counted = tuple(each for each in missing if any(value for _, value, _ in each.points))
        yield Chart(REWARDS, f"Images that {name} did not score", "images", counted, POSITIVE)
        for metric in curves.unused(f"reward/{name}/"):
            key = metric.removeprefix(f"reward/{name}/")
            yield Chart(REWARDS, f"{key}, reported by {name}", key, (curves.series(key, metric),))


def _evaluations(report: Report) -> Iterable[Chart]:
    note = "Fixed prompts and noises. The bars are 95 % intervals of the mean."
    rewards = dict.fromkeys(each.reward for each in report.evaluations)
    for reward in rewards:
        series = tuple(
            Series(each.prompts, _intervals(each.points), "95 % interval", sparse=True)
            for each in report.evaluations
            if each.reward == reward
        )
        yield Chart(EVALUATIONS, f"{reward} in evaluations", "score", series, note=note)
    measures = dict.fromkeys(name for reading in report.readings for name in reading.measures)
    for kind, title, axis in (
        ("held_out/", "{} (held-out reward)", "score"),
        ("picture/", "{} of the images (unrewarded)", "value"),
    ):
        for name in (name for name in measures if name.startswith(kind)):
            label = name.removeprefix(kind).replace("_", " ")
            values = [(each.step, each.measures[name]) for each in report.readings if name in each.measures]
            series = (Series(label, _intervals(values), "95 % interval", sparse=True),)
            yield Chart(EVALUATIONS, title.format(label), axis, series, note="Read by the guard; nothing trains it.")


def _intervals(values: Sequence[tuple[int, Measure]]) -> list[Point]:
    finite = {step: value for step, value in values if math.isfinite(value.mean)}
    return [
        (step, value.mean, INTERVAL * value.stderr if math.isfinite(value.stderr) else 0.0)
        for step, value in sorted(finite.items())
    ]


def _training(curves: Curves) -> Iterable[Chart]:
    def chart(title: str, axis: str, names: Mapping[str, str], range: str = FREE, note: str = "") -> Chart:
        return Chart(
            TRAINING, title, axis, tuple(curves.series(label, name) for name, label in names.items()), range, note
        )

    parts = {"loss/generator": "whole", "loss/reward": "reward", "loss/cfg": "guidance", "loss/kl": "reverse KL"}
    yield chart("Loss of the generator", "loss", parts)
    yield chart("Preference loss of the surrogate", "loss", {"loss/preference": "preference"})
    yield chart("Loss of the fake score", "loss", {"loss/fake": "fake score"})
    yield chart("Other losses", "loss", {name: name.removeprefix("loss/") for name in curves.unused("loss/")})
    norms = {name: name.removeprefix("grad_norm/") for name in curves.unused("grad_norm/")}
    yield chart("Gradient norms", "norm", norms, POSITIVE, "Before clipping.")
    yield chart(
        "Groups without signal",
        "fraction",
        {"zero_std_ratio": "groups"},
        FRACTION,
        "Groups whose images all have the same reward. They teach nothing.",
    )
    clipped = {"surrogate/clipped": "clipped", "surrogate/drifted": "drifted"}
    yield chart("Clipped and drifted images of the surrogate", "fraction", clipped, FRACTION)
    yield chart("Drift of the surrogate", "drift", {"surrogate/drift": "drift"})
    yield chart("Largest advantage", "advantage", {"advantage/max": "largest"}, POSITIVE)


def _cost(report: Report, curves: Curves) -> Iterable[Chart]:
    named = [f"time/{stage}" for stage in STAGES if f"time/{stage}" in curves.rows]
    total = curves.series("iteration", "time/iteration")
    stages = [*named, *(name for name in curves.unused("time/") if name not in named)]
    series = tuple(curves.series(name.removeprefix("time/"), name) for name in stages)
    yield Chart(COST, "Time of each stage", "seconds", series, POSITIVE)
    yield Chart(COST, "Time of an iteration", "seconds", (total,), POSITIVE)
    waits = curves.rows.get("time/score", {})
    idle = [(step, waits[step] / whole, 0.0) for step, whole, _ in total.points if step in waits and whole > 0]
    note = "The fraction of an iteration in which the training waits for rewards."
    yield Chart(COST, "Idle fraction", "fraction", (Series("idle", idle),), FRACTION, note)
    yield Chart(COST, "Speed", "images / second", (curves.series("speed", "images_per_second"),), POSITIVE)
    places = dict.fromkeys(place for usage in report.usage for place in usage.memory)
    memory = tuple(
        Series(place, [(step, value, 0.0) for step, value in sorted(_memory(report, place).items())])
        for place in places
    )
    yield Chart(COST, "Largest memory so far", "GB", memory, POSITIVE)


def _memory(report: Report, place: str) -> dict[int, float]:
    return {usage.step: usage.memory[place] for usage in report.usage if place in usage.memory}


def _other(curves: Curves) -> Iterable[Chart]:
    for name in curves.unused()[:MOST_OTHER]:
        if name != "guard/alarms":
            yield Chart(OTHER, name, "value", (curves.series(name, name),))


def chart_data(charts_of_runs: Sequence[Sequence[Chart]], names: Sequence[str]) -> list[dict[str, Any]]:
    """The charts of all runs as plain data. A single run has several curves in a chart, each named by its metric.

    With several runs, a chart has one metric and a curve for each run, so that runs are compared at a glance.
    """
    if len(charts_of_runs) == 1:
        return [_as_data(chart, [(0, each.name, each) for each in chart.series]) for chart in charts_of_runs[0]]
    names_of: dict[tuple[str, str], set[str]] = {}
    for chart in itertools.chain.from_iterable(charts_of_runs):
        names_of.setdefault((chart.section, chart.title), set()).update(each.name for each in chart.series)
    split: dict[tuple[str, str], tuple[Chart, list[tuple[int, str, Series]]]] = {}
    for run, charts in enumerate(charts_of_runs):
        for chart in charts:
            for series in chart.series:
                single = len(names_of[chart.section, chart.title]) == 1 and (
                    not series.sparse or series.name in chart.title
                )
                title = chart.title if single else f"{chart.title}: {series.name}"
                _, curves = split.setdefault((chart.section, title), (chart, []))
                curves.append((run, names[run], series))
    return [_as_data(chart, curves, title) for (_, title), (chart, curves) in split.items()]


def _as_data(chart: Chart, curves: Sequence[tuple[int, str, Series]], title: str | None = None) -> dict[str, Any]:
    return {
        "section": chart.section,
        "title": title or chart.title,
        "axis": chart.axis,
        "range": chart.range,
        "note": chart.note,
        "series": [_series_data(run, name, series) for run, name, series in curves],
    }


def _series_data(run: int, name: str, series: Series) -> dict[str, Any]:
    """A curve as data. A thinned one also has the means `m` of the values and `em` of the spreads, for smoothing."""
    steps, values, spreads = zip(*series.points, strict=True)
    kept = kept_points(values)
    means: dict[str, Any] = {}
    if len(kept) < len(values):
        means = {"m": kept_means(values, kept), "em": kept_means(spreads, kept) if series.spread else None}
        steps, values, spreads = (tuple(column[index] for index in kept) for column in (steps, values, spreads))
    return {
        "run": run,
        "name": name,
        "sparse": series.sparse,
        "x": list(steps),
        "y": [_short(value) for value in values],
        "spread": series.spread,
        "e": [_short(value) for value in spreads] if series.spread else None,
        **{name: [_short(value) for value in column] for name, column in means.items() if column is not None},
    }


def _short(value: float) -> float:
    """The value with six significant digits."""
    return float(f"{value:.6g}")
