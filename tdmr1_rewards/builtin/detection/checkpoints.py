"""Object detectors of transformers behind one interface: closed-set (boxes or masks) and zero-shot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmr1_rewards.builtin.detection.class_names import find_class, match_class, singular
from tdmr1_rewards.builtin.detection.detections import Box, Detection, UnknownClassError
from tdmr1_rewards.builtin.optional import download_error, first_line
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

SEGMENTERS = ("mask2former", "maskformer")
"""Model types that predict masks; boxes are computed from them."""
ZERO_SHOT = ("grounding-dino", "mm-grounding-dino", "owlv2", "owlvit")
"""Model types that take class names as text."""
UNUSED_LABEL = "N/A"
"""The name of unused class numbers in the label files of COCO."""


class CheckpointDetector(ABC):
    """A loaded detector. It processes `batch_size` images at once and omits confidences below `floor` (0 to 1)."""

    def __init__(self, model: Any, processor: Any, *, device: str, batch_size: int, floor: float) -> None:
        self._model, self._processor = model, processor
        self._device, self._batch_size, self._floor = device, batch_size, floor

    @abstractmethod
    def class_of(self, name: str) -> str:
        """The detector's own name of a class. Raises UnknownClassError if it has none."""

    @abstractmethod
    def class_in(self, prompt: str) -> str | None:
        """The detector's own name of the first class that a prompt mentions, or None if there is none."""

    @abstractmethod
    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See Detector."""

    def _run(self, **inputs: Any) -> Any:
        """The outputs of the network for the inputs of its processor."""
        import torch

        with torch.inference_mode():
            return self._model(**self._processor(**inputs, return_tensors="pt").to(self._device))


class ClosedSetDetector(CheckpointDetector):
    """Finds the classes of a fixed list."""

    def __init__(self, model: Any, processor: Any, *, device: str, batch_size: int, floor: float) -> None:
        super().__init__(model, processor, device=device, batch_size=batch_size, floor=floor)
        labels = model.config.id2label.items()
        self._labels = {int(index): str(label) for index, label in labels if label != UNUSED_LABEL}

    def class_of(self, name: str) -> str:
        """The checkpoint's label of a class. Raises UnknownClassError if it has none."""
        found = match_class(name, self._labels.values())
        if found is None:
            raise UnknownClassError(
                f"the detector does not know the class {name!r} (it knows {len(self._labels)} classes)",
                close_match_hint(name, self._labels.values()),
                code="reward-metadata",
                values={"class": name, "known": sorted(self._labels.values())},
            )
        return found

    def class_in(self, prompt: str) -> str | None:
        """The label of the first class that a prompt mentions, or None."""
        return find_class(prompt, self._labels.values())

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See Detector."""
        converted = [_to_pil(image) for image in images]
        found: list[list[Detection]] = []
        for start in range(0, len(converted), self._batch_size):
            found += self._detect_all(converted[start : start + self._batch_size])
        return [
            [detection for detection in detections if detection.label in wanted]
            for detections, wanted in zip(found, classes, strict=True)
        ]

    @abstractmethod
    def _detect_all(self, images: list[Any]) -> list[list[Detection]]:
        """The objects of all classes in PIL images that are processed at once, highest confidence first."""


class BoxDetector(ClosedSetDetector):
    """DETR, RT-DETR, YOLOS and the like: boxes of a fixed list of classes."""

    def _detect_all(self, images: list[Any]) -> list[list[Detection]]:
        outputs = self._run(images=images)
        results = self._processor.post_process_object_detection(
            outputs, threshold=self._floor, target_sizes=_sizes(images)
        )
        return [
            _sorted(
                Detection(self._labels[label], score, _box(box))
                for label, score, box in zip(
                    *(result[key].tolist() for key in ("labels", "scores", "boxes")), strict=True
                )
                if label in self._labels
            )
            for result in results
        ]


class MaskDetector(ClosedSetDetector):
    """Mask2Former and MaskFormer: masks of instances of a fixed list of classes, and the boxes around them."""

    def _detect_all(self, images: list[Any]) -> list[list[Detection]]:
        outputs = self._run(images=images)
        results = self._processor.post_process_instance_segmentation(
            outputs, threshold=self._floor, target_sizes=_sizes(images), return_binary_maps=True
        )
        return [_sorted(self._instances(result)) for result in results]

    def _instances(self, result: Any) -> Iterator[Detection]:
        """The objects of one post-processed image."""
        # strict=False: without instances, `segmentation` is one map (H, W) and `segments_info` is empty.
        for mask, segment in zip(result["segmentation"], result["segments_info"], strict=False):
            if segment["label_id"] in self._labels:
                inside = mask.cpu().numpy() > 0  # (H, W)
                yield Detection(self._labels[segment["label_id"]], segment["score"], _box_around(inside), mask=inside)


class ZeroShotDetector(CheckpointDetector):
    """Grounding DINO and OWL-ViT: boxes of any class that is given as text. One query for each image and class."""

    def class_of(self, name: str) -> str:
        """The name in the singular and in lower case. Every name is a class."""
        return singular(name.strip().lower())

    def class_in(self, prompt: str) -> str | None:
        """None: there is no list of classes to search the prompt for."""
        return None

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See Detector."""
        converted = [_to_pil(image) for image in images]
        queries = [(index, name) for index, names in enumerate(classes) for name in dict.fromkeys(names)]
        found: list[list[Detection]] = [[] for _ in converted]
        for start in range(0, len(queries), self._batch_size):
            chunk = queries[start : start + self._batch_size]
            for (index, name), result in zip(chunk, self._process(converted, chunk), strict=True):
                pairs = zip(result["scores"].tolist(), result["boxes"].tolist(), strict=True)
                found[index] += [Detection(name, score, _box(box)) for score, box in pairs]
        return [_sorted(detections) for detections in found]

    def _process(self, images: list[Any], queries: Sequence[tuple[int, str]]) -> list[Any]:
        """The post-processed result of each query, an index in `images` and a class name."""
        selected = [images[index] for index, _ in queries]
        if self._model.config.model_type.startswith("owl"):
            outputs = self._run(images=selected, text=[[f"a photo of a {name}"] for _, name in queries])
        else:
            outputs = self._run(images=selected, text=[[name] for _, name in queries], padding=True)
        results: list[Any] = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._floor, target_sizes=_sizes(selected)
        )
        return results


