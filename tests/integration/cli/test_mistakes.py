"""Errors that a user can correct: one message and a hint, exit code 2, and nothing is lost."""

import re

import pytest

pytestmark = pytest.mark.integration


def error_of(done):
    """The message and the hint of an error; stdout must be empty."""
    assert done.stdout == ""
    found = re.search(r"(?s)error: (.+?)\n\nhint: (.+)", done.stderr)
    assert found, done.stderr
    return found[1], found[2]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--reward", "object_cuont"], "there is no reward 'object_cuont'", "did you mean 'object_count'?"),
        (["--model", "tiny-tmd"], "there is no model 'tiny-tmd'", "did you mean 'tiny-tdm'?"),
        (["--preset", "tinny"], "there is no preset 'tinny'", "did you mean 'tiny'?"),
        (["--set", "generator.learning_rte=1"], "generator.learning_rte is not a setting", "'learning_rate'"),
        (["--set", "batch.groups=many"], "batch.groups", "tdmr1 config show"),
        (["--set", "batch.groups"], "--set 'batch.groups' is not an assignment", "--set generator.learning_rate=1e-4"),
        (["--set", "rewards.3.weight=1"], "there is no item 3", "counted from 0"),
        (["--reward", "object_count:heavy"], "'heavy' is not a number", "object_count:0.5"),
        (["--iterations", "0"], "iterations", "tdmr1 config show"),
        (["--iterations", "soon"], "--iterations", "tdmr1 train --help"),
        (["--itertions", "2"], "no such option: --itertions", "did you mean '--iterations'?"),
        (["--model-path", "nowhere"], "nowhere is not a pipeline directory of diffusers", "save_pretrained"),
        (["missing.yaml"], "[config-unreadable]", "check the path"),
        (["--resume", "."], "is not a run folder", "--output of an earlier run"),
        (["--resume", ".", "--iterations", "5"], "[option-conflict]", "another --output"),
        (["--prompts", "cuont", "--dry-run"], "'cuont'", "did you mean 'count'?"),
    ],
)
def test_wrong_arguments_of_train(tdmr1, tmp_path, arguments, message, hint):
    found = error_of(tdmr1("train", *arguments, cwd=tmp_path, code=2))
    assert message in found[0]
    assert hint in found[1]
    assert list(tmp_path.iterdir()) == []


def test_a_misspelled_command_suggests_the_nearest(tdmr1):
    assert error_of(tdmr1("trian", code=2)) == ("no such command 'trian' [usage]", "did you mean 'train'?\n")


def test_several_mistakes_are_reported_at_once(tdmr1, tmp_path):
    arguments = ["--reward", "object_cuont", "--model", "tiny-tmd", "--preset", "tinny", "--set", "sed=1"]
    message, hint = error_of(tdmr1("train", *arguments, cwd=tmp_path, code=2))
    for part in ("object_cuont", "tiny-tmd", "tinny", "sed is not a setting"):
        assert part in message
    for part in ("object_count", "tiny-tdm", "'tiny'", "'seed'"):
        assert part in hint


def test_mistakes_in_a_config_file(tdmr1, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("batch: {grups: 2}\nseed: often\n")
    message, hint = error_of(tdmr1("train", path, cwd=tmp_path, code=2))
    assert "2 settings are wrong" in message
    assert "batch.grups" in message
    assert "seed" in message
    assert "'groups'" in hint
    assert "batch.grups" in error_of(tdmr1("config", "validate", path, code=2))[0]


def test_an_output_that_cannot_be_written(tdmr1, tmp_path):
    (tmp_path / "file").write_text("mine")
    for verb in (["train"], ["distill"], ["sample", "tiny-tdm", "--prompt", "two red circles"]):
        message, hint = error_of(tdmr1(*verb, "--output", tmp_path / "file" / "run", code=2))
        assert "[not-writable]" in message
        assert "--output" in hint
    assert (tmp_path / "file").read_text() == "mine"


def test_a_used_run_folder_is_left_alone(tdmr1, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 3\n")
    message, hint = error_of(tdmr1("train", "--output", run, code=2))
    assert "[run-folder-used]" in message
    assert "ended before its first checkpoint" in hint
    assert [path.name for path in run.iterdir()] == ["config.yaml"]
    assert (run / "config.yaml").read_text() == "seed: 3\n"


def test_a_run_without_a_checkpoint_cannot_be_continued(tdmr1, tmp_path):
    (tmp_path / "config.yaml").write_text("rewards: [{name: object_count}]\n")
    assert "there is no checkpoint" in error_of(tdmr1("train", "--resume", tmp_path, "--quiet", code=2))[0]


@pytest.mark.parametrize(
    ("content", "code"), [(b"\n \n", "[prompts-empty]"), (b"\xff\xfe\x00\x89PNG", "[prompts-unreadable]")]
)
def test_a_prompt_file_without_prompts(tdmr1, tmp_path, content, code):
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


def test_what_is_neither_a_run_nor_a_model(tdmr1, tmp_path):
    assert "is neither a run folder" in error_of(tdmr1("evaluate", "runs/nothing", cwd=tmp_path, code=2))[0]
    assert "is not a run folder" in error_of(tdmr1("export", tmp_path, code=2))[0]
