"""`tdmr1 plan` of a registered model: what is chosen and why, without torch and without a home folder."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.command_line import environment

from tdmr1_cli.main import main
from tdmr1_cli.run_summary import duration
from tdmr1_core.planning import estimate

pytestmark = pytest.mark.unit

HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate"}
NO_TORCH = f"""
import sys
from tdmr1_cli.main import main
code = main(sys.argv[1:])
print(sorted({HEAVY!r} & sys.modules.keys()), file=sys.stderr)
sys.exit(code)
"""

LARGE = """\
batch.micro_batch=24 (whole groups; up to 25 images fit in 73.6 GB, which is 80 GB less 8%)
memory.gradient_checkpointing=false (without recomputation 25 images fit, which is enough)
memory.trajectories=device (sampled latents are 1.5 GB), memory.decoder=none (a micro-batch at once needs 19 GB), \
memory.text_encoders=auto (on the GPU only while they encode)
iteration: 48 groups × 24 images = 1152 images; 1 process, each with 48 micro-batches of up to 24 images; LoRA rank 32
peak memory: 71.0 GB per process with micro-batches of 24 images
this is 8.8 GB for any micro-batch, and 2.6 GB more for each image of a micro-batch
time: 34 network passes per image, 10 min per iteration, 7.3 days for 1,000 iterations, without rewards
speed: 139 TFLOP/s sustained (14% of the 989 dense bf16 TFLOP/s of the H100, because no card is known; change it with \
`tdmr1 plan --tflops`)
text encoders: all 160 prompts of the run (0.27 GB) are encoded at the start (memory.prompt_cache_gb=8); then the \
encoders are released
80GB: fits
"""
SMALL = [
    "batch.micro_batch=24 (whole groups; up to 27 images fit in 14.7 GB, which is 16 GB less 8%)",
    "memory.gradient_checkpointing=true (without recomputation only 2 images fit)",
    "memory.trajectories=cpu (sampled latents are 1.5 GB), memory.decoder=sliced (a micro-batch at once needs 19 GB), "
    "memory.text_encoders=auto (on the GPU only while they encode)",
]


@pytest.fixture(autouse=True)
def without_card(monkeypatch, tmp_path):
    """No `nvidia-smi`, and no dry update."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(estimate.Planner, "_dry_update", lambda *_: pytest.fail("an update is run"))


def planned(capsys, *arguments, code=0):
    assert main(["plan", "--model", "sd3.5-tdm", *arguments]) == code
    return capsys.readouterr()


def lines_of(output):
    """The messages, without the warning about the license of the weights."""
    return [line for line in output.err.splitlines() if not line.startswith("warning: ")]


