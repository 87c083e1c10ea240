"""Object detectors of transformers, closed-set, segmenting or zero-shot, behind one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tdmr1_rewards.builtin.detection.class_names import find_class, match_class, singular
from tdmr1_rewards.builtin.detection.detections import Detection, UnknownClassError
from tdmr1_rewards.builtin.optional import first_line
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint

SEGMENTERS = ("mask2former", "maskformer")
"""Model types whose instances are masks, which boxes are drawn around."""
ZERO_SHOT = ("grounding-dino", "mm-grounding-dino", "owlv2", "owlvit")
"""Model types that are asked in words."""
NO_LABEL = "N/A"
"""What COCO's label files call the numbers that they don't use."""


class CheckpointDetector(ABC):
    """A loaded detector; `floor` is the confidence, 0 to 1, below which nothing need be answered."""

    def __init__(self, model: Any, processor: Any, *, device: str, batch_size: int, floor: float) -> None:
        self._model, self._processor = model, processor
        self._device, self._batch_size, self._floor = device, batch_size, floor

    @abstractmethod
    def class_of(self, name: str) -> str:
        """The detector's own name of a class. Raises UnknownClassError if it has none."""

    @abstractmethod
    def class_in(self, prompt: str) -> str | None:
        """The detector's own name of what a prompt speaks of first, or None where that can't be told."""

    @abstractmethod
    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See Detector."""

    def _run(self, **inputs: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(**self._processor(**inputs, return_tensors="pt").to(self._device))


class ClosedSetDetector(CheckpointDetector):
    """Finds the classes of its own list."""

    def __init__(self, model: Any, processor: Any, *, device: str, batch_size: int, floor: float) -> None:
        super().__init__(model, processor, device=device, batch_size=batch_size, floor=floor)
        labels = model.config.id2label.items()
        self._labels = {int(index): str(label) for index, label in labels if label != NO_LABEL}

    def class_of(self, name: str) -> str:
        """The checkpoint's own label of a class. Raises UnknownClassError if it has none."""
        found = match_class(name, self._labels.values())
        if found is None:
            raise UnknownClassError(
                f"the detector has no {name!r} among its {len(self._labels)} classes",
                close_match_hint(name, self._labels.values()),
            )
        return found

    def class_in(self, prompt: str) -> str | None:
        """The label of what a prompt speaks of first, or None."""
        return find_class(prompt, self._labels.values())

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See Detector."""
        pictures = [_picture(image) for image in images]
        found: list[list[Detection]] = []
        for start in range(0, len(pictures), self._batch_size):
            found += self._found(pictures[start : start + self._batch_size])
        return [
            [detection for detection in detections if detection.label in wanted]
            for detections, wanted in zip(found, classes, strict=True)
        ]

    @abstractmethod
    def _found(self, pictures: list[Any]) -> list[list[Detection]]:
        """Everything in one batch of pictures, surest first."""


class BoxDetector(ClosedSetDetector):
    """DETR, RT-DETR, YOLOS and the like: boxes of a fixed list of classes."""

    def _found(self, pictures: list[Any]) -> list[list[Detection]]:
        outputs = self._run(images=pictures)
        answers = self._processor.post_process_object_detection(
            outputs, threshold=self._floor, target_sizes=_sizes(pictures)
        )
        return [
            _sorted(
                Detection(self._labels[label], score, _box(box))
                for label, score, box in zip(
                    *(answer[key].tolist() for key in ("labels", "scores", "boxes")), strict=True
                )
                if label in self._labels
            )
            for answer in answers
        ]


class MaskDetector(ClosedSetDetector):
    """Mask2Former and MaskFormer: masks of instances of a fixed list of classes, with boxes drawn around them."""

    def _found(self, pictures: list[Any]) -> list[list[Detection]]:
        outputs = self._run(images=pictures)
        answers = self._processor.post_process_instance_segmentation(
            outputs, threshold=self._floor, target_sizes=_sizes(pictures), return_binary_maps=True
        )
        return [_sorted(self._instances(answer)) for answer in answers]

    def _instances(self, answer: Any) -> Iterator[Detection]:
        # Without any instance, what is called the segmentation is one empty map.
        for mask, segment in zip(answer["segmentation"], answer["segments_info"], strict=False):
            if segment["label_id"] in self._labels:
                inside = mask.cpu().numpy() > 0
                yield Detection(self._labels[segment["label_id"]], segment["score"], _box_around(inside), mask=inside)


class ZeroShotDetector(CheckpointDetector):
    """Grounding DINO and OWL-ViT: boxes of whatever is named; every class of a picture is asked for by itself."""

    def class_of(self, name: str) -> str:
        """The class in the singular: any words will do."""
        return singular(name.strip().lower())

    def class_in(self, prompt: str) -> str | None:
        """None: what a prompt speaks of is not guessed."""
        return None

    def detect(self, images: Any, classes: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See Detector."""
        pictures = [_picture(image) for image in images]
        asked = [(index, name) for index, names in enumerate(classes) for name in dict.fromkeys(names)]
        found: list[list[Detection]] = [[] for _ in pictures]
        for start in range(0, len(asked), self._batch_size):
            chunk = asked[start : start + self._batch_size]
            for (index, name), answer in zip(chunk, self._answers(pictures, chunk), strict=True):
                pairs = zip(answer["scores"].tolist(), answer["boxes"].tolist(), strict=True)
                found[index] += [Detection(name, score, _box(box)) for score, box in pairs]
        return [_sorted(detections) for detections in found]

    def _answers(self, pictures: list[Any], asked: Sequence[tuple[int, str]]) -> list[Any]:
        shown = [pictures[index] for index, _ in asked]
        if self._model.config.model_type.startswith("owl"):
            outputs = self._run(images=shown, text=[[f"a photo of a {name}"] for _, name in asked])
        else:
            outputs = self._run(images=shown, text=[[name] for _, name in asked], padding=True)
        answers: list[Any] = self._processor.post_process_grounded_object_detection(
            outputs, threshold=self._floor, target_sizes=_sizes(shown)
        )
        return answers


