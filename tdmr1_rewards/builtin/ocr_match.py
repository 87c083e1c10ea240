"""Is the text that the prompt quotes in the picture?

The convention is that of flow_grpo's OCR reward, which TDM-R1's authors use (arXiv 2603.07700): the target is the first
text between straight double quotes; target and reading are compared in lower case and without spaces; the score is
1 - min(distance, length) / length with the Levenshtein distance and the target's length, and 1 where the target is
contained in the reading. Scores are 0 to 1, and None where the prompt names nothing to write. What people understand,
the share of pictures that are read exactly, is the option `score: exact`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.builtin.ocr_engines import RAPIDOCR_INSTALL, OcrEngine, OcrOptions, open_engine
from tdmr1_rewards.builtin.optional import import_optional
from tdmr1_rewards.errors import Tdmr1Error

if TYPE_CHECKING:
    from PIL.Image import Image


class OcrMatchOptions(OcrOptions):
    """What is compared, and how the picture is read."""

    score: Literal["graded", "exact"] = Field(
        "graded",
        description="graded: how near the reading comes, more around the target being no fault; exact: 1 where what is "
        "asked for is read and nothing else, else 0",
    )
    target: Literal["first", "all"] = Field(
        "first", description="first: the first quoted text; all: the mean of the scores of every quoted text"
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="drop what the engine is less sure of; its own by default (rapidocr with `detect`: 0.5, others: 0)",
    )
    upscale: float = Field(
        1.0, ge=1, le=32, description="enlarge the picture this many times first (bicubic); tiny pictures need it"
    )
    crop: tuple[float, float, float, float] | None = Field(
        None, description="read only this part: left, top, right, bottom as shares of the picture (0 to 1)"
    )

    @field_validator("crop")
    @classmethod
    def _check_crop(cls, crop: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        if crop is not None and not (0 <= crop[0] < crop[2] <= 1 and 0 <= crop[1] < crop[3] <= 1):
            raise ValueError("should be left, top, right, bottom, with 0 <= left < right <= 1 and likewise in height")
        return crop


@dataclass(frozen=True)
class Targets:
    """The texts to find, normalised and none of them empty; or the reason why there is nothing to find."""

    texts: tuple[str, ...] = ()
    reason: str = ""


class OcrMatch:
    """Scores how well the text read from each picture matches the text that was asked for.

    The target is metadata `text`, or else what the prompt quotes. `engine` names the engine that reads: `auto` becomes
    a definite one in `setup`. Details tell engine, target and reading.
    """

    def __init__(self, options: OcrMatchOptions) -> None:
        self._options = options
        self._engine: OcrEngine | None = None
        import_optional("rapidfuzz", RAPIDOCR_INSTALL)

    @property
    def engine(self) -> str:
        """The engine that reads; `auto` as long as none is chosen."""
        return self._engine.name if self._engine else self._options.engine

    def setup(self, device: str) -> None:
        """Make the engine ready. Raises Tdmr1Error where it or its weights are missing."""
        self._engine = open_engine(self._options, device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images."""
        if self._engine is None:
            self.setup("cpu")
        judged = [
            self._judge(image, find_targets(prompt, metadata, self._options.target))
            for image, prompt, metadata in zip(batch.images, batch.prompts, batch.metadata, strict=True)
        ]
        return RewardResult([score for score, _ in judged], [told for _, told in judged])

    def _judge(self, image: Image, targets: Targets) -> tuple[float | None, dict[str, Any]]:
        if not targets.texts:
            return None, {"reason": targets.reason}
        reading = self._read(image)
        told = {"engine": self.engine, "target": " ".join(targets.texts), "read": reading}
        if self._options.score == "exact":
            return float(reading == "".join(targets.texts)), told
        scores = [match_score(target, reading) for target in targets.texts]
        return sum(scores) / len(scores), told

    def _read(self, image: Image) -> str:
        """All text of the picture, normalised."""
        assert self._engine is not None
        least = self._options.min_confidence
        least = self._engine.min_confidence if least is None else least
        lines = self._engine.read(self._prepared(image))
        return normalise("".join(line.text for line in lines if line.confidence >= least))

    def _prepared(self, image: Image) -> Image:
        from PIL import Image as pillow

        image = image.convert("RGB")
        if self._options.crop:
            left, top, right, bottom = self._options.crop
            width, height = image.size
            image = image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
        if self._options.upscale > 1:
            width, height = image.size
            size = (round(width * self._options.upscale), round(height * self._options.upscale))
            image = image.resize(size, pillow.Resampling.BICUBIC)
        return image


def resolve_engine(options: OcrMatchOptions) -> OcrMatchOptions:
    """The options with `auto` replaced by the engine that it stands for here, to be kept in a run's settings.

    It is found by making the engine ready once, so easyocr may fetch its weights. Raises Tdmr1Error where none can be.
    """
    if options.engine != "auto":
        return options
    return options.model_copy(update={"engine": open_engine(options, "cpu").name})


def find_targets(prompt: str, metadata: Mapping[str, Any], which: Literal["first", "all"] = "first") -> Targets:
    """What should be written in the picture: metadata `text`, or else what straight double quotes enclose.

    Raises Tdmr1Error where metadata `text` is no text.
    """
    if "text" in metadata:
        text = metadata["text"]
        if not isinstance(text, str):
            raise Tdmr1Error(
                f"the metadata of prompt {prompt!r} ask for the text {text!r}", "`text` is what should be written"
            )
        return Targets((normalise(text),)) if normalise(text) else Targets(reason="the text of the metadata is empty")
    quoted = [normalise(text) for text in re.findall(r'"([^"]*)"', prompt)]
    if not quoted:
        return Targets(reason="the prompt has no text between straight double quotes")
    texts = tuple(text for text in (quoted if which == "all" else quoted[:1]) if text)
    return Targets(texts) if texts else Targets(reason="the quoted text is empty")


def normalise(text: str) -> str:
    """Lower case, without any space."""
    return "".join(text.lower().split())


def match_score(target: str, reading: str) -> float:
    """1 - min(distance, length) / length of two normalised texts, 1 where the target is contained: 0 to 1.

    `target` is not empty.
    """
    from rapidfuzz.distance import Levenshtein

    if target in reading:
        return 1.0
    return 1 - min(Levenshtein.distance(target, reading), len(target)) / len(target)
