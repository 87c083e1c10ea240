"""A report has the contents of the run's log files, as data that no text of a run can leave."""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import shutil
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from PIL import Image
from support.errors import warns

from tdmr1_cli.main import main
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import dump
from tdmr1_core.errors import RunWarning
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.evaluation.guard import GuardReading
from tdmr1_core.runs.metrics_log import RunLog
from tdmr1_core.runs.output.live_report import LiveData
from tdmr1_core.runs.output.report import read_report
from tdmr1_core.runs.output.report_page import PAGE, page_data, report_page

pytestmark = pytest.mark.unit
ALARM = "jpeg size rose from 1 to 2 (+4.0 deviations) while entropy fell from 3 to 1 (-2.0 deviations)"


def reading(step: int, entropy: float, *alarms: str) -> GuardReading:
    measures = {"reward/jpeg_size": Measure(float(step), 0.01, 64), "picture/entropy": Measure(entropy, 0.125, 64)}
    return GuardReading(step, measures, alarms)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four iterations, one of them incomplete, two evaluations, an alarm, a resume, and a truncated line."""
    config = RunConfig.model_validate(
        {"rewards": [{"name": "jpeg_size"}], "iterations": 4, "prompts": {"train": "<script>alert(1)</script>"}}
    )
    header = {"versions": {"torch": "2.13.0"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"tdmr1": header, **dump(config)}))
    tracker = RunLog(tmp_path, tensorboard=False)
    for step in range(1, 5):
        norms = {f"grad_norm/{role}": 1.0 for role in ("fake", "surrogate", "generator") if (role, step) != ("fake", 3)}
        broken = {"not_finite/fake": 2.0} if step == 3 else {}
        tracker.metrics(step, {"reward/mean": step / 10, "reward/jpeg_size/failed": 1.0, **norms, **broken})
    for step, mean in ((0, 0.25), (4, 0.75)):
        values = {"jpeg_size/mean": mean, "jpeg_size/stderr": 0.03125, "n": 64}
        tracker.evaluations(step, [{"role": "generator_ema", "prompts": "count", **values}])
    for each in (reading(0, 3.0), reading(4, 1.0, ALARM)):
        tracker.guard(each.step, each.row())
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "rew')
    (tmp_path / "resumes.jsonl").write_text(
        json.dumps({"checkpoint": "step-000002", "changes": {"saving.keep": [2, 5]}}) + "\n"
    )
    (tmp_path / "resources.jsonl").write_text(json.dumps({"step": 1, "time": 1.8e9, "memory": {"process": 0.5}}) + "\n")
    return tmp_path


class ParsedPage(HTMLParser):
    """The references of a page, and the data that its script shows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(page)
        self.data = json.loads(next(text for text in self.scripts if text.startswith("{")))

    def handle_starttag(self, tag, attrs):
        self._in_script = tag == "script"
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        self.scripts += [data] if self._in_script else []


def test_the_log_files_of_a_run_are_read(folder):
    report = read_report(folder)
    assert report.iterations == 4
    assert report.curves == {"reward/mean": [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]}
    ((first, before), (last, after)) = report.evaluations[0].points
    assert (first, before.mean, last, after.mean, after.n) == (0, 0.25, 4, 0.75, 64)
    assert report.alarms == [(4, ALARM)]
    (rewarded, _), (entropy, too_far) = report.drifts
    assert (rewarded.name, entropy.name, too_far) == ("reward/jpeg_size", "picture/entropy", True)
    assert entropy.size == -2.0  # from 3 to 1; the deviation of single images is 0.125 * sqrt(64) = 1
    assert report.skipped == {
        "iterations without an update of the fake": 1,
        "updates of the fake that were not finite": 2,
        "images that jpeg_size failed on": 4,
    }
    assert report.settings["iterations"] == 4
    assert report.settings["prompts.train"] == "<script>alert(1)</script>"
    assert "generator.learning_rate" not in report.settings, "it is at its default"


def test_the_page_is_complete_and_has_no_external_files(folder):
    Image.new("RGB", (30, 20)).save(folder / "before_after.png")
    page = ParsedPage(report_page([read_report(folder)], folder / "report.html"))
    assert page.references == []
    (run,) = page.data["runs"]
    assert run["alarms"] == [{"step": 4, "text": ALARM}]
    assert run["continuations"] == [2]
    cells = {
        cell for tables in page.data["tables"].values() for table in tables for row in table["rows"] for cell in row
    }
    for text in ("0.250 ± 0.061", "0.750 ± 0.061", "step-000002", "saving.keep: 2 → 5", "-2.00", "too far", "2.13.0"):
        assert text in cells, text
    assert "<script>alert(1)</script>" in cells
    assert len(page.scripts) == 5, "the data, the library, and three scripts of the page"
    assert [chart["title"] for chart in page.data["charts"]][:2] == [
        "Training reward",
        "Images that jpeg_size did not score",
    ]
    (whole,) = page.data["images"][0]["pairs"]
    assert (whole["whole"]["width"], whole["whole"]["height"]) == (30, 20)
    assert base64.b64decode(page.data["files"][0])[8:12] == b"WEBP"


