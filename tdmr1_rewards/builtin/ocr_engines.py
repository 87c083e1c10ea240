"""OCR engines behind one interface: an RGB image in, lines of text with their confidence out."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from pydantic import Field

from tdmr1_rewards.builtin.optional import first_line, import_optional
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.options import RewardOptions

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "tdmr1[ocr]"
RAPIDOCR_INSTALL = "tdmr1[rapidocr]"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """A piece of text that an engine found, with its confidence (0 to 1)."""

    text: str
    confidence: float


class OcrEngine(Protocol):
    """Reads images. `name` is a value of the option `engine`; `min_confidence` (0 to 1) is the engine's default."""

    name: str
    min_confidence: float

    def read(self, image: Image) -> list[Line]:
        """The text of an RGB image in reading order, as `recognized` returns it; an empty list if there is none."""


def recognized(found: Iterable[tuple[str, float]]) -> list[Line]:
    """The lines, from texts and confidences, that have a visible text and a confidence above 0.

    Tesseract reports confidence 0 for guesses on noise, and -1 for rows without a word. The other engines report 0 for
    lines in which they recognized no character.
    """
    return [Line(text, float(confidence)) for text, confidence in found if confidence > 0 and text.strip()]


class OcrOptions(RewardOptions):
    """The engine and its settings."""

    engine: Literal["auto", "easyocr", "rapidocr", "tesseract"] = Field(
        "auto",
        description="auto: easyocr if it is installed and its weights are available, else rapidocr; chosen once a run",
    )
    detect: bool = Field(
        True, description="locate text first; false: read the whole image (or `crop`) as one line, which is faster"
    )
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="easyocr: language codes to read")
    model_storage_directory: Path | None = Field(
        None, description="easyocr: folder of its weights; missing weights are downloaded to it"
    )
    user_network_directory: Path | None = Field(None, description="easyocr: folder of a custom recognition network")
    recog_network: str = Field("standard", description="easyocr: name of the recognition network, built-in or custom")
    download_enabled: bool = Field(True, description="easyocr: download missing weights (about 100 MB)")
    detect_side: int = Field(
        320,
        ge=32,
        description="rapidocr: before text is located, enlarge the image to at least this shorter side in pixels",
    )
    threads: int | None = Field(None, ge=1, description="rapidocr: number of CPU threads; all cores by default")
    tesseract_language: str = Field("eng", description="tesseract: language data, such as eng+deu")


class RapidOcr:
    """PP-OCR through rapidocr and onnxruntime. The package includes the networks, so it works offline."""

    name = "rapidocr"

    def __init__(self, options: OcrOptions, device: str) -> None:
        rapidocr = import_optional("rapidocr", RAPIDOCR_INSTALL)
        onnxruntime = import_optional("onnxruntime", RAPIDOCR_INSTALL)
        on_cuda = device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        self._detect = options.detect
        # 0.5 is the default of PaddleOCR. Without detection the image is known to be one line of text, so it is kept.
        self.min_confidence = 0.5 if options.detect else 0.0
        self._engine = rapidocr.RapidOCR(
            params={
                "Global.log_level": "critical",
                "Det.limit_side_len": options.detect_side,
                "EngineConfig.onnxruntime.intra_op_num_threads": options.threads or -1,
                "EngineConfig.onnxruntime.use_cuda": on_cuda,
                "EngineConfig.onnxruntime.cuda_ep_cfg.device_id": _device_index(device),
            }
        )

    def read(self, image: Image) -> list[Line]:
        """See OcrEngine."""
        found = self._engine(image, use_det=self._detect, use_cls=False, use_rec=True, text_score=0.0)
        if found.txts is None:
            return []
        return recognized(zip(found.txts, found.scores, strict=True))


