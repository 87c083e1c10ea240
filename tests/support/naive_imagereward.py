"""A naive implementation of ImageReward, one image at a time, on a state dict with the published names.

It follows the published definition: timm's vision transformer, BLIP's BERT layers with cross-attention, linear layers
without activations. It shares no code with tdmr1 and uses no network class of torch or transformers. Padding is left
out, because it is masked. Everything is float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

State = dict[str, Tensor]
VISION, TEXT = "blip.visual_encoder", "blip.text_encoder"
HEAD_LAYERS = (0, 2, 4, 6, 7)
"""Numbers of the linear layers in the published head; the others are dropouts."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a network. The defaults are the published ones."""

    side: int = 224
    patch: int = 16
    vision_width: int = 1024
    vision_inner: int = 4096
    vision_layers: int = 24
    text_width: int = 768
    text_inner: int = 3072
    text_layers: int = 12
    tokens: int = 30524
    positions: int = 512


def published_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """All names in the published checkpoint, also those that the score does not depend on, with their shapes."""
    wide, inner, width = sizes.vision_width, sizes.vision_inner, sizes.text_width
    shapes = {
        f"{VISION}.cls_token": (1, 1, wide),
        f"{VISION}.pos_embed": (1, 1 + (sizes.side // sizes.patch) ** 2, wide),
        f"{VISION}.patch_embed.proj.weight": (wide, 3, sizes.patch, sizes.patch),
        f"{VISION}.patch_embed.proj.bias": (wide,),
        f"{TEXT}.embeddings.position_ids": (1, sizes.positions),
        f"{TEXT}.embeddings.word_embeddings.weight": (sizes.tokens, width),
        f"{TEXT}.embeddings.position_embeddings.weight": (sizes.positions, width),
    }
    norms = [f"{VISION}.norm", *(f"{VISION}.blocks.{i}.norm{j}" for i in range(sizes.vision_layers) for j in (1, 2))]
    linears = {}
    for i in range(sizes.vision_layers):
        linears |= {
            f"{VISION}.blocks.{i}.attn.qkv": (3 * wide, wide),
            f"{VISION}.blocks.{i}.attn.proj": (wide, wide),
            f"{VISION}.blocks.{i}.mlp.fc1": (inner, wide),
            f"{VISION}.blocks.{i}.mlp.fc2": (wide, inner),
        }
    text_norms = [f"{TEXT}.embeddings.LayerNorm"]
    for i in range(sizes.text_layers):
        layer = f"{TEXT}.encoder.layer.{i}"
        for kind, source in (("attention", width), ("crossattention", wide)):
            linears |= {
                f"{layer}.{kind}.self.query": (width, width),
                f"{layer}.{kind}.self.key": (width, source),
                f"{layer}.{kind}.self.value": (width, source),
                f"{layer}.{kind}.output.dense": (width, width),
            }
            text_norms.append(f"{layer}.{kind}.output.LayerNorm")
        linears |= {
            f"{layer}.intermediate.dense": (sizes.text_inner, width),
            f"{layer}.output.dense": (width, sizes.text_inner),
        }
        text_norms.append(f"{layer}.output.LayerNorm")
    head = (width, 1024, 128, 64, 16, 1)
    linears |= {f"mlp.layers.{number}": (head[i + 1], head[i]) for i, number in enumerate(HEAD_LAYERS)}
    linears |= {"blip.vision_proj": (256, wide), "blip.text_proj": (256, width)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms + text_norms:
        size = wide if name in norms else width
        shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    return shapes


def random_state(sizes: Sizes, seed: int = 0) -> State:
    """Random weights. The patch embedding is small, so that the constant of the layer norms matters."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in published_shapes(sizes).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("position_ids"):
            state[name] = torch.arange(sizes.positions)[None]
        elif "norm" in name.lower() and name.endswith("weight"):
            state[name] = 1 + 0.2 * noise
        elif "patch_embed" in name or name.endswith(("cls_token", "pos_embed")):
            state[name] = 1e-3 * noise
        else:
            state[name] = noise / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2 * noise
    return state


def pixels_of(image: Image.Image, side: int) -> Tensor:
    """Preprocessing: bicubic resize of the shorter side to `side`, center crop, CLIP's mean and deviation."""
    scale = side / min(image.size)
    small = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((small.width - side) / 2), round((small.height - side) / 2)
    pixels = np.asarray(small.crop((left, top, left + side, top + side))) / 255
    pixels = (pixels - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    return torch.from_numpy(pixels).permute(2, 0, 1)


def score(state: State, pixels: Tensor, tokens: list[int]) -> float:
    """The published score of an image (3, S, S) for the tokens of a prompt, with [CLS] and [SEP], without padding."""
    state = {name: value.double() for name, value in state.items()}
    states = _text_states(state, tokens, _image_tokens(state, pixels))
    value = states[0]
    for number in HEAD_LAYERS:
        value = _linear(state, f"mlp.layers.{number}", value)
    return (value.item() - 0.16717362830052426) / 1.0333394966054072


def _image_tokens(state: State, pixels: Tensor) -> Tensor:
    """The states of the class token and the patches, (1 + P, width)."""
    kernel = state[f"{VISION}.patch_embed.proj.weight"]
    patch = kernel.shape[-1]
    rows = [state[f"{VISION}.cls_token"][0, 0]]
    for top in range(0, pixels.shape[1], patch):
        for left in range(0, pixels.shape[2], patch):
            window = pixels[:, top : top + patch, left : left + patch]
            rows.append((kernel * window).sum(dim=(1, 2, 3)) + state[f"{VISION}.patch_embed.proj.bias"])
    x = torch.stack(rows) + state[f"{VISION}.pos_embed"][0]
    for i in range(_count(state, f"{VISION}.blocks.")):
        block = f"{VISION}.blocks.{i}"
        query, key, value = _linear(state, f"{block}.attn.qkv", _norm(state, f"{block}.norm1", x, 1e-6)).chunk(3, dim=1)
        x = x + _linear(state, f"{block}.attn.proj", _attention(query, key, value))
        hidden = _gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(state, f"{block}.mlp.fc2", hidden)
    return _norm(state, f"{VISION}.norm", x, 1e-6)


def _text_states(state: State, tokens: list[int], image: Tensor) -> Tensor:
    """The last states of the tokens (T, width), with attention to the states of the image."""
    words = state[f"{TEXT}.embeddings.word_embeddings.weight"][tokens]
    places = state[f"{TEXT}.embeddings.position_embeddings.weight"][: len(tokens)]
    x = _norm(state, f"{TEXT}.embeddings.LayerNorm", words + places, 1e-12)
    for i in range(_count(state, f"{TEXT}.encoder.layer.")):
        layer = f"{TEXT}.encoder.layer.{i}"
        for kind in ("attention", "crossattention"):
            source = x if kind == "attention" else image
            parts = [
                _linear(state, f"{layer}.{kind}.self.{part}", x if part == "query" else source)
                for part in ("query", "key", "value")
            ]
            x = x + _linear(state, f"{layer}.{kind}.output.dense", _attention(*parts))
            x = _norm(state, f"{layer}.{kind}.output.LayerNorm", x, 1e-12)
        hidden = _gelu(_linear(state, f"{layer}.intermediate.dense", x))
        x = _norm(state, f"{layer}.output.LayerNorm", x + _linear(state, f"{layer}.output.dense", hidden), 1e-12)
    return x


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with heads of width 64: queries (T, W), keys and values (S, W) to (T, W)."""
    heads = []
    for start in range(0, query.shape[1], 64):
        part = slice(start, start + 64)
        weights = torch.exp(query[:, part] @ key[:, part].T / 8)
        heads.append(weights / weights.sum(dim=1, keepdim=True) @ value[:, part])
    return torch.cat(heads, dim=1)


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor, constant: float) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = (centered**2).mean(dim=-1, keepdim=True)
    return centered / torch.sqrt(variance + constant) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def _count(state: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})
