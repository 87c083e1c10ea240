"""Every published preset runs two iterations on a directory with a tiny SD3 pipeline and its few-step LoRA."""

import json

import pytest
from support.command_line import run_tdmr1
from support.paths import ROOT

pytestmark = pytest.mark.integration

TINY = ROOT / "tdmr1_core" / "tiny"
REDUCED = ("batch.groups=4", "batch.group_size=2", "evaluation.images=2", "guard.enabled=false")
REDUCED += ("saving.samples_every=0", "saving.tensorboard=false", "model.device=cpu", "model.precision=fp32")
PROMPTS = [
    {
        "prompt": f'{word} red circles and the word "{word}"',
        "tag": "counting",
        "include": [{"class": "circle", "count": number, "color": "red"}],
        "exclude": [],
    }
    for number, word in enumerate(("one", "two", "three", "four"), 1)
]


@pytest.mark.parametrize(
    ("preset", "reward"),
    [
        ("geneval", None),
        *(
            pytest.param(preset, reward, marks=pytest.mark.long)
            for preset, reward in (
                ("ocr", "ocr_match"),
                ("imagereward", "jpeg_size"),
                ("hps", "jpeg_size"),
                ("ocr-regularised", "object_count"),
                ("single-gpu", "object_count"),
            )
        ),
    ],
)
def test_a_published_preset_runs(tmp_path, preset, reward):
    prompts, folder = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    named = ("--reward", reward) if reward else ()
    arguments = ["--model", TINY / "pipeline", "--lora", TINY / "student", "--prompts", prompts, *named]
    arguments += [part for setting in REDUCED for part in ("--set", setting)]
    done = run_tdmr1("train", *arguments, "--preset", preset, "--iterations", 2, "--output", folder, code=None)
    assert done.returncode in (0, 1), done.stderr
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    updated = all("grad_norm/generator" in row and "grad_norm/surrogate" in row for row in rows)
    assert updated or done.returncode == 1 or any(row["zero_std_ratio"] == 1 for row in rows)
    assert all("grad_norm/fake" in row for row in rows)
