"""The process that calls the trackers: failures, blocking trackers, and what is not sent twice."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from tdmr1_core.runs.tracking import worker
from tdmr1_core.runs.tracking.adapters import ADAPTERS, Adapter, accepted_name
from tdmr1_core.runs.tracking.state import load_tracked_run, state_file

pytestmark = pytest.mark.unit


class Recorded(Adapter):
    """A tracker that keeps what it gets; subclasses fail."""

    def __init__(self, run, facts):
        super().__init__(run, facts)
        self.got: list[tuple] = []
        self.is_finished = False
        EVERY.append(self)

    def open(self):
        self.run.url = "https://tracker/run"

    def log(self, values, step):
        self.got.append((step, values))

    def log_image(self, name, path, step):
        self.got.append((step, name, path))

    def finish(self):
        self.is_finished = True


class Unreachable(Recorded):
    def open(self):
        raise SystemExit("no network\nmore")


class Refusing(Recorded):
    def log(self, values, step):
        if step in (1, 2):
            raise ValueError(f"step {step} is refused; the key is SECRET-KEY-1")
        super().log(values, step)


class Blocking(Recorded):
    def log(self, values, step):
        RELEASE.wait(30)


EVERY: list[Recorded] = []
RELEASE = threading.Event()


@pytest.fixture(autouse=True)
def trackers(monkeypatch):
    EVERY.clear()
    RELEASE.clear()
    monkeypatch.setenv("WANDB_API_KEY", "SECRET-KEY-1")
    kinds = {"good": Recorded, "unreachable": Unreachable, "refusing": Refusing, "blocking": Blocking}
    for name, adapter in kinds.items():
        monkeypatch.setitem(ADAPTERS, name, adapter)
    yield
    RELEASE.set()


def serve(folder: Path, names: list[str], *events: dict, closing_limit: float = 5.0) -> list[dict]:
    """What the process answers to these events."""
    opening = {"trackers": names, "folder": str(folder), "project": "p", "tags": [], "config": {}}
    lines = [{**opening, "closing_limit": closing_limit}, *events]
    answers: list[dict] = []
    worker.serve([json.dumps(line).encode() for line in lines], lambda **answer: answers.append(answer))
    return answers


def metrics(step: int) -> dict:
    return {"kind": "metrics", "step": step, "values": {"reward/mean": step / 4}}


def test_events_arrive_in_order_and_the_address_is_reported(tmp_path):
    image = {"kind": "samples", "step": 1, "name": "samples", "path": "grid.png"}
    answers = serve(tmp_path, ["good"], metrics(1), image, metrics(2))
    assert EVERY[0].got == [(1, {"reward/mean": 0.25}), (1, "samples", Path("grid.png")), (2, {"reward/mean": 0.5})]
    assert EVERY[0].is_finished
    assert answers == [
        {"tracker": "good", "url": "https://tracker/run"},
        {"tracker": "good", "lost": 0, "closed": True},
    ]


def test_a_resumed_run_keeps_its_id_and_sends_only_what_is_missing(tmp_path):
    serve(tmp_path, ["good"], metrics(1), metrics(2), metrics(3))
    evaluation = {"kind": "evaluations", "step": 2, "values": {"x": 1.0}}
    history = {"history": [metrics(1), metrics(2), evaluation]}
    serve(tmp_path, ["good"], history, metrics(3), metrics(4))
    first, second = EVERY
    assert [step for step, _ in first.got] == [1, 2, 3]
    assert second.got == [(2, {"x": 1.0}), (4, {"reward/mean": 1.0})]
    assert second.run.id == first.run.id
    assert second.run.started
    assert (second.run.name, second.run.sent) == (first.run.name, {"metrics": 4, "evaluations": 2})


def test_a_line_that_is_cut_ends_the_trackers_properly(tmp_path):
    opening = {"trackers": ["good"], "folder": str(tmp_path), "project": "p", "tags": [], "config": {}}
    lines = [
        json.dumps({**opening, "closing_limit": 5.0}).encode(),
        json.dumps(metrics(1)).encode(),
        b'{"history": [{"k',
    ]
    answers: list[dict] = []
    worker.serve(lines, lambda **answer: answers.append(answer))
    assert EVERY[0].is_finished
    assert answers[-1] == {"tracker": "good", "lost": 0, "closed": True}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id": "x"}', b'{"name": 1, "id": "x", "url": null, "sent": {}}'])
def test_a_damaged_record_begins_a_new_tracked_run(tmp_path, content):
    serve(tmp_path, ["good"], metrics(1))
    state_file(tmp_path, "good").write_bytes(content)
    damaged = load_tracked_run(tmp_path, "good")
    assert damaged.id != EVERY[0].run.id
    assert not damaged.started
    assert damaged.name.startswith(f"{tmp_path.name}-")


def test_a_tracker_that_fails_is_reported_once_and_stops_no_other(tmp_path):
    answers = serve(tmp_path, ["unreachable", "refusing", "good"], *map(metrics, range(1, 5)))
    by_name = {name: [each for each in answers if each["tracker"] == name] for name in ("unreachable", "refusing")}
    assert by_name["unreachable"] == [
        {"tracker": "unreachable", "failed": "cannot be started: no network"},
        {"tracker": "unreachable", "lost": 0, "closed": True},
    ]
    assert by_name["refusing"][1:] == [
        {
            "tracker": "refusing",
            "failed": "does not accept the metrics of iteration 1: step 1 is refused; the key is ***",
        },
        {"tracker": "refusing", "lost": 2, "closed": True},
    ]
    assert [len(each.got) for each in EVERY] == [0, 2, 4]


def test_a_tracker_that_blocks_loses_events_and_delays_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "QUEUED", 10)
    began = time.monotonic()
    answers = serve(tmp_path, ["blocking"], *map(metrics, range(1, 101)), closing_limit=0.5)
    assert time.monotonic() - began < 5
    lost = answers[-1]["lost"]
    assert answers[-1] == {"tracker": "blocking", "lost": lost, "closed": False}
    assert lost >= 98  # one is being sent, and one may have been taken before


@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("reward/count/mean", "reward/count/mean"),
        ("evaluation/generator//home/é/set.txt/x", "evaluation/generator/home/_/set.txt/x"),
        ("../..//", "_"),
        ("a" * 300, "a" * 250),
    ],
)
def test_names_are_those_that_every_tracker_accepts(name, accepted):
    assert accepted_name(name) == accepted
