"""`train --dry-run` and `plan` refuse what `train` refuses, with the same code, exit code 2 and nothing on stdout."""

import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from support.paths import ROOT

pytestmark = pytest.mark.integration

TINY = ROOT / "tdmr1_core" / "tiny"


def sets(*settings):
    return [part for setting in settings for part in ("--set", setting)]


def wrong_lora(folder):
    save_file({"foo.bar": torch.zeros(2)}, folder / "wrong.safetensors")
    return ["--lora", folder / "wrong.safetensors"]


def damaged_config(folder):
    shutil.copytree(TINY / "pipeline", folder / "model")
    (folder / "model" / "transformer" / "config.json").write_text("{")
    return ["--model-path", folder / "model"]


def truncated_weights(folder):
    shutil.copytree(TINY / "pipeline", folder / "model")
    weights = folder / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return ["--model-path", folder / "model"]


def unknown_reward_in_metadata(folder):
    (folder / "prompts.jsonl").write_text('{"prompt": "two red circles", "rewards": ["sharpness"]}\n')
    return sets(f"prompts.train={folder / 'prompts.jsonl'}")


def cache_in_a_file(folder):
    (folder / "file").write_text("mine")
    return sets(f"memory.prompt_cache={folder / 'file' / 'cache'}")


INPUTS = {
    "lora-keys": wrong_lora,
    "model-incomplete": damaged_config,
    "reward-metadata": unknown_reward_in_metadata,
    "device-unavailable": lambda _: sets("model.device=gpu"),
    "setting-invalid": lambda _: sets("model.height=48", "model.width=48"),
    "setting-conflict": lambda _: [
        *("--model", "z-image-turbo", "--reward", "jpeg_size", "--lora", TINY / "student"),
        *sets("prompts.train=scenes", "model.teacher=Tongyi-MAI/Z-Image", "fake.start=generator"),
    ],
}
MACHINE = {
    "model-incomplete": truncated_weights,
    "device-unavailable": lambda _: sets("model.device=cuda:77"),
    "reward-environment": lambda _: sets("rewards.0.python=/nowhere/python"),
    "not-writable": cache_in_a_file,
}


@pytest.mark.parametrize(("code", "arguments"), INPUTS.items(), ids=INPUTS)
def test_wrong_inputs_are_refused_by_train_dry_run_and_plan(tdmr1, tmp_path, code, arguments):
    check(tdmr1, tmp_path, code, arguments(tmp_path), (["train"], ["train", "--dry-run"], ["plan"]))


@pytest.mark.parametrize(("code", "arguments"), MACHINE.items(), ids=MACHINE)
def test_a_dry_run_refuses_what_this_machine_lacks(tdmr1, tmp_path, code, arguments):
    check(tdmr1, tmp_path, code, arguments(tmp_path), (["train"], ["train", "--dry-run"]))


def check(tdmr1, folder, code, arguments, verbs):
    """Every command ends with this error."""
    for verb in verbs:
        output = ["--output", folder / "run"] if verb[0] == "train" else []
        done = tdmr1(*verb, *arguments, *output, cwd=folder, code=2)
        assert re.search(r"error: [^\n]*\[([\w-]+)\]\n", done.stderr)[1] == code, (verb, done.stderr)
        assert done.stdout == ""


def test_a_quantized_optimizer_can_be_planned(tdmr1):
    assert "optimisers" in tdmr1("plan", *sets("memory.optimizer=8bit")).stdout
