"""Does the image contain the text that the prompt quotes?

The score follows the OCR reward of flow_grpo, which TDM-R1 uses (arXiv 2603.07700). The target is the first quoted
text. Double quotes of all kinds count, and typographic single quotes; straight single quotes are apostrophes, and a
double quote directly after a digit opens no text, because it is an inch mark. Target and OCR output are compared in
the same normalized form (text_comparison.py). The score is 1 - min(distance, length) / length, with the Levenshtein
distance and the length of the target, and 1 if the OCR output contains the target. Scores are 0 to 1, or None if the
prompt quotes no text. With the option `score: exact`, the mean score is the fraction of images whose text is exactly
the target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from tdmr1_rewards.api import RewardBatch, RewardResult, RunPreview
from tdmr1_rewards.builtin.ocr_engines import RAPIDOCR_INSTALL, OcrEngine, OcrOptions, open_engine
from tdmr1_rewards.builtin.optional import import_optional
from tdmr1_rewards.builtin.text_comparison import Comparison, normalize
from tdmr1_rewards.builtin.visible import has_visible
from tdmr1_rewards.errors import Tdmr1Error

if TYPE_CHECKING:
    from PIL.Image import Image


class OcrMatchOptions(OcrOptions):
    """How texts are compared, and how the image is read."""

    score: Literal["graded", "exact"] = Field(
        "graded",
        description="graded: similarity of the OCR output and the target, with additional text allowed; exact: 1 if "
        "the OCR output is the target and nothing else, else 0",
    )
    target: Literal["first", "all"] = Field(
        "first", description="first: the first quoted text; all: every quoted text (graded: the mean of their scores)"
    )
    comparison: Comparison = Field(
        "unicode",
        description="how target and OCR output are normalized. unicode: without case, white space, format characters "
        "and differences of width, ligature, composition or kind of apostrophe, quotation mark and dash; published: "
        "lower case without spaces, as in flow_grpo. Both give the same scores for ASCII texts in one line",
    )
    min_confidence: float | None = Field(
        None,
        ge=0,
        le=1,
        description="ignore lines below this confidence; by default that of the engine (rapidocr with `detect`: 0.5, "
        "others: 0). Lines with confidence 0 are always ignored",
    )
    upscale: float = Field(
        1.0, ge=1, le=32, description="factor by which the image is enlarged first (bicubic); needed for tiny images"
    )
    crop: tuple[float, float, float, float] | None = Field(
        None, description="read only this part: left, top, right, bottom as fractions of width and height (0 to 1)"
    )

    @field_validator("crop")
    @classmethod
    def _check_crop(cls, crop: tuple[float, float, float, float] | None) -> tuple[float, float, float, float] | None:
        if crop is not None and not (0 <= crop[0] < crop[2] <= 1 and 0 <= crop[1] < crop[3] <= 1):
            raise ValueError(
                "should be left, top, right, bottom with 0 <= left < right <= 1 and 0 <= top < bottom <= 1"
            )
        return crop


@dataclass(frozen=True)
class Targets:
    """The texts to find, normalized and not empty; or, if there is none, the reason."""

    texts: tuple[str, ...] = ()
    reason: str = ""


class OcrMatch:
    """Scores how well the text in each image matches the target.

    The target is the metadata's `text`, else the text that the prompt quotes. The details hold the engine, the target
    and the OCR output, both normalized. Raises Tdmr1Error if rapidfuzz is not installed.
    """

    def __init__(self, options: OcrMatchOptions) -> None:
        self._options = options
        self._engine: OcrEngine | None = None
        import_optional("rapidfuzz", RAPIDOCR_INSTALL)

    @property
    def engine(self) -> str:
        """The name of the engine; the option `engine` until `setup` has loaded one."""
        return self._engine.name if self._engine else self._options.engine

    def setup(self, device: str) -> None:
        """Load the engine. Raises Tdmr1Error if it or its weights are missing."""
        self._engine = open_engine(self._options, device)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score N RGB images. Raises Tdmr1Error if the metadata's `text` is not a string."""
        if self._engine is None:
            self.setup("cpu")
        scored = [
            self._score(image, find_targets(prompt, metadata, self._options.target, self._options.comparison))
            for image, prompt, metadata in zip(batch.images, batch.prompts, batch.metadata, strict=True)
        ]
        return RewardResult([score for score, _ in scored], [details for _, details in scored])

    def _score(self, image: Image, targets: Targets) -> tuple[float | None, dict[str, Any]]:
        """The score and the details of one image."""
        if not targets.texts:
            return None, {"reason": targets.reason}
        text = self._read(image)
        details = {"engine": self.engine, "target": " ".join(targets.texts), "read": text}
        if self._options.score == "exact":
            return float(text == "".join(targets.texts)), details
        scores = [match_score(target, text) for target in targets.texts]
        return sum(scores) / len(scores), details

    def _read(self, image: Image) -> str:
        """The text in the image, normalized."""
        assert self._engine is not None
        threshold = self._options.min_confidence
        threshold = self._engine.min_confidence if threshold is None else threshold
        lines = self._engine.read(self._prepare(image))
        text = "".join(line.text for line in lines if line.confidence >= threshold)
        return normalize(text, self._options.comparison)

    def _prepare(self, image: Image) -> Image:
        """The image in RGB, cropped and enlarged according to the options."""
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


