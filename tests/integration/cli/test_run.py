"""A run of two iterations from the command line: training, resume, samples, evaluation, report and export."""

import json
import re
import signal
import subprocess

import pytest
import yaml
from support.command_line import SMALL, small, start_tdmr1

pytestmark = pytest.mark.integration


def lines_of(path):
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_prints_its_results_and_the_next_command(trained):
    folder, done = trained
    assert [row["step"] for row in lines_of(folder / "metrics.jsonl")] == [1, 2]
    assert "iteration 2/2" in done.stderr
    assert f"next: tdmr1 evaluate {folder}" in done.stderr
    assert str(folder / "before_after.png") in done.stderr
    assert (folder / "before_after.png").is_file()
    assert "count-held-out" in done.stdout
    assert "before" in done.stdout
    assert "gain" in done.stdout


def test_the_recorded_config_can_be_trained_again(trained, tdmr1):
    folder, _ = trained
    done = tdmr1("train", folder / "config.yaml", "--dry-run")
    recorded = yaml.safe_load((folder / "config.yaml").read_text())
    recorded.pop("tdmr1")
    assert yaml.safe_load(done.stdout) == recorded
    assert "iteration: 2 groups × 4 images = 8 images; 1 process," in done.stderr
    assert "2 iterations, 16 images" in done.stderr