@pytest.mark.parametrize("model", ["sd3.5-tdm", "z-image-turbo"])
def test_a_first_plan_imports_neither_torch_nor_diffusers(model, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    arguments = ["plan", "--model", model, "--gpu", "24GB"]
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH, *arguments],
        env=environment(HOME=str(home), PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    assert "estimating" not in done.stderr
    assert list(home.iterdir()) == []


def test_what_is_chosen_for_a_card_in_three_lines(capsys):
    """The whole output of a large and a small card."""
    assert lines_of(planned(capsys, "--gpu", "80GB")) == LARGE.splitlines()
    assert lines_of(planned(capsys, "--gpu", "16GB"))[:3] == SMALL


def test_what_is_set_is_not_chosen(capsys):
    sets = ["--set", "batch.micro_batch=2", "--set", "memory.decoder=tiled", "--set", "memory.trajectories=cpu"]
    lines = lines_of(planned(capsys, "--gpu", "80GB", *sets))
    assert lines[0] == "batch.micro_batch=2 (as set; it fits in 73.6 GB, which is 80 GB less 8%)"
    assert lines[2].startswith("memory.trajectories=cpu (as set), memory.decoder=tiled (as set)")


def test_a_run_that_does_not_fit(capsys):
    error = planned(capsys, "--gpu", "8GB", code=1).err
    assert "batch.micro_batch=1 (not even one image fits in 7.36 GB, which is 8 GB less 8%)" in error
    assert "8GB: does not fit; not even a micro-batch of one image fits; try `--preset single-gpu`" in error
    sets = ["--set", "batch.micro_batch=1000", "--set", "memory.gradient_checkpointing=false"]
    error = planned(capsys, "--gpu", "80GB", *sets, code=1).err
    assert "80GB: does not fit; the largest micro-batch that fits is batch.micro_batch=" in error


def test_a_document_names_what_was_chosen(capsys):
    document = json.loads(planned(capsys, "--gpu", "80GB", "--json").out)
    assert document["fits"]
    assert document["chosen"]["batch.micro_batch"] == document["micro_batch"]
    assert document["chosen"]["memory.gradient_checkpointing"] is False
    assert len(document["reasons"]) == 3
    assert document["peak"] <= 0.92 * 80e9


def test_a_card_by_name_gives_memory_and_speed(capsys):
    error = planned(capsys, "--gpu", "RTX 4090").err
    assert error.endswith("\nRTX 4090 (24 GB): fits\n")
    assert "\nspeed: 23.2 TFLOP/s sustained (14% of the 165.2 dense bf16 TFLOP/s of the RTX 4090; change it" in error
    by_size, named = (json.loads(planned(capsys, "--gpu", gpu, "--json").out) for gpu in ("24GB", "rtx4090"))
    assert by_size["micro_batch"] == named["micro_batch"]
    assert named["seconds"] == pytest.approx(by_size["seconds"] * 989 / 165.2)


def test_the_speed_that_is_set_is_used(capsys):
    error = planned(capsys, "--gpu", "H100", "--tflops", "70", "--set", "iterations=500").err
    assert "21 min per iteration, 7.2 days for 500 iterations, without rewards" in error
    assert "\nspeed: 70 TFLOP/s sustained (as set with --tflops)\n" in error
    document = json.loads(planned(capsys, "--gpu", "H100", "--tflops", "70", "--set", "iterations=500", "--json").out)
    assert document["total_seconds"] == pytest.approx(500 * document["seconds"])
    assert document["speed"] == {"tflops": 70, "source": "as set with --tflops"}


def test_an_unknown_card_is_refused_with_similar_names(capsys):
    error = planned(capsys, "--gpu", "H101", code=2).err
    assert "--gpu 'H101' is neither a known card nor a size" in error
    assert "did you mean H100?" in error


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.123, "0.12 s"),
        (9.04, "9 s"),
        (119, "119 s"),
        (1620, "27 min"),
        (50_400, "14 hours"),
        (1_641_600, "19 days"),
        (1e9, "11,574 days"),
    ],
)
def test_durations_are_short(seconds, expected):
    assert duration(seconds) == expected


def test_without_a_card_nothing_is_chosen(capsys):
    document = json.loads(planned(capsys, "--json").out)
    assert (document["chosen"], document["fits"], document["micro_batch"]) == (None, None, 1152)


def test_the_card_of_this_machine_is_used(capsys, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 76294, NVIDIA A100-SXM4-80GB\n")
    tool.chmod(0o755)
    lines = lines_of(planned(capsys))
    assert lines[-1] == "80 GB free: fits"
    assert lines[0].startswith("batch.micro_batch=")
    assert any(line.startswith("speed: 43.9 TFLOP/s") and "of the A100 80GB;" in line for line in lines)


@pytest.mark.parametrize("model", ["qwen-image-lightning", "flux2-klein-9b"])
def test_a_large_model_is_planned_with_divided_weights(model, capsys):
    common = ["plan", "--model", model, "--reward", "jpeg_size", "--gpu", "40GB", "--processes", "8"]
    assert main(common) == 1
    refused = capsys.readouterr().err
    assert "; memory.shard=true divides the frozen weights among the processes)" in refused
    assert "try `--set memory.shard=true`" in refused
    settings = ["--set", "memory.shard=true", "--set", "memory.optimizer=8bit"]
    assert main([*common, *settings, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fits"]
    whole = {"qwen-image-lightning": 40.86, "flux2-klein-9b": 36.31}[model]
    assert document["parts"]["denoiser"] / 1e9 == pytest.approx(whole / 8, abs=0.01)
    assert document["parts"]["gathered blocks"] > 0
