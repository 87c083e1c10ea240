"""Rewards with transformers' CLIP, on a tiny random network, compared with the library's own results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.errors import raises
from support.paths import ROOT
from support.reward_batches import batch_of
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tdmr1_rewards.builtin.clip_score import ClipScore, ClipScoreOptions
from tdmr1_rewards.builtin.pickscore import PickScore, PickScoreOptions

pytestmark = pytest.mark.unit

TOKENIZER = ROOT / "tdmr1_core" / "tiny" / "pipeline" / "tokenizer"
PROMPTS = ["three red circles", "a blue square", "three red circles"]
SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint with two layers of width 32 and the tokenizer of the tiny model."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=CLIPTextConfig(
            **small,
            vocab_size=len(tokenizer),
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ).to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=SIDE, patch_size=8).to_dict(),
        projection_dim=24,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in PROMPTS]
    sizes = [(64, 64), (90, 60), (60, 90)]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


@pytest.fixture(scope="module")
def logits(folder, images) -> list[float]:
    """CLIPModel's logit of each image with its prompt: exp(logit_scale) · cosine."""
    from transformers import AutoTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(PROMPTS, padding=True, return_tensors="pt")
    pixels = torch.stack([preprocess(image) for image in images])
    with torch.no_grad():
        return model(**tokens, pixel_values=pixels).logits_per_image.diagonal().tolist()


def preprocess(image: Image.Image) -> torch.Tensor:
    """CLIP's preprocessing: bicubic resize of the shorter side to SIDE, center crop, CLIP's mean and deviation."""
    scale = SIDE / min(image.size)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (small.width - SIDE) // 2, (small.height - SIDE) // 2
    pixels = np.asarray(small.crop((left, top, left + SIDE, top + SIDE))) / 255
    pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def test_pickscore_is_the_logit_divided_by_the_divisor(folder, images, logits):
    options = {"model": str(folder), "processor": str(folder)}
    published = PickScore(PickScoreOptions(divisor=1, **options))(batch_of(images, PROMPTS)).scores
    assert published == pytest.approx(logits, abs=1e-4)
    assert len({round(score, 4) for score in published}) == 3
    default = PickScore(PickScoreOptions(**options))(batch_of(images, PROMPTS)).scores
    assert default == pytest.approx([logit / 26 for logit in logits], abs=1e-5)


def test_clip_score_is_the_cosine_times_the_scale(folder, images, logits):
    factor = float(CLIPModel.from_pretrained(folder).logit_scale.detach().exp())
    cosines = [logit / factor for logit in logits]
    scores = ClipScore(ClipScoreOptions(model=str(folder)))(batch_of(images, PROMPTS)).scores
    assert scores == pytest.approx(cosines, abs=1e-5)
    scaled = ClipScore(ClipScoreOptions(model=str(folder), scale=100))(batch_of(images, PROMPTS)).scores
    assert scaled == pytest.approx([100 * cosine for cosine in cosines], abs=1e-3)


def test_a_score_does_not_depend_on_the_other_images_of_the_batch(folder, images):
    reward = ClipScore(ClipScoreOptions(model=str(folder)))
    reward.setup("cpu")
    together = reward(batch_of(images, PROMPTS)).scores
    alone = [reward(batch_of([image], [text])).scores[0] for image, text in zip(images, PROMPTS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)


def test_a_prompt_longer_than_the_maximum_length_is_truncated(folder, images):
    reward = ClipScore(ClipScoreOptions(model=str(folder)))
    short, long = "two red circles " * 8, "two red circles " * 8 + "and a blue square"
    assert reward(batch_of(images[:1], [short])).scores == reward(batch_of(images[:1], [long])).scores


def test_half_precision_is_close(folder, images):
    exact, half = (
        ClipScore(ClipScoreOptions(model=str(folder), precision=precision))(batch_of(images, PROMPTS)).scores
        for precision in ("fp32", "bf16")
    )
    assert half == pytest.approx(exact, abs=0.03)
    assert half != exact


def test_a_missing_model_is_an_error(tmp_path):
    with raises("reward-weights", model=str(tmp_path / "nowhere")):
        ClipScore(ClipScoreOptions(model=str(tmp_path / "nowhere"))).setup("cpu")


def test_a_checkpoint_that_lacks_weights_is_an_error(folder, tmp_path):
    complete = CLIPModel.from_pretrained(folder)
    state = {name: value for name, value in complete.state_dict().items() if name != "visual_projection.weight"}
    complete.save_pretrained(tmp_path, state_dict=state)
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with raises("reward-weights", model=str(tmp_path), missing=["visual_projection.weight"]):
        ClipScore(ClipScoreOptions(model=str(tmp_path))).setup("cpu")


def test_a_missing_open_clip_is_an_error(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    with raises("dependency-missing", module="open_clip") as caught:
        ClipScore(ClipScoreOptions(library="open_clip", model="ViT-B-32", weights="openai")).setup("cpu")
    assert caught.value.hint == "pip install 'tdmr1[aesthetic]'"