def test_an_interrupted_run_is_saved_and_can_be_resumed(packaged_model, tdmr1, tmp_path):
    folder = tmp_path / "run"
    arguments = [*small("evaluation.images=1"), "--iterations", 12, "--output", folder]
    process = start_tdmr1("train", *arguments, fresh=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("iteration 1/"):
                process.send_signal(signal.SIGINT)
                break
        printed = "".join(lines) + process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 130, printed
    assert f"hint: tdmr1 train --resume {folder}" in printed
    reached = int((folder / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert 1 <= reached < 12

    done = tdmr1("train", "--resume", folder)
    assert f"resuming after iteration {reached}" in done.stderr
    assert [row["step"] for row in lines_of(folder / "metrics.jsonl")] == list(range(1, 13))
    assert "count-held-out" in done.stdout


def test_sampling_a_run(trained, tdmr1, tmp_path):
    folder, _ = trained
    arguments = ["sample", folder, "--prompt", "two red circles", "--prompt", "a", "--images", 2, "--output", tmp_path]
    document = json.loads(tdmr1(*arguments, "--role", "start", "--json", fresh=True).stdout)
    assert [image["prompt"] for image in document["images"]] == ["two red circles"] * 2 + ["a"] * 2
    names = {path.name for path in tmp_path.iterdir()}
    drawn = [f"{word}-0{i}.png" for word in ("000-two-red-circles", "001-a") for i in (0, 1)]
    assert names == {*drawn, "grid.png", "metadata.jsonl"}
    rows = lines_of(tmp_path / "metadata.jsonl")
    assert [(row["file_name"], row["text"]) for row in rows] == [
        (name, image["prompt"]) for name, image in zip(drawn, document["images"], strict=True)
    ]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "[file-exists]" in tdmr1(*arguments, code=2).stderr
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_sampling_a_bare_pipeline_directory(packaged_model, tdmr1, tmp_path):
    document = json.loads(tdmr1("models", "info", "tiny-tdm", "--json").stdout)
    arguments = ["--prompt", "one blue square", "--role", "teacher", "--steps", 2, "--images", 1, "--output", tmp_path]
    done = tdmr1("sample", document["base"], *arguments)
    assert done.stdout == f"{tmp_path / '000-one-blue-square-00.png'}\n"
    assert (tmp_path / "000-one-blue-square-00.png").is_file()


def test_evaluating_a_run(trained, tdmr1):
    folder, _ = trained
    arguments = ["--images", 12, "--teacher-steps", 2, "--teacher-guidance", 1, "--teacher-guidance", 2]
    document = json.loads(tdmr1("evaluate", folder, *arguments, "--prompts", "count-held-out", "--json").stdout)
    assert document["iteration"] == 2
    (of_set,) = document["prompt_sets"]
    rows = [(row["role"], row["steps"], row["guidance"]) for row in of_set["rows"]]
    assert rows == [("teacher", 2, 1.0), ("teacher", 2, 2.0), ("student", 4, 1.0), ("trained", 4, 1.0)]
    means = {row["role"]: row["rewards"]["object_count"] for row in of_set["rows"]}
    gain = of_set["gain"]["object_count"]
    assert gain["n"] == means["trained"]["n"] == 12
    assert gain["mean"] == pytest.approx(means["trained"]["mean"] - means["student"]["mean"])


def test_evaluating_a_model_has_no_trained_row(packaged_model, tdmr1):
    done = tdmr1("evaluate", "tiny-tdm", "--images", 12, "--teacher-steps", 1, "--prompts", "count-held-out")
    assert "student" in done.stdout
    assert "trained" not in done.stdout


def test_reporting_on_a_run(trained, tdmr1, tmp_path):
    folder, _ = trained
    done = tdmr1("report", folder, "--output", tmp_path / "report.html", fresh=True)
    assert "2 of 2 iterations" in done.stderr
    assert "count-held-out" in done.stdout
    page = (tmp_path / "report.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page)[1])
    (images,) = data["images"]
    assert [frame["step"] for frame in images["grids"]["frames"]] == [0, 2]
    assert all(frame["scores"]["object_count"] for frame in images["grids"]["frames"])
    assert {(pair["before"]["step"], pair["after"]["step"]) for pair in images["pairs"]} == {(0, 2)}
    assert data["runs"][0]["facts"][-2][0] == "Machine"
    assert "Largest memory so far" in [chart["title"] for chart in data["charts"]]
    assert "picture/entropy" in page
    document = json.loads(tdmr1("report", folder, "--json").stdout)
    assert [step for step, _ in document["curves"]["reward/mean"]] == [1, 2]
    assert [point["step"] for point in document["evaluations"][0]["points"]] == [0, 2]


def test_exporting_a_run(trained, tdmr1, tmp_path):
    folder, _ = trained
    document = json.loads(tdmr1("export", folder, "--output", tmp_path / "lora", "--json").stdout)
    assert document["largest_difference"] <= 1
    assert (tmp_path / "lora" / "pytorch_lora_weights.safetensors").is_file()
    assert "[file-exists]" in tdmr1("export", folder, "--output", tmp_path / "lora", code=2).stderr


def test_a_probe_exits_with_1_unless_the_reward_rises(packaged_model, tdmr1):
    small = [*SMALL, "--pool", 1, "--updates", 1, "--images", 4, "--json"]
    done = tdmr1("probe", "tiny-tdm", *small, code=None, fresh=True)
    document = json.loads(done.stdout)
    assert [point["strength"] for point in document["points"]] == [0, 0.5, 1]
    assert done.returncode == (0 if document["passed"] else 1)


def test_distilling_exports_a_lora_to_train_from(packaged_model, tdmr1, tmp_path):
    folder = tmp_path / "run"
    settings = ("batch.groups=2", "batch.group_size=2", "evaluation.images=2", "saving.tensorboard=false")
    small = [*(part for setting in settings for part in ("--set", setting)), "--iterations", 1]
    done = tdmr1("distill", "--model", "tiny-tdm", *small, "--output", folder, "--quiet", fresh=True)
    lora = folder / "export" / "pytorch_lora_weights.safetensors"
    assert done.stdout == f"{lora}\n"
    written = lora.read_bytes()
    tdmr1("train", "--lora", lora, "--dry-run")
    resumed = tdmr1("distill", "--resume", folder, "--quiet")
    assert resumed.stdout == f"{lora}\n"
    assert f"the distillation is complete; its LoRA: {lora}\n" in resumed.stderr
    assert lora.read_bytes() == written


def test_doctor_finds_the_packaged_model(packaged_model, tdmr1):
    findings = {item["what"]: item for item in json.loads(tdmr1("doctor", "--json", fresh=True).stdout)}
    assert findings["model tiny-tdm"]["verdict"] == "ok"
    assert findings["threads"]["detail"].startswith("1 of")
