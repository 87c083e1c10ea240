"""CLIP networks of two libraries behind one call: pictures and texts in, embeddings of unit length out."""

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
PRECISION_HELP = "numbers the network computes with; fp32 is exact, the others are faster on a GPU"
SCHEMAS = ("local-dir:", "hf-hub:")
"""How open_clip marks a name that is a folder or a repository."""


class ClipModel(Protocol):
    """Embeds N pictures or texts as float32 (N, D) of unit length; `logit_scale` (> 0) is the trained factor."""

    logit_scale: float

    def embed_images(self, images: Sequence[Image]) -> Tensor:
        """RGB images of any size to (N, D)."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts to (N, D); what is longer than the network reads is cut off."""


class OpenClip:
    """A model of open_clip by name, or of a folder (`local-dir:DIR`) or hub repository (`hf-hub:ORG/REPO`).

    `weights` is a tag that open_clip knows or a file; None takes those of the folder or repository. `fit` is how a
    picture becomes square: "shortest" crops it, "longest" pads it with black, None does what belongs to the weights.
    `width` is D. Weights are never unpickled. Raises Tdmr1Error where open_clip is missing or the model can't be
    loaded.
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
                f"the open_clip model {name} with the weights {weights} can't be loaded: {first_line(error)}",
                "check the names, or name a folder, `local-dir:DIR`, and the file with its weights",
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
            return _unit(self._model.encode_image(pixels.to(self._device, self._dtype)))

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See ClipModel."""
        import torch

        with torch.inference_mode():
            return _unit(self._model.encode_text(self._tokenizer(list(texts)).to(self._device)))


class TransformersClip:
    """A CLIP of transformers by hub name or folder; `processor` names its pre-processing, its own by default.

    Pictures go through Pillow whether torchvision is there or not, so that scores don't depend on it.
    Raises Tdmr1Error where it can't be loaded.
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
                f"the CLIP model {name} can't be loaded: {first_line(error)}",
                "check the name, or download it where there is a connection and name the folder",
            ) from error
        if loaded["missing_keys"]:
            # transformers would leave them random, and so the scores.
            raise Tdmr1Error(
                f"{name} is no whole CLIP model: {', '.join(sorted(loaded['missing_keys'])[:3])} … are missing",
                "name a checkpoint of transformers' CLIPModel",
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
            return _unit(self._model.get_image_features(pixels.to(self._device, self._dtype)).pooler_output)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See ClipModel."""
        import torch

        length = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        with torch.inference_mode():
            features = self._model.get_text_features(
                tokens["input_ids"].to(self._device), tokens["attention_mask"].to(self._device)
            )
        return _unit(features.pooler_output)


class CosineReward(ABC):
    """Base of the rewards whose score is a factor times the cosine of picture and prompt under one CLIP."""

    def __init__(self) -> None:
        self._model: ClipModel | None = None

    @abstractmethod
    def load(self, device: str) -> ClipModel:
        """The CLIP, ready on `device`. Raises Tdmr1Error where it can't be had."""

    def factor(self, model: ClipModel) -> float:
        """What the cosine is multiplied by."""
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
    """The cosine of each picture and its own prompt, N values of -1 to 1. A repeated prompt is embedded once."""
    distinct = list(dict.fromkeys(prompts))
    places = [distinct.index(prompt) for prompt in prompts]
    texts = model.embed_texts(distinct)[places]  # (N, D)
    return [float(cosine) for cosine in (model.embed_images(images) * texts).sum(dim=-1)]


def _build_open_clip(open_clip: Any, name: str, weights: str | None, settings: dict[str, Any]) -> tuple[Any, Any]:
    if not name.startswith(SCHEMAS) or weights is None:
        model, preprocess = open_clip.create_model_from_pretrained(name, weights, **settings)
        return model, preprocess
    # Of a folder or repository with other weights only the architecture is taken.
    model, _, preprocess = open_clip.create_model_and_transforms(name, load_weights=False, **settings)
    open_clip.load_checkpoint(model, weights, strict=True, weights_only=True)
    return model, preprocess


def _check_activation(open_clip: Any, name: str, weights: str | Path | None) -> None:
    """OpenAI's weights under a model with the other activation give wrong embeddings without a word."""
    if name.startswith(SCHEMAS) or weights is None:
        return
    trained = open_clip.pretrained.get_pretrained_cfg(name, str(weights)).get("quick_gelu", False)
    built = (open_clip.get_model_config(name) or {}).get("quick_gelu", False)
    if trained and not built:
        raise Tdmr1Error(
            f"the weights {weights!r} were trained with another activation than {name} has",
            f"use the model {name}-quickgelu",
        )


def _unit(features: Tensor) -> Tensor:
    """Float32 rows of unit length."""
    import torch

    return torch.nn.functional.normalize(features.float(), dim=-1)