@pytest.mark.parametrize(("weight", "best"), [(1.0, "0.750 (4)"), (-1.0, "0.250 (0)")])
def test_the_best_evaluation_is_the_lowest_one_if_training_reduces_the_reward(folder, weight, best):
    path = folder / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["rewards"][0]["weight"] = weight
    path.write_text(yaml.safe_dump(tree))
    (table,) = page_data([read_report(folder)])["tables"]["evaluations"]
    assert dict(zip(table["columns"], table["rows"][0], strict=True))["best"] == best


def test_links_are_relative_to_the_page(folder, tmp_path):
    (folder / "export").mkdir()
    (folder / "tensorboard").mkdir()
    page = ParsedPage(report_page([read_report(folder)], folder / "pages" / "report.html"))
    links = page.data["runs"][0]["links"]
    assert [link["href"] for link in links] == ["../export", "../tensorboard"]
    assert links[1]["command"] == f"tensorboard --logdir {folder / 'tensorboard'}"


def test_the_page_has_no_secrets_and_no_control_characters(folder):
    text = (
        (folder / "config.yaml").read_text().replace("<script>alert(1)</script>", "http://user:hunter2@host/a\u202eb")
    )
    (folder / "config.yaml").write_text(text)
    page = report_page([read_report(folder)], folder / "report.html")
    shown = json.dumps(ParsedPage(page).data["tables"]["settings"], ensure_ascii=False)
    assert "@host/a\\\\u202eb" in shown, "the character is escaped as text"
    assert "\u202e" not in shown
    assert "hunter2" not in page


def test_a_folder_that_grows_is_read_again(folder):
    live = LiveData([folder])
    first = json.loads(live.answer(""))
    assert first["data"]["charts"]
    assert json.loads(live.answer(first["version"])) == {"version": first["version"]}
    RunLog(folder, tensorboard=False).evaluations(5, [{"prompts": "count", "n": 1, "x/mean": 1.0, "x/stderr": 0.0}])
    again = json.loads(live.answer(first["version"]))
    assert again["version"] != first["version"]
    assert "x in evaluations" in [chart["title"] for chart in again["data"]["charts"]]


