"""ImageReward on a tiny random network, compared with a naive implementation of the published definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.errors import raises
from support.naive_imagereward import Sizes, pixels_of, published_shapes, random_state, score
from support.reward_batches import batch_of

from tdmr1_rewards.builtin.imagereward import ImageReward, ImageRewardOptions
from tdmr1_rewards.builtin.imagereward_model import build_network, prepare

pytestmark = pytest.mark.unit

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square", "##s", "two", "and"]
TOKENS = [*WORDS, "[DEC]", "[ENC]"]
"""The vocabulary with the tokens that BLIP adds."""
TINY = Sizes(
    side=32, patch=8, vision_width=192, vision_inner=80, vision_layers=2, text_width=128, text_inner=96, text_layers=2,
    tokens=len(TOKENS), positions=40,
)  # fmt: skip
PROMPTS = ["a red circle", "two blue squares and a circle", "[ENC] a Red circle"]
BLOCK, LAYER = "blip.visual_encoder.blocks", "blip.text_encoder.encoder.layer"


def tokens_of(prompt: str) -> list[int]:
    """The published tokenization of prompts with words of the vocabulary: at most 35 tokens, here without padding."""
    words = prompt.replace("squares", "square ##s").replace("Red", "red").split()
    return [TOKENS.index(word) for word in ["[CLS]", *words[:33], "[SEP]"]]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return random_state(TINY)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A folder with the vocabulary of a BERT tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


@pytest.fixture(scope="module")
def checkpoint(state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("imagereward") / "ImageReward.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    coarse = [Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)) for _ in PROMPTS]
    sizes = [(64, 64), (90, 61), (32, 35)]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(coarse, sizes, strict=True)]


@pytest.fixture
def reward(checkpoint, tokenizer) -> ImageReward:
    return reward_of(checkpoint, tokenizer)


def reward_of(checkpoint: Path, tokenizer: Path, **options) -> ImageReward:
    return ImageReward(ImageRewardOptions(checkpoint=str(checkpoint), tokenizer=str(tokenizer), **options))


def refusal(state, tokenizer, folder, **values) -> str:
    """The message of the error for a checkpoint with this content, whose values contain `values`."""
    path = folder / "wrong.pt"
    torch.save(state, path)
    with raises("reward-weights", path=str(path), **values) as caught:
        reward_of(path, tokenizer).setup("cpu")
    assert caught.value.hint
    return caught.value.message


def test_the_score_is_that_of_the_published_definition(reward, state, images):
    expected = [
        score(state, pixels_of(image, TINY.side), tokens_of(prompt))
        for image, prompt in zip(images, PROMPTS, strict=True)
    ]
    assert reward(batch_of(images, PROMPTS)).scores == pytest.approx(expected, abs=1e-4)
    other = score(state, pixels_of(images[0], TINY.side), tokens_of(PROMPTS[1]))
    numbers = sorted([*expected, other])
    assert min(np.diff(numbers)) > 1e-2


def test_pixels_are_resized_cropped_and_normalized_as_published(images):
    for image in images:
        torch.testing.assert_close(prepare(image, 32), pixels_of(image, 32).float(), rtol=0, atol=1e-6)
    white = prepare(Image.new("RGB", (224, 224), "white"), 224)
    assert white.shape == (3, 224, 224)
    assert white[:, 0, 0].tolist() == pytest.approx([1.9303, 2.0749, 2.1459], abs=1e-4)


def test_several_images_in_a_batch_equal_one_at_a_time(reward, images):
    reward.setup("cpu")
    together = reward(batch_of(images, PROMPTS)).scores
    alone = [reward(batch_of([image], [text])).scores[0] for image, text in zip(images, PROMPTS, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(type(each) is float for each in together)


def test_a_prompt_is_truncated_to_35_tokens_with_the_first_and_the_last(reward, state, images):
    words = [*["a", "red", "circle", "and"] * 9, "two"]
    prompts = {length: " ".join(words[:length]) for length in (32, 33, 34, 37)}
    scores = {length: reward(batch_of(images[:1], [prompt])).scores[0] for length, prompt in prompts.items()}
    assert scores[33] == scores[34] == scores[37]
    assert abs(scores[33] - scores[32]) > 1e-3
    expected = score(state, pixels_of(images[0], TINY.side), tokens_of(prompts[37]))
    assert scores[37] == pytest.approx(expected, abs=1e-4)


def test_an_empty_prompt_has_a_score(reward, state, images):
    expected = score(state, pixels_of(images[0], TINY.side), tokens_of(""))
    assert reward(batch_of(images[:1], [""])).scores == pytest.approx([expected], abs=1e-4)


def test_a_safetensors_file_gives_the_same_scores(reward, state, tokenizer, images, tmp_path):
    path = tmp_path / "ImageReward.safetensors"
    save_file(state, path)
    batch = batch_of(images, PROMPTS)
    assert reward_of(path, tokenizer)(batch).scores == pytest.approx(reward(batch).scores, abs=1e-5)


def test_half_precision_is_close(reward, checkpoint, tokenizer, images):
    batch = batch_of(images, PROMPTS)
    exact, half = reward(batch).scores, reward_of(checkpoint, tokenizer, precision="bf16")(batch).scores
    assert half == pytest.approx(exact, abs=0.1)
    assert half != exact


def test_the_published_sizes_follow_from_the_shapes():
    """The parameters of the published network; ImageReward.pt also has the unused projections and position numbers."""
    network = build_network(published_shapes(Sizes()), Path("ImageReward.pt"))
    assert (network.image_size, network.vocabulary) == (224, 30524)
    vision, text = network.vision.config, network.text.config
    assert (vision.num_hidden_layers, vision.num_attention_heads, vision.layer_norm_eps) == (24, 16, 1e-6)
    assert (text.num_hidden_layers, text.num_attention_heads, text.layer_norm_eps) == (12, 12, 1e-12)
    assert sum(weight.numel() for weight in network.parameters()) == 446_206_689


@pytest.mark.parametrize(
    "name",
    [
        "mlp.layers.7.bias",
        f"{BLOCK}.1.attn.qkv.weight",
        f"{LAYER}.0.crossattention.self.key.weight",
        "blip.visual_encoder.pos_embed",
    ],
)
def test_a_missing_name_is_refused(state, tokenizer, tmp_path, name):
    lacking = {key: value for key, value in state.items() if key != name}
    message = refusal(lacking, tokenizer, tmp_path, missing=[name], unknown=[])
    assert f"missing names (1): {name}" in message


@pytest.mark.parametrize(
    "name", ["mlp.layers.1.weight", f"{BLOCK}.0.attn.rel_pos", "blip.visual_encoder_m.cls_token", "text.pooler"]
)
def test_an_unknown_name_is_refused(state, tokenizer, tmp_path, name):
    message = refusal({**state, name: torch.zeros(2)}, tokenizer, tmp_path, missing=[], unknown=[name])
    assert f"unknown names (1): {name}" in message


def test_missing_and_unknown_names_are_reported_together(state, tokenizer, tmp_path):
    """A checkpoint without its second block, with a third one."""
    renamed = {key.replace(f"{BLOCK}.1.", f"{BLOCK}.2."): value for key, value in state.items()}
    message = refusal(renamed, tokenizer, tmp_path)
    assert f"missing names (12): {BLOCK}.1.attn.proj.bias, " in message
    assert f"…; unknown names (12): {BLOCK}.2.attn.proj.bias, " in message


def test_names_that_the_score_does_not_depend_on_may_be_missing(state, reward, tokenizer, images, tmp_path):
    unused = {"blip.text_encoder.embeddings.position_ids"}
    unused |= {f"blip.{side}_proj.{part}" for side in ("vision", "text") for part in ("weight", "bias")}
    path = tmp_path / "used.pt"
    torch.save({name: value for name, value in state.items() if name not in unused}, path)
    batch = batch_of(images, PROMPTS)
    assert reward_of(path, tokenizer)(batch).scores == reward(batch).scores


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp.layers.0.weight", (1024, 64)),
        (f"{BLOCK}.1.mlp.fc1.weight", (80, 192, 1)),
        (f"{LAYER}.1.crossattention.self.value.weight", (128, 128)),
        ("blip.visual_encoder.pos_embed", (17, 192)),
        ("blip.visual_encoder.pos_embed", (1, 16, 192)),
        ("blip.visual_encoder.patch_embed.proj.weight", (192, 3, 8, 4)),
        ("blip.text_encoder.embeddings.word_embeddings.weight", (15, 100)),
        ("blip.text_encoder.embeddings.position_embeddings.weight", (34, 128)),
    ],
)
def test_a_wrong_shape_is_refused(state, tokenizer, tmp_path, name, shape):
    message = refusal({**state, name: torch.zeros(shape)}, tokenizer, tmp_path, name=name, shape=list(shape))
    assert f"{name} has the shape {shape}, expected (" in message


@pytest.mark.parametrize("content", [[1, 2], {"mlp.layers.0.weight": 3}, {1: torch.zeros(2)}, torch.zeros(3)])
def test_a_file_that_is_not_a_state_dict_is_refused(tokenizer, tmp_path, content):
    assert "missing names (6): blip." in refusal(content, tokenizer, tmp_path, unknown=[])


def test_a_value_that_is_not_a_tensor_is_refused(state, tokenizer, tmp_path):
    refusal({**state, "mlp.layers.7.bias": 0.5}, tokenizer, tmp_path, name="mlp.layers.7.bias", shape=[])


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 a truncated archive", bytes(range(256))])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_an_unreadable_file_is_refused(tokenizer, tmp_path, content, suffix):
    path = tmp_path / f"ImageReward.{suffix}"
    path.write_bytes(content)
    with raises("reward-weights", path=str(path)) as caught:
        reward_of(path, tokenizer).setup("cpu")
    assert "cannot be read" in caught.value.message


def test_a_missing_file_is_an_error(tokenizer, tmp_path):
    with raises("file-missing", path=str(tmp_path / "nowhere.pt")):
        reward_of(tmp_path / "nowhere.pt", tokenizer).setup("cpu")


def test_a_missing_tokenizer_is_an_error(checkpoint, tmp_path):
    with raises("reward-weights", tokenizer=str(tmp_path / "nowhere")) as caught:
        reward_of(checkpoint, tmp_path / "nowhere").setup("cpu")
    assert "cannot be loaded" in caught.value.message


def test_a_tokenizer_with_another_vocabulary_is_an_error(checkpoint, tmp_path):
    """transformers makes a tokenizer of five tokens from an empty folder."""
    with raises("reward-weights", tokenizer=str(tmp_path), tokens=7, vocabulary=len(TOKENS)):
        reward_of(checkpoint, tmp_path).setup("cpu")
