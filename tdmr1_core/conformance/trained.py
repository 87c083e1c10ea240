"""The conformance check that trains: two iterations, an export, and the same pixels from diffusers without tdmr1."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import save_file

from tdmr1_core.conformance.subject import Mismatch, Subject, largest_difference

PROMPTS = ("two red circles", "three green squares")
SEED = 5
SCRIPT = """
import sys
from json import loads as decode
import numpy as np
import {module}
from safetensors import safe_open
from safetensors.torch import load_file

base, lora, noise, prompt, images = sys.argv[1:]
with safe_open(lora, "pt") as file:
    header = file.metadata()
pipeline = {module}.{pipeline}.from_pretrained(base, **dict.fromkeys({absent!r}))
pipeline.load_lora_weights(lora)
pipeline.set_progress_bar_config(disable=True)
if "tdmr1.scheduler" in header:
    changes = decode(header["tdmr1.scheduler"])
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
call = decode(header["tdmr1.pipeline_call"])
np.save(images, pipeline(prompt=prompt, latents=load_file(noise)["noise"], output_type="np", **call).images)
assert "tdmr1_core" not in sys.modules
"""
"""Samples with an exported LoRA; diffusers is all that it needs."""
TIMEOUT = 600
"""Seconds that the script may take."""


def check_training(subject: Subject) -> str:
    """Train two iterations, stop and resume, export, and sample in another process that imports diffusers only."""
    from tdmr1_core.models.roles import GENERATOR_EMA
    from tdmr1_core.runs.evaluation.evaluate import evaluation_noise, sample_images
    from tdmr1_core.runs.load_run import load_trained
    from tdmr1_core.runs.output.export import export_lora

    with TemporaryDirectory() as made:
        folder = Path(made)
        engine = load_trained(_train(subject, folder))
        change = max(
            float(weight.abs().max())
            for name, weight in engine.roles.weights(GENERATOR_EMA).items()
            if "lora_B" in name
        )
        if change == 0:
            raise Mismatch("two iterations of training changed no weight")
        lora = export_lora(engine, folder / "export").file
        prompt = engine.prompts[0]
        images = sample_images(engine, GENERATOR_EMA, [prompt], 1, SEED, sampler="euler").images
        shape = engine.roles.backbone.latent_shape(*engine.size)
        noise = subject.backbone.pipeline_latents(evaluation_noise([prompt], 1, SEED, shape).float())
        save_file({"noise": noise.contiguous()}, folder / "noise.safetensors")
        absent = engine.model_files.absent if engine.model_files else ()
        engine.close()
        difference = largest_difference(images, _sampled_by_diffusers(subject, folder, lora, prompt.text, absent))
    if difference > 1:
        raise Mismatch(f"a pixel of diffusers with the exported LoRA differs by {difference} of 255")
    return f"diffusers reproduces a run of two iterations, largest difference {difference} of 255"


def _train(subject: Subject, folder: Path) -> Path:
    """Two iterations with the reward jpeg_size, the second one after a stop. Returns the run folder."""
    from tdmr1_core.config_loading import resolve
    from tdmr1_core.runs.observer import Observer
    from tdmr1_core.runs.run import Run

    class StopAfterOne(Observer):
        def iteration(self, report: Any) -> None:
            run.request_stop()

    prompts = folder / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    height, width = subject.sizes[0]
    config = resolve(
        [
            {
                "iterations": 2,
                "model": {
                    "name": str(subject.folder),
                    "height": height,
                    "width": width,
                    "rank": 4,
                    "alpha": 8,
                    "precision": "fp32",
                },
                "rewards": [{"name": "jpeg_size"}],
                "prompts": {"train": str(prompts)},
                "batch": {"groups": 2, "group_size": 2},
                "timesteps": {"per_iteration": 1},
                "evaluation": {"images": 2},
                "guard": {"enabled": False},
                "saving": {"samples_every": 0, "tensorboard": False, "checkpoint_every": 1},
                "generator": {"learning_rate": 1e-2},
            }
        ]
    )
    run = Run.create(config, folder / "run")
    run.execute(StopAfterOne())
    Run.resume(folder / "run").execute(Observer())
    return folder / "run"


def _sampled_by_diffusers(
    subject: Subject, folder: Path, lora: Path, prompt: str, absent: tuple[str, ...]
) -> np.ndarray:
    """The images of a new process that imports no tdmr1, floats (1, height, width, 3) in [0, 1]."""
    script = SCRIPT.format(module=subject.family.module, pipeline=subject.family.pipeline, absent=absent)
    arguments = [
        str(each) for each in (subject.folder, lora, folder / "noise.safetensors", prompt, folder / "images.npy")
    ]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode != 0:
        raise Mismatch(f"diffusers cannot sample with the exported LoRA: {done.stderr.strip().splitlines()[-1]}")
    found: np.ndarray = np.load(folder / "images.npy", allow_pickle=False)
    return found
