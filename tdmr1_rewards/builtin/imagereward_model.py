"""The model of ImageReward (arXiv 2304.05977) on transformers' BLIP classes, from its published checkpoint.

A ViT encodes the image, BLIP's text encoder reads the prompt with cross-attention to the image tokens, and linear
layers map the state of its first token to a number. Names, sizes and constants are those of the authors' repository
THUDM/ImageReward and of its files ImageReward.pt and med_config.json. This module imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from tdmr1_rewards.builtin.optional import first_line, read_state_dict
from tdmr1_rewards.errors import Tdmr1Error

if TYPE_CHECKING:
    from tdmr1_rewards.builtin.clip_models import Precision

MAX_TOKENS = 35
"""Length that every prompt is padded or truncated to. It includes the first and the last token."""
ADDED_TOKENS = ("[DEC]", "[ENC]")
"""What BLIP adds to the vocabulary of BERT, in this order. Only prompts that contain these texts have these tokens."""
REWARD_MEAN, REWARD_DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Published mean and standard deviation of the head's output."""
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of RGB values (0 to 1), as in CLIP."""
ATTENTION_WIDTH = 64
"""Width of an attention head of both encoders."""
HEAD = {"0": 1024, "2": 128, "4": 64, "6": 16, "7": 1}
"""The linear layers of the reward head: published number and output width. The other numbers are dropouts."""
PUBLISHED_NAMES = (
    ("vision.embeddings.class_embedding", "blip.visual_encoder.cls_token"),
    ("vision.embeddings.position_embedding", "blip.visual_encoder.pos_embed"),
    ("vision.embeddings.patch_embedding.", "blip.visual_encoder.patch_embed.proj."),
    ("vision.encoder.layers.", "blip.visual_encoder.blocks."),
    ("vision.post_layernorm.", "blip.visual_encoder.norm."),
    (".layer_norm1.", ".norm1."),
    (".layer_norm2.", ".norm2."),
    (".self_attn.qkv.", ".attn.qkv."),
    (".self_attn.projection.", ".attn.proj."),
    ("text.", "blip.text_encoder."),
    ("head.", "mlp.layers."),
)
"""Parts of the parameter names of `ImageRewardNetwork`, and what replaces them in the published checkpoint."""
UNUSED = frozenset(
    (
        "blip.text_encoder.embeddings.position_ids",
        *(f"blip.{side}_proj.{part}" for side in ("vision", "text") for part in ("weight", "bias")),
    )
)
"""Published names that the score does not depend on: the numbers 0, 1, 2, … and BLIP's contrastive projections."""

Shape = tuple[int, ...]
VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
SIZES: dict[str, tuple[str, Callable[[Shape], bool]]] = {
    f"{VISION}pos_embed": (
        f"(1, 1 + square number, multiple of {ATTENTION_WIDTH})",
        lambda s: len(s) == 3 and s[1] > 1 and isqrt(s[1] - 1) ** 2 == s[1] - 1 and _has_heads(s[2]),
    ),
    f"{VISION}patch_embed.proj.weight": ("(width, 3, side, side)", lambda s: len(s) == 4 and s[3] > 0),
    f"{VISION}blocks.0.mlp.fc1.weight": ("(inner width, width)", lambda s: len(s) == 2),
    f"{TEXT}embeddings.word_embeddings.weight": (
        f"(tokens, multiple of {ATTENTION_WIDTH})",
        lambda s: len(s) == 2 and _has_heads(s[1]),
    ),
    f"{TEXT}embeddings.position_embeddings.weight": (
        f"({MAX_TOKENS} or more, width)",
        lambda s: len(s) == 2 and s[0] >= MAX_TOKENS,
    ),
    f"{TEXT}encoder.layer.0.intermediate.dense.weight": ("(inner width, width)", lambda s: len(s) == 2),
}
"""Published names whose shapes give the sizes of the network: the expected shape in words, and its test."""


