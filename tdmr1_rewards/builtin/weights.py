"""What the built-in rewards need from this machine, and lack: weights in the cache of the hub, and an API key.

A function for each reward takes its options and the longer side of the images in pixels. Nothing is
downloaded or built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tdmr1_rewards.builtin.optional import hub_reference, is_cached
from tdmr1_rewards.errors import Tdmr1Error

NOT_CACHED = "hub-unavailable"
"""The code of the error for weights that are not in the cache. They are downloaded when the reward is built."""
OPEN_CLIP_HUB = "hf-hub:"


def of_object_count(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The checkpoint of the detector, if images of this size need one."""
    from tdmr1_rewards.builtin.object_count import DEFAULT_CHECKPOINT

    return _missing(*_detector(options, pixels, DEFAULT_CHECKPOINT))


def of_geneval(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The checkpoint of the detector and the model of colors, if images of this size need them."""
    from tdmr1_rewards.builtin.geneval import DEFAULT_CHECKPOINT

    detector = _detector(options, pixels, DEFAULT_CHECKPOINT)
    return _missing(*detector, *([options.colour_model] if detector else []))


def of_aesthetic(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The head, and the CLIP model if it is on the hub."""
    return _missing(options.head, *_open_clip(options.model))


def of_clip_score(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The CLIP model."""
    return _missing(*([options.model] if options.library == "transformers" else _open_clip(options.model)))


def of_pickscore(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The checkpoint and its processor."""
    return _missing(options.model, options.processor)


def of_hpsv2(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The checkpoint."""
    return _missing(options.checkpoint)


def of_imagereward(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The checkpoint and the tokenizer."""
    return _missing(options.checkpoint, options.tokenizer)


def of_vlm_judge(options: Any, pixels: int) -> list[Tdmr1Error]:
    """The environment variable of the API key."""
    from tdmr1_rewards.builtin.vlm_judge import read_key

    try:
        read_key(options.api_key_env)
    except Tdmr1Error as error:
        return [error]
    return []


def _detector(options: Any, pixels: int, default: str) -> list[str]:
    """The checkpoint of a detector; none if blobs are detected."""
    from tdmr1_rewards.builtin.detection.blobs import MAX_SIDE
    from tdmr1_rewards.builtin.detection.detectors import AUTO, BLOBS

    if options.detector == BLOBS or (options.detector == AUTO and pixels <= MAX_SIDE):
        return []
    return [default if options.detector == AUTO else options.detector]


def _open_clip(model: str) -> list[str]:
    """The repository of an open_clip model; none if its weights are a tag, which open_clip resolves itself."""
    return [model.removeprefix(OPEN_CLIP_HUB)] if model.startswith(OPEN_CLIP_HUB) else []


def _missing(*references: str) -> list[Tdmr1Error]:
    """An error for each reference to the hub that is not in its cache. Local paths are not looked up."""
    return [
        _not_cached(each)
        for each in dict.fromkeys(references)
        if not Path(each).expanduser().exists() and not Path(each).is_absolute() and not is_cached(each)
    ]


def _not_cached(reference: str) -> Tdmr1Error:
    repo, file = hub_reference(reference)
    return Tdmr1Error(
        f"{reference} is not in the local cache",
        " ".join(filter(None, ("hf download", repo, file))),
        code=NOT_CACHED,
        values={"repo": repo, "file": file},
    )