def load_detector(source: str, *, device: str, batch_size: int, floor: float = 0.0) -> CheckpointDetector:
    """A detector of transformers by hub name or folder, on `device`; its kind is told from its config.

    `batch_size` is how many pictures it sees at once, and `floor` the least confidence that is of interest.
    Raises Tdmr1Error where the checkpoint can't be had, is no detector, or lacks weights.
    """
    _check_folder(source)
    import transformers

    config = _fetched(transformers.AutoConfig, source)
    kind, loader, processor = _kind(config, source)
    model, told = _fetched(loader, source, output_loading_info=True)
    missing = sorted(key for key in told["missing_keys"] if not key.endswith("num_batches_tracked"))
    if missing:
        raise Tdmr1Error(
            f"the detector {source} has no weights for {len(missing)} of its parts, such as {missing[0]}",
            f"name a checkpoint that was trained as a {type(model).__name__}",
        )
    return kind(model.eval().to(device), _fetched(processor, source), device=device, batch_size=batch_size, floor=floor)


def _kind(config: Any, source: str) -> tuple[type[CheckpointDetector], Any, Any]:
    """The class for a config, and what its model and its processor are loaded with."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    if config.model_type in ZERO_SHOT:
        return ZeroShotDetector, transformers.AutoModelForZeroShotObjectDetection, transformers.AutoProcessor
    if config.model_type in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
        return BoxDetector, transformers.AutoModelForObjectDetection, transformers.AutoImageProcessor
    if config.model_type in SEGMENTERS:
        return MaskDetector, transformers.AutoModelForUniversalSegmentation, transformers.AutoImageProcessor
    raise Tdmr1Error(
        f"{source} is a {config.model_type} model, which finds no objects",
        "name an object detector such as DETR, RT-DETR, YOLOS, Mask2Former, Grounding DINO or OWLv2",
    )


def _check_folder(source: str) -> None:
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise Tdmr1Error(f"the folder {source} holds no config.json", "name what save_pretrained has written")
    elif path.exists() or path.is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise Tdmr1Error(f"there is no folder {source!r} with a detector", "check the path, or give a hub name")


def _fetched(loader: Any, source: str, **settings: Any) -> Any:
    """What a loader of transformers makes of a source; what goes wrong is told as a sentence."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    path = Path(source).expanduser()
    try:
        return loader.from_pretrained(str(path) if path.is_dir() else source, **settings)
    except Exception as error:
        if path.is_dir():
            raise Tdmr1Error(
                f"the detector in {source} can't be loaded: {first_line(error)}", "save model and processor together"
            ) from error
        causes = list(_causes(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise Tdmr1Error(f"the hub gives {source} to members only", "accept its terms and log in") from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise Tdmr1Error(
                f"the hub has no model {source!r}", "check the name, or log in if it is private"
            ) from error
        raise Tdmr1Error(
            f"the detector {source} is not on this machine and can't be fetched: {first_line(error)}",
            "connect once, or name a folder with the option 'detector'; small worlds need none (`detector: blobs`)",
        ) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _picture(image: Any) -> Any:
    from PIL import Image

    return Image.fromarray(image) if isinstance(image, np.ndarray) else image


def _sizes(pictures: Sequence[Any]) -> list[tuple[int, int]]:
    return [(picture.height, picture.width) for picture in pictures]


def _sorted(detections: Any) -> list[Detection]:
    return sorted(detections, key=lambda detection: -detection.score)


def _box(edges: Sequence[float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = edges
    return left, top, right, bottom


def _box_around(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The box around the pixels of a mask (H, W) that holds at least one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
