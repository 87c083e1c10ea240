"""CLIP models of two libraries behind one interface: images and texts in, embeddings of unit length out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.builtin.optional import first_line, import_optional
from tdmr1_rewards.errors import Tdmr1Error

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

INSTALL = "tdmr1[aesthetic]"
Precision = Literal["fp32", "fp16", "bf16"]
PRECISION_HELP = "dtype of the network; fp16 and bf16 are faster on a GPU and slightly less accurate"
SCHEMAS = ("local-dir:", "hf-hub:")
"""Prefixes by which open_clip recognizes a folder or a hub repository in a model name."""


class ClipModel(Protocol):
    """Embeds images and texts as float32 (N, D) of unit length.

    `logit_scale` (above 0) is the trained factor of the cosine.
    """

    logit_scale: float

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """RGB images of any size to (N, D)."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to (N, D). Texts beyond the network's maximum length are truncated."""


class OpenClip:
    """An open_clip model given by name, by folder (`local-dir:DIR`) or by hub repository (`hf-hub:ORG/REPO`).

    `weights` is a tag that open_clip knows, or a file; None takes the weights of the folder or repository. `fit` is
    how an image is made square: "shortest" crops it, "longest" pads it with black, None follows the configuration of
    the weights. `width` is D, the embedding width. Weights are never unpickled.
    Raises Tdmr1Error if open_clip is missing or the model cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        weights: str | Path | None,
        *,
        device: str,
        precision: Precision = "fp32",
        fit: Literal["shortest", "longest"] | None = None,
    ) -> None:
        open_clip = import_optional("open_clip", INSTALL)
        _check_activation(open_clip, name, weights)
        settings = {"device": device, "precision": precision, "image_resize_mode": fit, "weights_only": True}
        try:
            model, preprocess = _build_open_clip(open_clip, name, None if weights is None else str(weights), settings)
            self._tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:
            raise Tdmr1Error(
                f"the open_clip model {name} with weights {weights} cannot be loaded: {first_line(error)}",
                "check the names, or give a local folder (`local-dir:DIR`) and its weights file",
                code="reward-weights",
                values={
                    "model": name,
                    "weights": None if weights is None else str(weights),
                    "error": first_line(error),
                },
            ) from error
        self._model = model.eval()
        self._preprocess = preprocess
        self._device = device
        self._dtype = open_clip.model.get_input_dtype(precision)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.width = int(open_clip.get_model_config(name)["embed_dim"])

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """See ClipModel."""
        import torch

        pixels = torch.stack([self._preprocess(image) for image in images])  # (N, 3, H, W)
        with torch.inference_mode():
            return _normalize(self._model.encode_image(pixels.to(self._device, self._dtype)))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See ClipModel."""
        import torch

        tokens = self._tokenizer(list(texts))  # (N, L)
        with torch.inference_mode():
            return _normalize(self._model.encode_text(tokens.to(self._device)))


class TransformersClip:
    """A transformers CLIP model given by hub name or folder.

    `processor` is the hub name or folder of the tokenizer and the image preprocessing; by default those of the model.
    Images are preprocessed with Pillow even if torchvision is installed, so that scores do not depend on it.
    Raises Tdmr1Error if the model cannot be loaded or lacks weights.
    """

    def __init__(self, name: str, *, device: str, processor: str | None = None, precision: Precision = "fp32") -> None:
        import torch

        transformers = import_optional("transformers", "transformers")
        source = processor or name
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        try:
            model, loaded = transformers.CLIPModel.from_pretrained(name, dtype=dtype, output_loading_info=True)
            self._image_processor = transformers.AutoImageProcessor.from_pretrained(source, backend="pil")
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except Exception as error:
            raise Tdmr1Error(
                f"the CLIP model {name} cannot be loaded: {first_line(error)}",
                "check the name, or download the model on a machine that has a connection and give its folder",
                code="reward-weights",
                values={"model": name, "error": first_line(error)},
            ) from error
        missing = sorted(loaded["missing_keys"])
        if missing:
            # transformers would initialize them at random, which makes the scores random.
            raise Tdmr1Error(
                f"the CLIP checkpoint {name} lacks {len(missing)} weights: {', '.join(missing[:3])}"
                + (", …" if len(missing) > 3 else ""),
                "give a checkpoint that was saved from transformers' CLIPModel",
                code="reward-weights",
                values={"model": name, "missing": missing},
            )
        self._model = model.eval().to(device)
        self._device = device
        self._dtype = dtype
        self.logit_scale = float(model.logit_scale.detach().exp())

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """See ClipModel."""
        import torch

        pixels = self._image_processor(images=list(images), return_tensors="pt")["pixel_values"]  # (N, 3, H, W)
        with torch.inference_mode():
            return _normalize(self._model.get_image_features(pixels.to(self._device, self._dtype)).pooler_output)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See ClipModel."""
        import torch

        length = self._model.config.text_config.max_position_embeddings
        # input_ids and attention_mask: (N, L)
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            features = self._model.get_text_features(
                tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
            )
        return _normalize(features.pooler_output)


class CosineReward(ABC):
    """Base class of rewards whose score is a factor times the CLIP cosine of image and prompt."""

    def __init__(self) -> None:
        self._model: ClipModel | None = None

    @abstractmethod
    def load(self, device: str) -> ClipModel:
        """The CLIP model on `device`. Raises Tdmr1Error if it cannot be loaded."""

    def factor(self, model: ClipModel) -> float:
        """The factor of the cosine."""
        return 1.0

    def setup(self, device: str) -> None:
        """Load the model."""
        self._model = self.load(device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images."""
        model = self._model = self._model or self.load("cpu")
        factor = self.factor(model)
        return RewardResult([factor * cosine for cosine in cosines(model, batch.images, batch.prompts)])


def cosines(model: ClipModel, images: Sequence[Image], prompts: Sequence[str]) -> list[float]:
    """The cosine of each of N images with its prompt, -1 to 1. A repeated prompt is embedded once."""
    distinct = list(dict.fromkeys(prompts))
    rows = [distinct.index(prompt) for prompt in prompts]
    texts = model.embed_texts(distinct)[rows]  # (N, D)
    return [float(cosine) for cosine in (model.embed_images(images) * texts).sum(dim=-1)]


def _build_open_clip(open_clip: Any, name: str, weights: str | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    """The model with its weights, and its image preprocessing."""
    if not name.startswith(SCHEMAS) or weights is None:
        model, preprocess = open_clip.create_model_from_pretrained(name, weights, **settings)
        return model, preprocess
    # `weights` replaces those of the folder or repository, which then gives only the architecture.
    model, _, preprocess = open_clip.create_model_and_transforms(name, load_weights=False, **settings)
    open_clip.load_checkpoint(model, weights, strict=True, weights_only=True)
    return model, preprocess


def _check_activation(open_clip: Any, name: str, weights: str | Path | None) -> None:
    """Raise Tdmr1Error if the weights need QuickGELU and the model has GELU: open_clip would load them silently."""
    if name.startswith(SCHEMAS) or weights is None:
        return
    trained = open_clip.pretrained.get_pretrained_cfg(name, str(weights)).get("quick_gelu", False)
    built = (open_clip.get_model_config(name) or {}).get("quick_gelu", False)
    if trained and not built:
        raise Tdmr1Error(
            f"the weights {str(weights)!r} were trained with QuickGELU, but the model {name} uses GELU",
            f"use the model {name}-quickgelu",
            code="reward-weights",
            values={"model": name, "weights": str(weights)},
        )


def _normalize(features: Tensor) -> Tensor:
    """Float32 rows of unit length: (N, D) to (N, D)."""
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1)
