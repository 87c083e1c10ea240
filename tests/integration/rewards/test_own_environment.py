"""easyocr and open_clip, which need torchvision, run in a separate environment with tiny networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.own_environment.layered import HERE, Job, engines_elsewhere, make_environment, run, score_elsewhere

pytestmark = pytest.mark.integration

LEVELS = {"-": 1.0, "a": -1.0, "b": -0.5, "c": 0.0}
"""The brightness of each character for bar_reader.py; the first is the blank of CTC."""
PROMPTS = ["a red circle", "a dog in the snow", "a red circle"]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    return make_environment(tmp_path_factory.mktemp("own") / "environment")


def draw_bars(path: Path, text: str) -> Path:
    """Save an image with one bar of 8 x 32 pixels for each character, with a blank before, between and after them."""
    levels = [LEVELS[character] for character in "-" + "-".join(text) + "-"]
    bars = np.repeat(np.round((np.array(levels) + 1) * 127.5).astype(np.uint8), 8)
    Image.fromarray(np.broadcast_to(bars, (32, len(bars))).copy()).convert("RGB").save(path)
    return path


@pytest.fixture
def bar_reader(tmp_path) -> dict[str, object]:
    """The options of ocr_match that make easyocr use the network of bar_reader.py."""
    networks, weights = tmp_path / "networks", tmp_path / "weights"
    networks.mkdir()
    weights.mkdir()
    (networks / "bar_reader.py").write_text((HERE / "bar_reader.py").read_text())
    (networks / "bar_reader.yaml").write_text(
        "network_params: {bar: 8}\nimgH: 32\nlang_list: [en]\ncharacter_list: abc\n"
    )
    # easyocr expects the keys of a DataParallel state dict.
    torch.save({"module.levels": torch.tensor(list(LEVELS.values()))}, weights / "bar_reader.pth")
    return {
        "detect": False,
        "model_storage_directory": str(weights),
        "user_network_directory": str(networks),
        "recog_network": "bar_reader",
        "download_enabled": False,
    }


def test_easyocr_reads_with_a_custom_network(python, bar_reader, tmp_path):
    image = draw_bars(tmp_path / "cab.png", "cab")
    prompts = ['the word "cab"', 'the word "CAN"', 'the word "nnn"', "no word"]
    (read,) = score_elsewhere(python, [Job("ocr_match", {"engine": "easyocr", **bar_reader}, [image] * 4, prompts)])
    assert read["scores"] == [1.0, pytest.approx(2 / 3), 0.0, None]
    assert read["details"][0] == {"engine": "easyocr", "target": "cab", "read": "cab"}


@pytest.mark.long
def test_easyocr_is_used_only_with_local_weights_of_tensors(python, bar_reader, tmp_path):
    image = draw_bars(tmp_path / "cab.png", "cab")
    without_weights = {"engine": "easyocr", "model_storage_directory": str(tmp_path), "download_enabled": False}
    unsafe = {**bar_reader, "model_storage_directory": str(tmp_path / "unsafe")}
    (tmp_path / "unsafe").mkdir()
    torch.save({"module.levels": Path("anything but a tensor")}, tmp_path / "unsafe" / "bar_reader.pth")
    missing, pickled = score_elsewhere(
        python,
        [
            Job("ocr_match", without_weights, [image], ['"cab"']),
            Job("ocr_match", {**unsafe, "engine": "easyocr"}, [image], ['"cab"']),
        ],
    )
    assert engines_elsewhere(python, bar_reader, {**without_weights, "engine": "auto"}) == ["easyocr", "rapidocr"]
    assert missing["code"] == pickled["code"] == "reward-weights"
    assert "downloads disabled" in missing["message"]
    assert "rapidocr" in missing["hint"]
    assert "must contain only tensors" in pickled["message"]


@pytest.fixture
def images(tmp_path) -> list[Path]:
    """A square, a wide and a tall image with random content."""
    rng = np.random.default_rng(0)
    paths = []
    for number, (width, height) in enumerate([(64, 64), (96, 64), (64, 96)]):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        paths.append(tmp_path / f"{number}.png")
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture
def open_clip(python, images, tmp_path) -> tuple[Path, dict[str, list[float]]]:
    """The folder of a tiny model with heads, and the scores computed with the library alone."""
    folder = tmp_path / "tiny"
    arguments = [str(folder), json.dumps([str(path) for path in images]), json.dumps(PROMPTS)]
    made = run([str(python), str(HERE / "make_open_clip.py"), *arguments])
    return folder, json.loads(made.stdout.splitlines()[-1])


def test_a_preference_model_of_open_clip_agrees_with_the_library(python, images, open_clip):
    folder, expected = open_clip
    options = {"model": f"local-dir:{folder}", "checkpoint": str(folder / "preference.pt")}
    (hps,) = score_elsewhere(python, [Job("hpsv2", options, images, PROMPTS)])
    assert hps["scores"] == pytest.approx(expected["hpsv2"], abs=1e-5)
    assert len({round(score, 6) for score in hps["scores"]}) == 3


@pytest.mark.long
def test_open_clip_rewards_agree_with_the_library(python, images, open_clip):
    folder, expected = open_clip
    model = {"model": f"local-dir:{folder}"}

    def job(reward: str, **options: object) -> Job:
        return Job(reward, options, images, PROMPTS)

    clip, linear, mlp = score_elsewhere(
        python,
        [
            job("clip_score", library="open_clip", scale=2.0, **model),
            job("aesthetic", head=str(folder / "linear.pth"), weights=None, **model),
            job("aesthetic", head=str(folder / "mlp.safetensors"), weights=None, **model),
        ],
    )
    assert clip["scores"] == pytest.approx([2 * score for score in expected["clip_score"]], abs=1e-5)
    assert linear["scores"] == pytest.approx(expected["linear"], abs=1e-5)
    assert mlp["scores"] == pytest.approx(expected["mlp"], abs=1e-5)
    assert linear["details"][0]["head"] == "linear"
    assert len(mlp["details"][0]["head_sha256"]) == 12
    for scores in (clip, linear, mlp):
        assert len({round(score, 6) for score in scores["scores"]}) == 3


@pytest.mark.long
def test_open_clip_rewards_refuse_unsupported_heads_and_models(python, images, open_clip, tmp_path):
    folder, _ = open_clip
    torch.save({"layers.0.weight": torch.zeros(1, 24)}, folder / "unknown.pth")
    torch.save(torch.nn.Linear(768, 1).state_dict(), folder / "wide.pth")
    torch.save({"weight": Path("anything but a tensor")}, folder / "pickled.pth")
    without_weights = {"model": f"local-dir:{folder}", "weights": None}

    def job(reward: str, **options: object) -> Job:
        return Job(reward, options, images, PROMPTS)

    refused = score_elsewhere(
        python,
        [
            job("aesthetic", head=str(folder / "unknown.pth"), **without_weights),
            job("aesthetic", head=str(folder / "wide.pth"), **without_weights),
            job("aesthetic", head=str(folder / "pickled.pth"), **without_weights),
            job("aesthetic", head=str(folder / "nowhere.pth"), **without_weights),
            job("aesthetic", head=str(folder / "linear.pth"), model="ViT-L-14", weights="openai"),
            job("clip_score", library="open_clip", model=f"local-dir:{tmp_path}"),
        ],
    )
    assert {answer["code"] for answer in refused} == {"reward-weights", "file-missing"}
    errors = [answer["message"] for answer in refused]
    assert "is not a supported aesthetic head" in errors[0]
    assert "takes embeddings of width 768" in errors[1]
    assert "cannot be read" in errors[2]
    assert "there is no file" in errors[3]
    assert "were trained with QuickGELU" in errors[4]
    assert "cannot be loaded" in errors[5]