class ImageRewardModel:
    """The network and the tokenizer, which score images.

    `checkpoint` is a file with the published names. `tokenizer` is the hub name or folder of a BERT tokenizer. Encoders
    have `precision`, the head has float32. Raises Tdmr1Error if one of them cannot be loaded, if a tensor is missing,
    unknown or of a wrong shape, or if the tokenizer has another vocabulary than the network.
    """

    def __init__(self, checkpoint: Path, tokenizer: str, *, device: str, precision: Precision = "fp32") -> None:
        self._tokenizer = _load_tokenizer(tokenizer)
        self._network = _load_network(checkpoint, precision).to(device)
        self._device = device
        tokens, vocabulary = len(self._tokenizer), self._network.vocabulary
        if tokens != vocabulary:
            raise Tdmr1Error(
                f"the tokenizer {tokenizer} has {tokens} tokens, but the network in {checkpoint} has {vocabulary}",
                "use the tokenizer that the network was trained with: that of bert-base-uncased",
                code="reward-weights",
                values={
                    "tokenizer": tokenizer,
                    "tokens": tokens,
                    "checkpoint": str(checkpoint),
                    "vocabulary": vocabulary,
                },
            )

    def score(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """The scores of N RGB images of any size with their N prompts."""
        pixels = torch.stack([prepare(image, self._network.image_size) for image in images])  # (N, 3, S, S)
        # input_ids and attention_mask: (N, MAX_TOKENS)
        tokens = self._tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        inputs = (pixels, tokens["input_ids"], tokens["attention_mask"])
        with torch.inference_mode():
            scores: list[float] = self._network(*(each.to(self._device) for each in inputs)).tolist()
        return scores


class ImageRewardNetwork(nn.Module):
    """The two encoders and the reward head.

    `image_size` is the side of the input in pixels (published: 224), `vocabulary` the number of tokens (30524).
    """

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.image_size: int = vision.image_size
        self.vocabulary: int = text.vocab_size
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = pairwise([text.hidden_size, *HEAD.values()])
        self.head = nn.ModuleDict({number: nn.Linear(*pair) for number, pair in zip(HEAD, widths, strict=True)})

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Normalized pixels (N, 3, S, S), token numbers (N, L) and their mask (N, L), 1 or 0, to scores (N,)."""
        image = self.vision(pixel_values=pixels).last_hidden_state  # (N, image tokens, width)
        states = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=image).last_hidden_state
        values = states[:, 0].float()  # (N, width of the text encoder)
        for layer in self.head.values():
            values = layer(values)
        return (values[:, 0] - REWARD_MEAN) / REWARD_DEVIATION


def prepare(image: Image.Image, side: int) -> Tensor:
    """An RGB image as normalized pixels (3, side, side): bicubic resize of the shorter side, center crop."""
    width, height = (side * length // min(image.size) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized.crop((left, top, left + side, top + side))))  # (side, side, 3)
    return ((pixels / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_DEVIATION)).permute(2, 0, 1)


def build_network(shapes: Mapping[str, Shape], path: Path) -> ImageRewardNetwork:
    """The network without weights (on the device "meta") for the shapes in a checkpoint, by published name.

    All sizes are those of the shapes. `path` names the checkpoint in errors. Raises Tdmr1Error if a name is missing or
    unknown, or if a shape is wrong.
    """
    missing = SIZES.keys() - shapes.keys()
    if missing:
        raise _wrong_names(path, missing, ())
    for name, (expected, fits) in SIZES.items():
        if not fits(shapes[name]):
            raise _wrong_shape(path, name, shapes[name], expected)
    with torch.device("meta"):
        network = ImageRewardNetwork(*_configs(shapes))
    needed = {published_name(own): tuple(value.shape) for own, value in network.state_dict().items()}
    missing, unknown = needed.keys() - shapes.keys(), shapes.keys() - needed.keys() - UNUSED
    if missing or unknown:
        raise _wrong_names(path, missing, unknown)
    for name, shape in needed.items():
        if shapes[name] != shape:
            raise _wrong_shape(path, name, shapes[name], str(shape))
    return network


def published_name(own: str) -> str:
    """The published name of a parameter of `ImageRewardNetwork`."""
    for part, published in PUBLISHED_NAMES:
        own = own.replace(part, published)
    return own


def _load_tokenizer(name: str) -> Any:
    """The BERT tokenizer of a hub name or folder, with the added tokens. Raises Tdmr1Error if it cannot be loaded."""
    try:
        tokenizer = BertTokenizer.from_pretrained(name)
    except Exception as error:
        raise Tdmr1Error(
            f"the tokenizer {name} cannot be loaded: {first_line(error)}",
            "check the name, or download the tokenizer on a machine that has a connection and give its folder",
            code="reward-weights",
            values={"tokenizer": name, "error": first_line(error)},
        ) from error
    tokenizer.add_tokens(list(ADDED_TOKENS), special_tokens=True)
    return tokenizer


def _load_network(path: Path, precision: Precision) -> ImageRewardNetwork:
    """The network with the weights of a checkpoint, on the CPU. Raises Tdmr1Error if the file does not fit."""
    state = read_state_dict(path, "the checkpoint")
    network = build_network({str(name): tuple(getattr(value, "shape", ())) for name, value in state.items()}, path)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    weights = {
        own: state[published_name(own)].to(torch.float32 if own.startswith("head.") else dtype)
        for own in network.state_dict()
    }
    network.load_state_dict(weights, assign=True)
    embeddings = network.text.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[1])[None]  # not part of a state dict
    return network.eval().requires_grad_(False)


def _configs(shapes: Mapping[str, Shape]) -> tuple[BlipVisionConfig, BlipTextConfig]:
    """The sizes of both encoders. Activations and the constants of layer norms are the published ones."""
    positions, vision_width = shapes[f"{VISION}pos_embed"][1:]
    patch = shapes[f"{VISION}patch_embed.proj.weight"][3]
    tokens, text_width = shapes[f"{TEXT}embeddings.word_embeddings.weight"]
    vision = BlipVisionConfig(
        hidden_size=vision_width,
        intermediate_size=shapes[f"{VISION}blocks.0.mlp.fc1.weight"][0],
        num_hidden_layers=_layers(shapes, f"{VISION}blocks."),
        num_attention_heads=vision_width // ATTENTION_WIDTH,
        image_size=patch * isqrt(positions - 1),
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        vocab_size=tokens,
        hidden_size=text_width,
        encoder_hidden_size=vision_width,
        intermediate_size=shapes[f"{TEXT}encoder.layer.0.intermediate.dense.weight"][0],
        num_hidden_layers=_layers(shapes, f"{TEXT}encoder.layer."),
        num_attention_heads=text_width // ATTENTION_WIDTH,
        max_position_embeddings=shapes[f"{TEXT}embeddings.position_embeddings.weight"][0],
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # the layers have cross-attention; whether attention is causal is an argument of `forward`
    )
    return vision, text


def _layers(names: Iterable[str], prefix: str) -> int:
    """The number of layers whose names begin with `prefix` and a number."""
    return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})


def _has_heads(width: int) -> bool:
    """Whether an encoder of this width has whole attention heads."""
    return width > 0 and width % ATTENTION_WIDTH == 0


def _wrong_names(path: Path, missing: Iterable[str], unknown: Iterable[str]) -> Tdmr1Error:
    """The error for names that a checkpoint lacks or that the network does not have."""
    found: dict[str, Any] = {"missing": sorted(missing), "unknown": sorted(unknown)}
    problems = [
        f"{problem} names ({len(names)}): {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for problem, names in found.items()
        if names
    ]
    return Tdmr1Error(
        f"{path} is not a checkpoint of ImageReward: {'; '.join(problems)}",
        "use the published file ImageReward.pt, or a file with the same names",
        code="reward-weights",
        values={"path": str(path), **found},
    )


def _wrong_shape(path: Path, name: str, found: Shape, expected: str) -> Tdmr1Error:
    """The error for a tensor of a wrong shape, or a value that is not a tensor, which has the shape ()."""
    return Tdmr1Error(
        f"{path} is not a checkpoint of ImageReward: {name} has the shape {found}, expected {expected}",
        "use the published file ImageReward.pt, or a file with the same names and fitting shapes",
        code="reward-weights",
        values={"path": str(path), "name": name, "shape": list(found), "expected": expected},
    )
