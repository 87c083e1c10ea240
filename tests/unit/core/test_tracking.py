"""The lines of a run that goes back: what is dropped, and that a crash meanwhile loses nothing."""

from __future__ import annotations

import json
import os

import pytest

from tdmr1_core.runs import lines
from tdmr1_core.runs.tracking import EVALUATIONS, GUARD, METRICS, Tracker

pytestmark = pytest.mark.unit


@pytest.fixture
def tracker(tmp_path) -> Tracker:
    made = Tracker(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        made.metrics(step, {"reward/mean": step / 8})
        made.evaluations(step, [{"prompts": name, "n": 4} for name in ("one", "other")])
        made.guard(step, {"alarms": []})
    return made


def steps(folder, name: str) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).read_bytes().splitlines()]


def test_metrics_and_evaluations_go_back_each_to_its_own_iteration(tracker, tmp_path):
    tracker.go_back(2, evaluated=1)
    assert steps(tmp_path, METRICS) == [1, 2]
    assert steps(tmp_path, EVALUATIONS) == [1, 1]
    assert steps(tmp_path, GUARD) == [1]


def test_a_line_that_was_cut_short_is_dropped_and_the_next_is_a_line_of_its_own(tracker, tmp_path):
    with (tmp_path / METRICS).open("ab") as file:
        file.truncate((tmp_path / METRICS).stat().st_size - 1)  # the line is whole, its end is not
    with (tmp_path / GUARD).open("ab") as file:
        file.write(b'{"step": 3, "al')
    tracker.go_back(3, evaluated=3)
    tracker.metrics(4, {})
    assert steps(tmp_path, METRICS) == [1, 2, 3, 4]
    assert steps(tmp_path, GUARD) == [1, 2, 3]


def test_nothing_is_written_where_nothing_is_dropped(tracker, monkeypatch):
    monkeypatch.setattr(lines, "replace_lasting", lambda *_: pytest.fail("it was written again"))
    tracker.go_back(3, evaluated=3)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_lines_are_dropped_loses_none(tracker, tmp_path, monkeypatch, call):
    def crash(*_):
        raise KeyboardInterrupt

    before = (tmp_path / METRICS).read_bytes()
    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        tracker.go_back(1, evaluated=1)
    assert (tmp_path / METRICS).read_bytes() == before
