"""Makes a tiny open_clip model with heads in a folder, and prints the expected scores of rewards, without tdmr1.

`make_open_clip.py FOLDER IMAGES PROMPTS`: IMAGES is a JSON list of PNG files, and PROMPTS a JSON list of texts. Pillow
and numpy preprocess the images, and the model embeds them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

SIDE, WIDTH = 32, 24
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
CONFIG = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def main(folder: Path, images: list[str], prompts: list[str]) -> None:
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    trained = {name: value + 0.02 * torch.randn_like(value) for name, value in model.state_dict().items()}
    torch.save({"state_dict": trained, "epoch": 3}, folder / "preference.pt")

    images = [Image.open(path).convert("RGB") for path in images]
    texts = open_clip.get_tokenizer(f"local-dir:{folder}")(prompts)
    cropped, padded = torch.stack([crop(p) for p in images]), torch.stack([pad(p) for p in images])
    expected = {}
    with torch.no_grad():
        embeddings, words = unit(model.encode_image(cropped)), unit(model.encode_text(texts))
        expected["clip_score"] = (embeddings * words).sum(1).tolist()
        expected["linear"] = linear_head(folder, embeddings)
        expected["mlp"] = mlp_head(folder, embeddings)
        model.load_state_dict(trained)
        expected["hpsv2"] = (unit(model.encode_image(padded)) * unit(model.encode_text(texts))).sum(1).tolist()
    print(json.dumps(expected))


def linear_head(folder: Path, embeddings: torch.Tensor) -> list[float]:
    head = torch.nn.Linear(WIDTH, 1)
    torch.save(head.state_dict(), folder / "linear.pth")
    return head(embeddings)[:, 0].tolist()


def mlp_head(folder: Path, embeddings: torch.Tensor) -> list[float]:
    """The layers of the improved aesthetic predictor, with its dropouts, which are inactive in evaluation mode."""
    drop = torch.nn.Dropout
    sizes = [(WIDTH, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)]
    first, second, third, fourth, fifth = (torch.nn.Linear(*size) for size in sizes)
    layers = torch.nn.Sequential(first, drop(0.2), second, drop(0.2), third, drop(0.1), fourth, fifth).eval()
    save_file({f"layers.{name}": value for name, value in layers.state_dict().items()}, folder / "mlp.safetensors")
    return layers(embeddings)[:, 0].tolist()


def crop(image: Image.Image) -> torch.Tensor:
    """Resize the shorter side to SIDE, then crop the center."""
    return normalised(ImageOps.fit(resized(image, min), (SIDE, SIDE)))


def pad(image: Image.Image) -> torch.Tensor:
    """Resize the longer side to SIDE, then pad with black."""
    small = resized(image, max)
    canvas = Image.new("RGB", (SIDE, SIDE))
    canvas.paste(small, ((SIDE - small.width) // 2, (SIDE - small.height) // 2))
    return normalised(canvas)


def resized(image: Image.Image, which) -> Image.Image:
    scale = SIDE / which(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def normalised(image: Image.Image) -> torch.Tensor:
    pixels = (np.asarray(image) / 255 - MEAN) / STD
    return torch.from_numpy(pixels).permute(2, 0, 1).float()


def unit(features: torch.Tensor) -> torch.Tensor:
    return features / features.norm(dim=-1, keepdim=True)


main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
