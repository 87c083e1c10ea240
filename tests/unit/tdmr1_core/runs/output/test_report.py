"""A report tells what the run's files hold: numbers from them, every alarm, and nothing that a name smuggles in."""

from __future__ import annotations

import json
import os
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from tdmr1_cli.main import main
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.errors import RunWarning
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.evaluation.guard import GuardReading
from tdmr1_core.runs.metrics_log import Tracker
from tdmr1_core.runs.output.report import read_report
from tdmr1_core.runs.output.report_page import report_page

pytestmark = pytest.mark.unit
ALARM = "jpeg size rose from 1 to 2 (+4.0 deviations) while entropy fell from 3 to 1 (-2.0 deviations)"


def look(step: int, entropy: float, *alarms: str) -> GuardReading:
    measures = {"reward/jpeg_size": Measure(float(step), 0.01, 64), "picture/entropy": Measure(entropy, 0.125, 64)}
    return GuardReading(step, measures, alarms)


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
    (rewarded, _), (entropy, too_far) = report.drifts
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


NESTED = b'{"step": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
UNREADABLE = [
    b"{}",
    b"[]",
    b"5",
    b'{"step": 1e999}',
    b'{"step": true}',
    b"\x00\x00",
    b"\xff",
    b'{"\\ud800": 1}',
    NESTED,
]
OF_ANOTHER_SHAPE = {
    "metrics": [
        b'{"step": 1, "reward/mean": "x"}',
        b'{"step": -1}',
        b'{"step": 1, "reward/mean": 1' + b"0" * 400 + b"}",
    ],
    "evaluations": [
        b'{"step": 0, "n": 1, "prompts": "count", "x/mean": 1}',
        b'{"step": 0, "x/mean": 1, "x/stderr": 0}',
    ],
    "guard": [b'{"step": 0}', b'{"step": 0, "n": 5, "alarms": []}', b'{"step": 0, "n": {"x": 1}, "alarms": []}'],
    "resumes": [b'{"checkpoint": "step-000001"}', b'{"checkpoint": "step-000001", "changes": {"x": 5}}'],
}


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name in OF_ANOTHER_SHAPE for line in (*UNREADABLE, *OF_ANOTHER_SHAPE[name])]
)
def test_lines_that_cannot_be_read_are_counted_and_everything_else_is_told(folder, capsys, name, line):
    """Wherever they are: nothing after them is lost."""
    path = folder / f"{name}.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with pytest.warns(RunWarning) as warned:
        assert main(["report", str(folder)]) == 0
    assert [str(each.message) for each in warned] == [f"line 1 of {path} can't be read: left out"]
    told = capsys.readouterr()
    for shown in ("4 of 4 iterations", f"warning: guard, iteration 4: {ALARM}", "the last time from step-000002"):
        assert shown in told.err
    assert "0.250 ± 0.031" in told.out
    assert "0.750 ± 0.031" in told.out


@pytest.mark.parametrize("name", ["metrics", "evaluations", "guard", "resumes"])
@pytest.mark.parametrize("cut", [b"\xff", b'{"step": 5, "', b"\x00" * 99])
def test_a_line_that_a_crash_has_cut_short_is_nothing_to_tell(folder, name, cut):
    with (folder / f"{name}.jsonl").open("ab") as file:
        file.write(cut)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunWarning)
        assert main(["report", str(folder)]) == 0


def test_many_lines_are_counted_and_a_few_named(folder):
    (folder / "guard.jsonl").write_bytes(b"{}\n" * 9 + (folder / "guard.jsonl").read_bytes())
    told = rf"^9 lines of {folder}/guard.jsonl can't be read \(1, 2, 3, 4, 5, …\): left out$"
    with pytest.warns(RunWarning, match=told):
        read_report(folder)


@pytest.mark.parametrize("header", [5, "x", [1], {"versions": "abc"}, {"versions": [1]}, {"versions": {5: None}}])
def test_a_header_that_no_run_has_written_is_a_mistake(folder, header, capsys):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "tdmr1": header}))
    assert main(["report", str(folder)]) == 2
    assert "is not what a run writes there" in capsys.readouterr().err


@pytest.mark.parametrize("not_finite", ["Infinity", "NaN", "-Infinity", "1e308"])
def test_numbers_that_are_not_finite_count_nothing(folder, not_finite):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'\n{{"step": 5, "not_finite/fake": {not_finite}, "reward/jpeg_size/failed": {not_finite}}}\n')
    report = read_report(folder)
    assert report.left_out["updates of the fake that were not finite"] == 2
    assert report.left_out["images that jpeg_size failed on"] == 4


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


IN_THE_WAY = [
    (loop, "metrics.jsonl", "metrics.jsonl is a link that leads to itself"),
    (loop, "elsewhere", "elsewhere is a link that leads to itself"),
    (pipe, "metrics.jsonl", "metrics.jsonl is neither a file nor a folder"),
    (become_a_folder, "guard.jsonl", "guard.jsonl can't be read: Is a directory"),
    (become_a_folder, "report.html", "can't be written: Is a directory"),
]


@pytest.mark.parametrize(("damage", "name", "told"), IN_THE_WAY)
def test_what_is_no_file_is_refused(folder, capsys, damage, name, told):
    damage(folder / name)
    assert main(["report", str(folder)]) == 2
    said = capsys.readouterr().err.partition("error: ")[2]
    assert told in said
    assert "\n\nhint: " in said


def test_an_output_that_is_a_folder_is_refused(folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert main(["report", str(folder), "--output", str(tmp_path / "there")]) == 2
    assert capsys.readouterr().err.endswith(f"hint: {tmp_path}/there is in the way: move it elsewhere\n")
