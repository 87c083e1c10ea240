"""A report tells what the run's files hold: numbers from them, every alarm, and nothing that a name smuggles in."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tdmr1_cli.main import main
from tdmr1_core.config import RunConfig
from tdmr1_core.configure import dump
from tdmr1_core.runs.evaluate import Measure
from tdmr1_core.runs.guard import Look
from tdmr1_core.runs.report import read_report
from tdmr1_core.runs.report_page import report_page
from tdmr1_core.runs.tracking import Tracker

pytestmark = pytest.mark.unit
ALARM = "jpeg size rose from 1 to 2 (+4.0 deviations) while entropy fell from 3 to 1 (-2.0 deviations)"


def look(step: int, entropy: float, *alarms: str) -> Look:
    measures = {"reward/jpeg_size": Measure(float(step), 0.01, 64), "picture/entropy": Measure(entropy, 0.125, 64)}
    return Look(step, measures, alarms)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four iterations of which one is incomplete, two evaluations, an alarm, a continuation, and a line cut short."""
    config = RunConfig.model_validate(
        {"rewards": [{"name": "jpeg_size"}], "iterations": 4, "prompts": {"train": "<script>alert(1)</script>"}}
    )
    header = {"versions": {"torch": "2.13.0"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"tdmr1": header, **dump(config)}))
    tracker = Tracker(tmp_path, tensorboard=False)
    for step in range(1, 5):
        norms = {f"grad_norm/{role}": 1.0 for role in ("fake", "surrogate", "generator") if (role, step) != ("fake", 3)}
        broken = {"not_finite/fake": 2.0} if step == 3 else {}
        tracker.metrics(step, {"reward/mean": step / 10, "reward/jpeg_size/failed": 1.0, **norms, **broken})
    for step, mean in ((0, 0.25), (4, 0.75)):
        values = {"jpeg_size/mean": mean, "jpeg_size/stderr": 0.03125, "n": 64}
        tracker.evaluations(step, [{"role": "generator_ema", "prompts": "count", **values}])
    for each in (look(0, 3.0), look(4, 1.0, ALARM)):
        tracker.guard(each.step, each.row())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    (tmp_path / "resumes.jsonl").write_text(
        json.dumps({"checkpoint": "step-000002", "changes": {"saving.keep": [2, 5]}}) + "\n"
    )
    return tmp_path


class Seen(HTMLParser):
    """The tags of a page, whatever it refers to, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)


def test_what_a_run_left_is_read(folder):
    report = read_report(folder)
    assert report.iterations == 4
    assert report.curves == {"reward/mean": [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]}
    ((first, before), (last, after)) = report.evaluations[0].points
    assert (first, before.mean, last, after.mean, after.n) == (0, 0.25, 4, 0.75, 64)
    assert report.alarms == [(4, ALARM)]
    (rewarded, _), (entropy, too_far) = report.departures
    assert (rewarded.name, entropy.name, too_far) == ("reward/jpeg_size", "picture/entropy", True)
    assert entropy.size == -2.0  # from 3 to 1, where the deviation of single pictures is 0.125 * sqrt(64) = 1
    assert report.left_out == {
        "iterations without an update of the fake": 1,
        "updates of the fake that were not finite": 2,
        "images that jpeg_size failed on": 4,
    }
    assert report.settings["iterations"] == 4
    assert report.settings["prompts.train"] == "<script>alert(1)</script>"
    assert "generator.learning_rate" not in report.settings, "it is at its default"


def test_the_page_holds_it_all_and_needs_nothing_else(folder):
    (folder / "before_after.png").write_bytes(b"picture")
    seen = Seen(report_page(read_report(folder)))
    assert f"Guard, iteration 4: {ALARM}" in seen.text
    for told in ("0.250 ± 0.031", "0.750 ± 0.031", "step-000002", "saving.keep: 2 → 5", "-2.00", "too far", "2.13.0"):
        assert told in seen.text, told
    assert seen.tags.count("svg") == 2
    assert seen.references == ["data:image/png;base64,cGljdHVyZQ=="]
    assert "script" not in seen.tags
    assert "<script>alert(1)</script>" in seen.text


def test_the_command_prints_the_short_of_it(folder, capsys):
    assert main(["report", str(folder)]) == 0
    told = capsys.readouterr()
    assert f"warning: guard, iteration 4: {ALARM}" in told.err
    assert "continued 1 times, the last time from step-000002" in told.err
    assert "0.250 ± 0.031" in told.out
    assert told.out.splitlines()[-1] == str(folder / "report.html")
    assert (folder / "report.html").read_text() == report_page(read_report(folder))


def test_a_run_that_has_only_begun_has_a_report(folder, capsys):
    for name in ("metrics", "evaluations", "guard", "resumes"):
        (folder / f"{name}.jsonl").unlink()
    assert main(["report", str(folder)]) == 0
    assert "0 of 4 iterations" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path} is not a run folder: it has no config.yaml\n\nhint: ")
    assert not list(tmp_path.iterdir())