QUOTED = re.compile(
    r'(?<!\d)"([^"]*)"|(?<!\d)＂([^＂]*)＂'
    r'|“([^“”„"]*)[”“"]|„([^„“”"]*)[“”"]'
    r"|(?<!\d)”([^”]*)”|〝([^〝〞〟]*)[〞〟]"  # English, German, Polish, Swedish, Japanese
    r"|«([^«»]*)»|»([^«»]*)[«»]|‹([^‹›]{2,})›|›([^‹›]{2,})‹"  # French, German, Danish, Finnish
    r"|「([^「」]*)」|『([^『』]*)』"
    r"|‚([^‚‘’]{2,})[‘’]|‘([^‘]{2,}?)’(?!\w)"  # a ’ before a letter is an apostrophe, and ‘n’ is one letter
)
"""A text between quotation marks: one of the groups has the text."""
DOUBLED = re.compile(r'(?<![^\s(])["“„]{2}(?=\S)[^"“”„]+(?<=\S)["“”]{2}')
"""A text between doubled quotation marks, as in a cell of a table that was copied with its quotes."""
SINGLE_QUOTED = re.compile(r"(?<!\w)'[^']+'(?!\w)")
NO_QUOTES = "the prompt has no text between quotation marks"


def check_prompts(preview: RunPreview) -> list[str | None]:
    """For each prompt None, or why it has no target. Raises Tdmr1Error if the metadata's `text` is not a string."""
    pairs = zip(preview.prompts, preview.metadata, strict=True)
    options = preview.options
    targets = [find_targets(prompt, metadata, options.target, options.comparison) for prompt, metadata in pairs]
    return [None if each.texts else each.reason for each in targets]


def resolve_engine(options: OcrMatchOptions) -> OcrMatchOptions:
    """The options with `engine: auto` replaced by the engine that it selects on this machine.

    A run stores the result in its settings. The engine is loaded once to find out, so easyocr may download its
    weights. Raises Tdmr1Error if no engine can be loaded.
    """
    if options.engine != "auto":
        return options
    return options.model_copy(update={"engine": open_engine(options, "cpu").name})


def find_targets(
    prompt: str,
    metadata: Mapping[str, Any],
    which: Literal["first", "all"] = "first",
    comparison: Comparison = "unicode",
) -> Targets:
    """The texts that the image should contain: the metadata's `text`, else the quoted texts of the prompt (QUOTED).

    `which` selects the first quoted text or all of them; `comparison` is how they are normalized. A text without a
    visible character is no target. Raises Tdmr1Error if the metadata's `text` is not a string.
    """
    if "text" in metadata:
        text = metadata["text"]
        if not isinstance(text, str):
            raise Tdmr1Error(
                f"prompt {prompt!r}: the metadata's `text` is {text!r}, not a string",
                "set `text` to the text that the image should contain",
                code="reward-metadata",
                values={"prompt": prompt, "key": "text", "found": text},
            )
        if not has_visible(text):
            return Targets(reason="the metadata's `text` is empty")
        return Targets((normalize(text, comparison),))
    if DOUBLED.search(prompt):
        return Targets(reason="the quotation marks around the text are doubled")
    quoted = [next(filter(None, match.groups()), "") for match in QUOTED.finditer(prompt)]
    if not quoted:
        single = SINGLE_QUOTED.search(prompt)
        return Targets(reason=f"{NO_QUOTES} (single straight quotes do not count)" if single else NO_QUOTES)
    chosen = quoted if which == "all" else quoted[:1]
    texts = tuple(normalize(text, comparison) for text in chosen if has_visible(text))
    return Targets(texts) if texts else Targets(reason="the quoted text is empty")


def match_score(target: str, text: str) -> float:
    """1 - min(distance, length) / length of a target that is not empty, or 1 if `text` contains it; 0 to 1.

    Both are normalized; distance is Levenshtein's, length that of the target.
    """
    from rapidfuzz.distance import Levenshtein

    if target in text:
        return 1.0
    return 1 - min(Levenshtein.distance(target, text), len(target)) / len(target)
