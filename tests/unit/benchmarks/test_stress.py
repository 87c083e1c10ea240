"""The stress test finds faults, keeps a journal, and names the command that repeats an item."""

from __future__ import annotations

import os
import time

import pytest
from stress.case import Case, Done
from stress.journal import Journal
from stress.result import write_result
from stress.scheduler import Part, Scheduler

pytestmark = pytest.mark.unit

FINE = "error: no such file [file-missing]\n\nhint: check the path\n"
ENDS = {
    "not allowed": (Done(3, "", FINE, 1.0), "exit code 3"),
    "a signal": (Done(-11, "", "", 1.0), "exit code -11"),
    "a hang": (Done(None, "", "", 9.0), "hangs"),
    "a traceback": (Done(0, "", "Traceback (most recent call last):\n", 1.0), "Traceback"),
    "an internal error": (Done(1, "", "hint: please report it\n", 1.0), "please report"),
    "no error": (Done(2, "", "warning: something\n", 1.0), "without an error"),
}


@pytest.fixture
def case(tmp_path, monkeypatch):
    monkeypatch.setattr("stress.case.children_of", lambda process: [])  # this process has children of other tests
    return Case("part", 0, 0, tmp_path, tmp_path)


@pytest.mark.parametrize(("done", "fault"), ENDS.values(), ids=ENDS)
def test_a_wrong_end_of_a_command_is_a_fault(case, done, fault):
    case.judge(done, "train")
    assert len(case.faults) == 1
    assert fault in case.faults[0]


@pytest.mark.parametrize("code", [0, 2])
def test_an_allowed_end_is_no_fault(case, code):
    case.judge(Done(code, "", FINE if code else "", 1.0), "train")
    assert (case.faults, case.codes) == ([], {str(code): 1})


def test_lost_iterations_are_faults(case, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step-000001\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 3}\n')
    case.check_saved(tmp_path, 1)
    assert case.faults == []
    case.check_saved(tmp_path, 2)
    assert len(case.faults) == 2


def leave_a_process(case):
    process = os.fork()
    if process == 0:
        if os.fork() == 0:
            time.sleep(60)
        os._exit(0)
    os.waitpid(process, 0)


def hang(case):
    time.sleep(60)


def succeed(case):
    case.codes["0"] += 1
    (case.shared / "runs").open("a").write("x")


def prepare(case):
    (case.folder / "runs").touch()


def run(folder, items, seed=4):
    journal = Journal(folder / "items.jsonl", seed)
    Scheduler(folder, seed, journal, 2).run(items)
    return journal.rows


def test_items_are_run_once_and_faults_name_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("stress.case.GRACE", 0.2)
    fine = Part("fine", succeed, seconds=1, prepare=prepare)
    items = [(fine, 0), (fine, 1), (Part("left", leave_a_process, seconds=1), 7)]
    items += [(Part("slow", hang, seconds=1, limit=0.3), 2)]
    rows = run(tmp_path, items)
    assert rows["fine", 0]["faults"] == rows["fine", 1]["faults"] == []
    assert "left 1 processes" in rows["left", 7]["faults"][0]
    assert "ended after" in rows["slow", 2]["faults"][0]

    assert run(tmp_path, items) == rows
    assert (tmp_path / "shared" / "fine" / "runs").read_text() == "xx"
    with pytest.raises(SystemExit, match="seed 4"):
        Journal(tmp_path / "items.jsonl", 5)

    text = write_result(tmp_path / "result.md", list(rows.values()), 3.0)
    assert "| fine | 2 | 2 | 0: 2 | 0 |" in text
    assert "2 items with faults" in text
    assert "--seed 4 --only left:7`" in text
