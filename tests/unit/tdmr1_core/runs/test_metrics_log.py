"""The lines of a run that goes back: what is dropped, and that a crash meanwhile loses nothing."""

from __future__ import annotations

import json
import os

import pytest

from tdmr1_core import durable_files as storage
from tdmr1_core.errors import RunWarning
from tdmr1_core.runs import jsonl as lines
from tdmr1_core.runs.metrics_log import EVALUATIONS, GUARD, METRICS, Tracker

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
    monkeypatch.setattr(lines, "replace_durable", lambda *_: pytest.fail("it was written again"))
    tracker.go_back(3, evaluated=3)


@pytest.mark.parametrize("line", [b"\x00\x00", b"[]", b'{"step": 1e999}', b'{"step": "2"}', b"[" * 100_000])
@pytest.mark.parametrize("name", [METRICS, EVALUATIONS, GUARD])
def test_a_line_that_cannot_be_read_is_kept_aside_and_told(tracker, tmp_path, name, line):
    path = tmp_path / name
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line + b"\n" + b"".join(rest))
    with pytest.warns(RunWarning, match=rf"line 2 of {path} can't be read: moved to {name}.damaged"):
        tracker.go_back(2, evaluated=2)
    assert {METRICS: [1, 2], EVALUATIONS: [1, 1, 2, 2], GUARD: [1, 2]}[name] == steps(tmp_path, name)
    assert (tmp_path / f"{name}.damaged").read_bytes() == line + b"\n"


def test_a_new_file_and_its_name_reach_the_disk(tmp_path, monkeypatch):
    flushed: list[object] = []
    monkeypatch.setattr(storage, "flush_folder", flushed.append)
    storage.append_durable(tmp_path / METRICS, b"1\n")
    storage.append_durable(tmp_path / METRICS, b"2\n")
    assert flushed == [tmp_path]
    storage.make_durable_folder(tmp_path / "checkpoints")
    storage.make_durable_folder(tmp_path / "checkpoints")
    assert flushed == [tmp_path, tmp_path]


def test_tensorboard_forgets_what_a_resume_makes_again(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, last in ((1, 3), (3, 4)):  # it stopped after the second was saved, and before it was evaluated again
        tracker = Tracker(tmp_path, tensorboard=True)
        tracker.go_back(first - 1, evaluated=first - 2)
        for step in range(first, last + 1):
            tracker.metrics(step, {"reward/mean": step + first / 8})
        tracker.evaluations(last, [{"role": "generator_ema", "prompts": "count", "n": 4, "x/mean": 0.5}])
        tracker.close()
    board = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("reward/mean")]
    assert shown == [(1, 1.125), (2, 2.125), (3, 3.375), (4, 4.375)]
    assert [event.step for event in board.Scalars("evaluation/generator_ema/count/x/mean")] == [4]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_lines_are_dropped_loses_none(tracker, tmp_path, monkeypatch, call):
    def crash(*_):
        raise KeyboardInterrupt

    before = (tmp_path / METRICS).read_bytes()
    monkeypatch.setattr(os, call, crash)
    with pytest.raises(KeyboardInterrupt):
        tracker.go_back(1, evaluated=1)
    assert (tmp_path / METRICS).read_bytes() == before
