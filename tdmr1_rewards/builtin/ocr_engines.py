"""Engines that read the text in a picture, behind one call: an RGB image in, lines with their confidence out."""

from __future__ import annotations

import logging
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
    """A piece of text as the engine found it, with its confidence (0 to 1)."""

    text: str
    confidence: float


class OcrEngine(Protocol):
    """Reads pictures. `name` is that of the `engine` option; `min_confidence` (0 to 1) is what it is known to need."""

    name: str
    min_confidence: float

    def read(self, image: Image) -> list[Line]:
        """The text of an RGB image, in reading order; none where nothing is found."""


class OcrOptions(RewardOptions):
    """Which engine reads, and how."""

    engine: Literal["auto", "easyocr", "rapidocr", "tesseract"] = Field(
        "auto",
        description="auto: easyocr where it is installed and its weights can be had, else rapidocr; chosen once",
    )
    detect: bool = Field(
        True, description="look for text anywhere; false: take the picture (or `crop`) as one line, which is faster"
    )
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="easyocr: codes of the languages to read")
    model_storage_directory: Path | None = Field(None, description="easyocr: where its weights lie or are put")
    user_network_directory: Path | None = Field(None, description="easyocr: where a network of your own lies")
    recog_network: str = Field("standard", description="easyocr: the recognition network, such as one of your own")
    download_enabled: bool = Field(True, description="easyocr: fetch weights that are missing (about 100 MB)")
    detect_side: int = Field(
        320, ge=32, description="rapidocr: enlarge until the shorter side has this many pixels before looking for text"
    )
    threads: int | None = Field(None, ge=1, description="rapidocr: CPU threads; all of them by default")
    tesseract_language: str = Field("eng", description="tesseract: the language data to use, such as eng+deu")


class RapidOcr:
    """PP-OCR through rapidocr and onnxruntime; the networks come with rapidocr, so it works offline."""

    name = "rapidocr"

    def __init__(self, options: OcrOptions, device: str) -> None:
        rapidocr = import_optional("rapidocr", RAPIDOCR_INSTALL)
        onnxruntime = import_optional("onnxruntime", RAPIDOCR_INSTALL)
        on_cuda = device.startswith("cuda") and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        self._detect = options.detect
        # PaddleOCR drops what it is less sure of by default; one line that is known to be there is always taken.
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
        return [Line(text, float(score)) for text, score in zip(found.txts, found.scores, strict=True)]


class EasyOcr:
    """easyocr with its own weights, or with a recognition network of the user's.

    The standard weights are compared with their published MD5 by easyocr; a network of the user's is Python code that
    is run, and of its weights only tensors are taken.
    """

    name = "easyocr"
    min_confidence = 0.0

    def __init__(self, options: OcrOptions, device: str) -> None:
        easyocr = import_optional("easyocr", INSTALL)
        self._detect = options.detect
        _refuse_pickles(easyocr, options)
        try:
            self._reader = easyocr.Reader(
                list(options.languages),
                gpu=False if device == "cpu" else device,
                model_storage_directory=_text(options.model_storage_directory),
                user_network_directory=_text(options.user_network_directory),
                recog_network=options.recog_network,
                download_enabled=options.download_enabled,
                detector=options.detect,
                verbose=False,
                quantize=False,
            )
        except Exception as error:
            raise Tdmr1Error(
                f"easyocr can't be made ready: {first_line(error)}",
                "put its weights into `model_storage_directory`, or read with `engine: rapidocr`, which brings its own",
            ) from error
        # easyocr spreads its networks over all GPUs, which fails on any but the first.
        for part in ("recognizer", "detector"):
            network = getattr(self._reader, part, None)
            setattr(self._reader, part, getattr(network, "module", network))

    def read(self, image: Image) -> list[Line]:
        """See OcrEngine."""
        grey = np.asarray(image.convert("L"))
        boxes: tuple[Any, Any] = (None, None)
        if self._detect:
            upright, slanted = self._reader.detect(np.asarray(image), reformat=False)
            boxes = (upright[0], slanted[0])
        found = self._reader.recognize(grey, *boxes, reformat=False)
        return [Line(text, float(confidence)) for _, text, confidence in found]


class Tesseract:
    """The program `tesseract` through pytesseract: calm on clean print, poor on anything else."""

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
                "the program tesseract is not installed", "install it, for instance with `apt install tesseract-ocr`"
            ) from error

    def read(self, image: Image) -> list[Line]:
        """See OcrEngine."""
        found = self._pytesseract.image_to_data(
            image, lang=self._language, config=self._config, output_type=self._pytesseract.Output.DICT
        )
        # Rows that hold no word (pages, blocks, lines) have the confidence -1.
        words = [(text, float(sure)) for text, sure in zip(found["text"], found["conf"], strict=True)]
        return [Line(text, sure / 100) for text, sure in words if sure >= 0 and text.strip()]


ENGINES: dict[str, type[RapidOcr] | type[EasyOcr] | type[Tesseract]] = {
    engine.name: engine for engine in (EasyOcr, RapidOcr, Tesseract)
}


def open_engine(options: OcrOptions, device: str) -> OcrEngine:
    """The engine that `options` name, ready on `device`; for `auto` the first that can be made ready.

    Raises Tdmr1Error where an engine or its weights are missing.
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
                f"no OCR engine can be used: {easyocr_error.message}; {error.message}", error.hint
            ) from error
        logger.info("text is read with rapidocr: %s", easyocr_error.message)
    return engine


def _refuse_pickles(easyocr: Any, options: OcrOptions) -> None:
    """easyocr unpickles whatever a network of the user's own holds: let none pass that is more than tensors."""
    known = easyocr.config.recognition_models
    if options.recog_network in ("standard", *known["gen1"], *known["gen2"]):
        return
    folder = options.model_storage_directory or Path(easyocr.config.MODULE_PATH) / "model"
    weights = folder / f"{options.recog_network}.pth"
    if not weights.is_file():
        raise Tdmr1Error(
            f"the weights of the recognition network {options.recog_network!r} are not at {weights}",
            "they belong into `model_storage_directory`, its .py and .yaml into `user_network_directory`",
        )
    import torch

    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise Tdmr1Error(
            f"{weights} holds more than tensors, so it is not loaded: {first_line(error)}",
            "save a state dict, `torch.save(network.state_dict(), path)`",
        ) from error


def _device_index(device: str) -> int:
    """1 for "cuda:1"; 0 where no index is told."""
    return int(device.rpartition(":")[2]) if ":" in device else 0


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser())
