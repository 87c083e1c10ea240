"""Memory settings and the output of `plan`, from the command line."""

import json
import shutil

import pytest
import yaml
from support.command_line import small

from tdmr1_core.runs.load_run import load_trained

pytestmark = pytest.mark.integration


def test_planning_a_published_model_needs_no_reward_and_no_download(tdmr1, tmp_path):
    done = tdmr1("plan", "--model", "sd3.5-tdm", "--gpu", "24GB", HF_HOME=str(tmp_path))
    assert "denoiser                4.94" in done.stdout
    assert "iteration: 48 groups × 24 images = 1152 images; 1 process," in done.stderr
    assert "24GB: fits" in done.stderr


def test_a_plan_that_does_not_fit_fails(tdmr1):
    done = tdmr1("plan", "--model", "tiny-tdm", "--gpu", "1GB", code=1)
    assert "1GB: does not fit; not even a micro-batch of one image fits" in done.stderr


def test_the_preset_single_gpu_fits_24_gb(tdmr1, tmp_path):
    """The numbers are those of docs/models.md."""
    arguments = ["plan", "--model", "sd3.5-tdm", "--preset", "single-gpu", "--gpu", "24GB", "--json"]
    planned = json.loads(tdmr1(*arguments, HF_HOME=str(tmp_path)).stdout)
    assert planned["fits"]
    assert planned["peak"] < 24e9
    assert (planned["micro_batch"], planned["fitting_micro_batch"]) == (48, 53)


def test_a_quantized_run_is_exported_without_bitsandbytes_and_prompt_cache(
    packaged_model, tdmr1, tmp_path, monkeypatch
):
    pytest.importorskip("bitsandbytes")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    memory = {"weights": "nf4", "optimizer": "8bit", "trajectories": "cpu", "text_encoders": "cpu"}
    sets = [part for name, value in memory.items() for part in ("--set", f"memory.{name}={value}")]
    short = [*small("evaluation.images=1", "saving.samples_every=0"), "--iterations", 1]
    tdmr1("train", *short, *sets, "--set", "memory.prompt_cache=texts", "--output", "run", cwd=here)
    recorded = yaml.safe_load((here / "run" / "config.yaml").read_text())["memory"]
    assert recorded["prompt_cache"] == str(here / "texts")
    texts = sorted((here / "texts").rglob("*.safetensors"))
    assert texts
    shutil.rmtree(here / "texts")
    (here / "texts").write_text("a file, not a folder")
    tdmr1("export", here / "run", cwd=elsewhere)
    assert (here / "run" / "export" / "pytorch_lora_weights.safetensors").is_file()
    assert list(elsewhere.iterdir()) == []
    for user in ("build.parts", "models.quantization"):
        monkeypatch.setattr(f"tdmr1_core.{user}.bitsandbytes", lambda: pytest.fail("bitsandbytes is imported"))
    engine = load_trained(here / "run")
    engine.close()
    assert engine.iteration_index == 1