def test_vendored_files_are_those_that_were_recorded():
    folder = PAGE / "uplot"
    record = json.loads((folder / "version.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*record["sha256"], "version.json"}
    for name, expected in record["sha256"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected, name
    assert f"(v{record['version']})" in (folder / "uPlot.iife.min.js").read_text()[:100]
    assert "MIT License" in (folder / "LICENSE").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 200_000


def test_several_runs_have_one_page_and_one_document(folder, tmp_path_factory, capsys, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(folder, elsewhere / "second")
    monkeypatch.chdir(elsewhere)
    assert main(["report", str(folder), "second"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "report.html"
    names = [run["name"] for run in ParsedPage((elsewhere / "report.html").read_text()).data["runs"]]
    assert names == [folder.name, "second"]
    assert main(["report", str(folder), "second", "--json"]) == 0
    assert [run["iterations"] for run in json.loads(capsys.readouterr().out)["runs"]] == [4, 4]


def test_a_live_page_is_no_file(folder, capsys):
    assert main(["report", str(folder), "--watch", "--output", "page.html"]) == 2
    assert "[option-conflict]" in capsys.readouterr().err


def test_the_command_prints_a_summary(folder, capsys):
    assert main(["report", str(folder)]) == 0
    printed = capsys.readouterr()
    assert f"warning: guard alarm in iteration 4: {ALARM}" in printed.err
    assert "continued 1 times, the last time from step-000002" in printed.err
    assert "0.250 ± 0.031" in printed.out
    assert printed.out.splitlines()[-1] == str(folder / "report.html")
    written = ParsedPage((folder / "report.html").read_text()).data
    expected = page_data([read_report(folder)], folder / "report.html")
    assert {**written, "written": ""} == json.loads(json.dumps({**expected, "written": ""}))


def test_a_run_without_log_files_has_a_report(folder, capsys):
    for name in ("metrics", "evaluations", "guard", "resources", "resumes"):
        (folder / f"{name}.jsonl").unlink()
    assert main(["report", str(folder)]) == 0
    assert "0 of 4 iterations" in capsys.readouterr().err


def test_any_other_folder_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "[run-folder-missing]" in capsys.readouterr().err
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
    "resources": [b'{"step": 1}', b'{"step": 1, "time": "x", "memory": {}}', b'{"step": 1, "time": 1, "memory": 5}'],
    "resumes": [b'{"checkpoint": "step-000001"}', b'{"checkpoint": "step-000001", "changes": {"x": 5}}'],
}


@pytest.mark.parametrize(
    ("name", "line"), [(name, line) for name in OF_ANOTHER_SHAPE for line in (*UNREADABLE, *OF_ANOTHER_SHAPE[name])]
)
def test_unreadable_lines_are_counted_and_all_others_are_shown(folder, capsys, name, line):
    """Lines after an unreadable one are read, too."""
    path = folder / f"{name}.jsonl"
    path.write_bytes(line + b"\n" + path.read_bytes())
    with warns("record-damaged", path=str(path), lines=[1]) as warned:
        assert main(["report", str(folder)]) == 0
    assert len(warned) == 1
    printed = capsys.readouterr()
    for shown in (
        "4 of 4 iterations",
        f"warning: guard alarm in iteration 4: {ALARM}",
        "the last time from step-000002",
    ):
        assert shown in printed.err
    assert "0.250 ± 0.031" in printed.out
    assert "0.750 ± 0.031" in printed.out


@pytest.mark.parametrize("name", ["metrics", "evaluations", "guard", "resources", "resumes"])
@pytest.mark.parametrize("cut", [b"\xff", b'{"step": 5, "', b"\x00" * 99])
def test_a_line_that_a_crash_truncated_is_skipped_without_a_warning(folder, name, cut):
    with (folder / f"{name}.jsonl").open("ab") as file:
        file.write(cut)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunWarning)
        assert main(["report", str(folder)]) == 0


def test_a_warning_lists_only_the_first_lines(folder):
    (folder / "guard.jsonl").write_bytes(b"{}\n" * 9 + (folder / "guard.jsonl").read_bytes())
    with warns("record-damaged", path=str(folder / "guard.jsonl"), lines=list(range(1, 10))) as warned:
        read_report(folder)
    assert "(1, 2, 3, 4, 5, …)" in str(warned[0].message)


@pytest.mark.parametrize("header", [5, "x", [1], {"versions": "abc"}, {"versions": [1]}, {"versions": {5: None}}])
def test_a_header_that_no_run_wrote_is_refused(folder, header, capsys):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "tdmr1": header}))
    assert main(["report", str(folder)]) == 2
    assert "[config-incomplete]" in capsys.readouterr().err


@pytest.mark.parametrize("not_finite", ["Infinity", "NaN", "-Infinity", "1e308"])
def test_counters_that_are_not_finite_are_ignored(folder, not_finite):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'\n{{"step": 5, "not_finite/fake": {not_finite}, "reward/jpeg_size/failed": {not_finite}}}\n')
    report = read_report(folder)
    assert report.skipped["updates of the fake that were not finite"] == 2
    assert report.skipped["images that jpeg_size failed on"] == 4


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def become_a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


OBSTACLES = [
    (loop, "metrics.jsonl", "link-outside"),
    (loop, "elsewhere", "link-outside"),
    (pipe, "metrics.jsonl", "link-outside"),
    (become_a_folder, "guard.jsonl", "record-damaged"),
    (become_a_folder, "report.html", "not-writable"),
]


@pytest.mark.parametrize(("damage", "name", "code"), OBSTACLES)
def test_other_entries_in_the_place_of_a_file_are_refused(folder, capsys, damage, name, code):
    damage(folder / name)
    assert main(["report", str(folder)]) == 2
    printed = capsys.readouterr().err.partition("error: ")[2]
    assert f" [{code}]\n" in printed
    assert str(folder / name) in printed
    assert "\n\nhint: " in printed


def test_an_output_that_is_a_folder_is_refused(folder, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    assert main(["report", str(folder), "--output", str(tmp_path / "there")]) == 2
    printed = capsys.readouterr().err
    assert "[not-writable]" in printed
    assert f"hint: move {tmp_path}/there to another place" in printed


def test_a_full_disk_keeps_the_former_report(folder, tmp_path_factory, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path_factory.mktemp("out") / "report.html"
    file.write_text("former")
    monkeypatch.setattr(os, "fsync", full)
    assert main(["report", str(folder), "--output", str(file)]) == 2
    assert f"error: {file} cannot be written: No space left on device" in capsys.readouterr().err
    assert [path.read_text() for path in file.parent.iterdir()] == ["former"]
