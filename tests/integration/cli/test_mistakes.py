"""Errors that a user can correct: one error with its code, a hint, exit code 2, and no file is written or changed."""

import re

import pytest

pytestmark = pytest.mark.integration


def error_of(done):
    """The message with its code, and the hint of an error; stdout must be empty."""
    assert done.stdout == ""
    found = re.search(r"(?s)error: (.+?)\n\nhint: (.+)", done.stderr)
    assert found, done.stderr
    return found[1], found[2]


@pytest.mark.parametrize(
    ("arguments", "code", "name", "hint"),
    [
        (["--reward", "object_cuont"], "reward-unknown", "'object_cuont'", "'object_count'"),
        (["--model", "tiny-tmd"], "model-unknown", "'tiny-tmd'", "'tiny-tdm'"),
        (["--preset", "tinny"], "preset-unknown", "'tinny'", "'tiny'"),
        (
            ["--set", "generator.learning_rte=1"],
            "setting-unknown",
            "generator.learning_rte",
            "'generator.learning_rate'",
        ),
        (["--set", "batch.groups=many"], "setting-invalid", "batch.groups", "tdmr1 config show"),
        (["--set", "batch.groups"], "assignment-invalid", "'batch.groups'", "--set generator.learning_rate=1e-4"),
        (["--set", "rewards.3.weight=1"], "assignment-invalid", "item 3", "from 0"),
        (["--reward", "object_count:heavy"], "reward-source", "'heavy'", "object_count:0.5"),
        (["--iterations", "0"], "setting-invalid", "iterations", "tdmr1 config show"),
        (["--iterations", "soon"], "usage", "--iterations", "tdmr1 train --help"),
        (["--itertions", "2"], "usage", "--itertions", "'--iterations'"),
        (["--model-path", "nowhere"], "model-incomplete", "nowhere", "save_pretrained"),
        (["missing.yaml"], "config-unreadable", "missing.yaml", "path"),
        (["--resume", "."], "run-folder-missing", "config.yaml", "--output"),
        (["--resume", ".", "--seed", "5"], "option-conflict", "--resume", "--output"),
        (["--prompts", "cuont", "--dry-run"], "prompts-unknown", "'cuont'", "'count'"),
    ],
)
def test_wrong_arguments_of_train_are_refused(tdmr1, tmp_path, arguments, code, name, hint):
    found = error_of(tdmr1("train", *arguments, cwd=tmp_path, code=2))
    assert found[0].endswith(f" [{code}]")
    assert name in found[0]
    assert hint in found[1]
    assert list(tmp_path.iterdir()) == []


def test_a_misspelled_command_suggests_the_nearest(tdmr1):
    message, hint = error_of(tdmr1("trian", code=2))
    assert "'trian'" in message
    assert message.endswith(" [usage]")
    assert "'train'" in hint


def test_several_mistakes_are_reported_at_once(tdmr1, tmp_path):
    arguments = ["--reward", "object_cuont", "--model", "tiny-tmd", "--preset", "tinny", "--set", "sed=1"]
    message, hint = error_of(tdmr1("train", *arguments, cwd=tmp_path, code=2))
    assert message.endswith(" [several-errors]")
    for name in ("object_cuont", "tiny-tmd", "tinny", "sed"):
        assert re.search(rf"\b{name}\b", message)
    for name in ("object_count", "tiny-tdm", "tiny", "seed"):
        assert f"'{name}'" in hint


def test_all_mistakes_in_a_config_file_are_reported(tdmr1, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("batch: {grups: 2}\nseed: often\n")
    message, hint = error_of(tdmr1("train", path, cwd=tmp_path, code=2))
    assert message.endswith(" [setting-invalid]")
    assert "batch.grups" in message
    assert "seed" in message
    assert "'batch.groups'" in hint
    assert "batch.grups" in error_of(tdmr1("config", "validate", path, code=2))[0]


def test_an_output_that_cannot_be_written_is_reported(tdmr1, tmp_path):
    (tmp_path / "file").write_text("mine")
    for verb in (["train"], ["distill"], ["sample", "tiny-tdm", "--prompt", "two red circles"]):
        message, hint = error_of(tdmr1(*verb, "--output", tmp_path / "file" / "run", code=2))
        assert "[not-writable]" in message
        assert "--output" in hint
    assert (tmp_path / "file").read_text() == "mine"


def test_a_used_run_folder_is_refused_and_unchanged(tdmr1, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 3\n")
    message, hint = error_of(tdmr1("train", "--output", run, code=2))
    assert "[run-folder-used]" in message
    assert "checkpoint" in hint
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run / "config.yaml").read_text() == "seed: 3\n"


def test_a_run_without_a_checkpoint_cannot_be_resumed(tdmr1, tmp_path):
    (tmp_path / "config.yaml").write_text("rewards: [{name: object_count}]\n")
    assert "[checkpoint-missing]" in error_of(tdmr1("train", "--resume", tmp_path, "--quiet", code=2))[0]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\n \n", "[prompts-empty]"),
        (b"\xff\xfe\x00\x89PNG", "[prompts-unreadable]"),
        (b'[{"prompt": "a cat"}]', "[prompts-unreadable]"),
    ],
)
def test_a_prompt_file_without_prompts_is_refused(tdmr1, tmp_path, content, code):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    output = tmp_path / "run"
    assert code in error_of(tdmr1("train", "--prompts", path, "--output", output, "--quiet", "--dry-run", code=2))[0]
    assert not output.exists()


def test_a_prompt_file_is_checked_before_weights_are_loaded(tdmr1, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("")
    arguments = ["--prompts", path, "--output", tmp_path / "run", "--model-path", tmp_path / "model", "--quiet"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    assert "[prompts-empty]" in error_of(tdmr1("train", *arguments, code=2))[0]
    assert not (tmp_path / "run").exists()


def test_a_target_that_is_neither_a_run_nor_a_model_is_refused(tdmr1, tmp_path):
    assert "[target-unknown]" in error_of(tdmr1("evaluate", "runs/nothing", cwd=tmp_path, code=2))[0]
    assert "[run-folder-missing]" in error_of(tdmr1("export", tmp_path, code=2))[0]