class EasyOcr:
    """easyocr with its standard weights or with a custom recognition network.

    easyocr checks the standard weights against their published MD5. The Python code of a custom network is executed,
    but its weights file may contain only tensors.
    """

    name = "easyocr"
    min_confidence = 0.0

    def __init__(self, options: OcrOptions, device: str) -> None:
        easyocr = import_optional("easyocr", INSTALL)
        self._detect = options.detect
        _check_custom_weights(easyocr, options)
        try:
            self._reader = easyocr.Reader(
                list(options.languages),
                gpu=False if device == "cpu" else device,
                model_storage_directory=_path_text(options.model_storage_directory),
                user_network_directory=_path_text(options.user_network_directory),
                recog_network=options.recog_network,
                download_enabled=options.download_enabled,
                detector=options.detect,
                verbose=False,
                quantize=False,
            )
        except Exception as error:
            raise Tdmr1Error(
                f"easyocr cannot be loaded: {first_line(error)}",
                "put its weights into `model_storage_directory`, or use `engine: rapidocr`, which includes its weights",
                code="reward-weights",
                values={"engine": "easyocr", "error": first_line(error)},
            ) from error
        # easyocr wraps its networks in DataParallel, which fails on any GPU but the first.
        for part in ("recognizer", "detector"):
            network = getattr(self._reader, part, None)
            setattr(self._reader, part, getattr(network, "module", network))

    def read(self, image: Image) -> list[Line]:
        """See OcrEngine."""
        gray = np.asarray(image.convert("L"))  # (H, W)
        boxes: tuple[Any, Any] = (None, None)
        if self._detect:
            horizontal, free = self._reader.detect(np.asarray(image), reformat=False)
            boxes = (horizontal[0], free[0])
        found = self._reader.recognize(gray, *boxes, reformat=False)
        return recognized((text, confidence) for _, text, confidence in found)


class Tesseract:
    """The program `tesseract` through pytesseract: reliable on clean print only."""

    name = "tesseract"
    min_confidence = 0.0

    def __init__(self, options: OcrOptions, device: str) -> None:
        self._pytesseract = import_optional("pytesseract", "pytesseract")
        self._language = options.tesseract_language
        self._config = "--psm 11" if options.detect else "--psm 7"
        try:
            self._pytesseract.get_tesseract_version()
        except Exception as error:
            raise Tdmr1Error(
                "the program tesseract is not installed",
                "install it, for instance with `apt install tesseract-ocr`",
                code="dependency-missing",
                values={"program": "tesseract"},
            ) from error

    def read(self, image: Image) -> list[Line]:
        """See OcrEngine."""
        found = self._pytesseract.image_to_data(
            image, lang=self._language, config=self._config, output_type=self._pytesseract.Output.DICT
        )
        # Confidence is 0 to 100, and -1 in rows for pages, blocks and lines, which hold no word.
        words = zip(found["text"], found["conf"], strict=True)
        return recognized((text, float(percent) / 100) for text, percent in words)


ENGINES: dict[str, type[RapidOcr] | type[EasyOcr] | type[Tesseract]] = {
    engine.name: engine for engine in (EasyOcr, RapidOcr, Tesseract)
}


def open_engine(options: OcrOptions, device: str) -> OcrEngine:
    """The engine that `options` name, loaded on `device`; for `auto`, easyocr if it can be loaded, else rapidocr.

    Raises Tdmr1Error if the engine or its weights are missing.
    """
    if options.engine != "auto":
        return ENGINES[options.engine](options, device)
    try:
        engine: OcrEngine = EasyOcr(options, device)
    except Tdmr1Error as easyocr_error:
        try:
            engine = RapidOcr(options, device)
        except Tdmr1Error as error:
            raise Tdmr1Error(
                f"no OCR engine can be used: {easyocr_error.message}; {error.message}",
                error.hint,
                code="dependency-missing",
                values={"easyocr": easyocr_error.document(), "rapidocr": error.document()},
            ) from error
        logger.info("`engine: auto` uses rapidocr: %s", easyocr_error.message)
    return engine


def _check_custom_weights(easyocr: Any, options: OcrOptions) -> None:
    """Raise Tdmr1Error if a custom network has no weights file, or one with more than tensors: easyocr unpickles it."""
    known = easyocr.config.recognition_models
    if options.recog_network in ("standard", *known["gen1"], *known["gen2"]):
        return
    folder = options.model_storage_directory or Path(easyocr.config.MODULE_PATH) / "model"
    weights = folder / f"{options.recog_network}.pth"
    if not weights.is_file():
        raise Tdmr1Error(
            f"the recognition network {options.recog_network!r} has no weights file {weights}",
            "put the weights into `model_storage_directory`, and its .py and .yaml into `user_network_directory`",
            code="reward-weights",
            values={"network": options.recog_network, "path": str(weights)},
        )
    import torch

    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Tdmr1Error(
            f"{weights} is not loaded, because it must contain only tensors: {first_line(error)}",
            "save a state dict: `torch.save(network.state_dict(), path)`",
            code="reward-weights",
            values={"path": str(weights), "error": first_line(error)},
        ) from error


def _device_index(device: str) -> int:
    """The index of a torch device name: 1 for "cuda:1", 0 if the name has none."""
    return int(device.rpartition(":")[2]) if ":" in device else 0


def _path_text(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser())