def load_detector(source: str, *, device: str, batch_size: int, floor: float = 0.0) -> CheckpointDetector:
    """The transformers detector with this hub name or folder, on `device`; its config determines the class.

    It processes `batch_size` images at once and omits confidences below `floor`. Raises Tdmr1Error if the checkpoint
    cannot be loaded, is not a detector, or lacks weights.
    """
    _check_folder(source)
    import transformers

    config = _load(transformers.AutoConfig, source)
    detector_class, model_loader, processor_loader = _classes_for(config, source)
    model, loaded = _load(model_loader, source, output_loading_info=True)
    missing = sorted(key for key in loaded["missing_keys"] if not key.endswith("num_batches_tracked"))
    if missing:
        raise Tdmr1Error(
            f"the detector {source} lacks {len(missing)} weights, such as {missing[0]}",
            f"name a checkpoint that was trained as a {type(model).__name__}",
            code="reward-weights",
            values={"source": source, "missing": missing},
        )
    processor = _load(processor_loader, source)
    return detector_class(model.eval().to(device), processor, device=device, batch_size=batch_size, floor=floor)


def _classes_for(config: Any, source: str) -> tuple[type[CheckpointDetector], Any, Any]:
    """The detector class for a config, and the transformers classes that load its model and its processor."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    if config.model_type in ZERO_SHOT:
        return ZeroShotDetector, transformers.AutoModelForZeroShotObjectDetection, transformers.AutoProcessor
    if config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return BoxDetector, transformers.AutoModelForObjectDetection, transformers.AutoImageProcessor
    if config.model_type in SEGMENTERS:
        return MaskDetector, transformers.AutoModelForUniversalSegmentation, transformers.AutoImageProcessor
    raise Tdmr1Error(
        f"{source} is a {config.model_type} model, not a supported object detector",
        "name an object detector such as DETR, RT-DETR, YOLOS, Mask2Former, Grounding DINO or OWLv2",
        code="reward-weights",
        values={"source": source, "model_type": config.model_type},
    )


def _check_folder(source: str) -> None:
    """Raise Tdmr1Error if `source` is a folder without a config, or a path that is no folder."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Tdmr1Error(
                f"the detector folder {source} has no config.json",
                "name a folder that was written by save_pretrained",
                code="reward-weights",
                values={"source": source},
            )
    elif path.exists() or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise Tdmr1Error(
            f"there is no folder {source!r} with a detector",
            "check the path, or give a hub name",
            code="file-missing",
            values={"path": source},
        )


def _load(loader: Any, source: str, **settings: Any) -> Any:
    """Call `loader.from_pretrained` for a hub name or folder. Raises Tdmr1Error if it fails."""
    path = Path(source).expanduser()
    try:
        return loader.from_pretrained(str(path) if path.is_dir() else source, **settings)
    except Exception as error:
        if path.is_dir():
            raise Tdmr1Error(
                f"the detector in {source} cannot be loaded: {first_line(error)}",
                "save the model and its processor to the same folder with save_pretrained",
                code="reward-weights",
                values={"source": source, "error": first_line(error)},
            ) from error
        hint = (
            "run once with a connection, or name a folder with the option 'detector'; "
            "`detector: blobs` needs no checkpoint"
        )
        raise download_error(source, error, hint) from error


def _to_pil(image: Any) -> Any:
    """A PIL image from a PIL image or a uint8 array (H, W, 3)."""
    from PIL import Image

    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _sizes(images: Sequence[Any]) -> list[tuple[int, int]]:
    """The height and width of PIL images."""
    return [(image.height, image.width) for image in images]


def _sorted(detections: Iterable[Detection]) -> list[Detection]:
    """Highest confidence first; the last of equal ones first, as in GenEval's script, which reverses an upward sort."""
    return sorted(detections, key=lambda detection: detection.score)[::-1]


def _box(edges: Sequence[float]) -> Box:
    left, top, right, bottom = edges
    return left, top, right, bottom


def _box_around(mask: np.ndarray) -> Box:
    """The box around the pixels of a mask (H, W) that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
