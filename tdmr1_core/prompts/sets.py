"""Prompt sets by name or from files. Does not import torch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error, close_match_hint
from tdmr1_core.prompts import geneval as composed
from tdmr1_core.prompts.files import read_prompt_file
from tdmr1_core.prompts.ocr import ocr_prompts
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.scenes import scene_prompts
from tdmr1_core.tiny.words import word_captions
from tdmr1_core.tiny.world import (
    NUMBERS,
    ORDERED,
    RELATIONS,
    SHAPES,
    CountCaption,
    count_captions,
    pair_captions,
    training_captions,
)


def _count(held_out: bool | None) -> list[Prompt]:
    return [Prompt(caption.text, caption.metadata) for caption in count_captions(held_out=held_out)]


def _pairs(held_out: bool | None, relations: Sequence[str] = RELATIONS) -> list[Prompt]:
    return [Prompt(caption.text, caption.metadata) for caption in pair_captions(relations, held_out=held_out)]


def _world() -> list[Prompt]:
    """All training captions of the tiny model, with those of count scenes five times, so that they are half of all."""
    captions = training_captions()
    captions += 4 * [caption for caption in captions if isinstance(caption, CountCaption)]
    return [Prompt(caption.text, caption.metadata) for caption in captions]


def _without_colour() -> list[Prompt]:
    """Count captions without a color, for preference rewards."""
    captions = [CountCaption(count + 1, None, shape) for count in range(len(NUMBERS)) for shape in SHAPES]
    return [Prompt(caption.text, caption.metadata) for caption in captions]


def _composed(held_out: bool) -> list[Prompt]:
    """Count captions, which exclude one object more, and about as many pair captions: GenEval in the embedded world."""
    counts = [
        Prompt(caption.text, {**caption.metadata, "exclude": [{"class": caption.shape, "count": caption.number + 1}]})
        for caption in count_captions(held_out=held_out)
        if caption.number is not None
    ]
    pairs = _pairs(held_out)
    return counts * max(1, len(pairs) // len(counts)) + pairs


def _words(held_out: bool) -> list[Prompt]:
    return [Prompt(caption.text, caption.metadata) for caption in word_captions(held_out=held_out)]


PROMPT_SETS: dict[str, dict[str, Callable[[], list[Prompt]]]] = {
    "tiny": {
        "count": lambda: _count(False),
        "count-held-out": lambda: _count(True),
        "count-all": lambda: _count(None),
        "pairs": lambda: _pairs(False),
        "pairs-held-out": lambda: _pairs(True),
        "ordered-pairs": lambda: _pairs(False, ORDERED),
        "ordered-pairs-held-out": lambda: _pairs(True, ORDERED),
        "geneval": lambda: _composed(False),
        "geneval-held-out": lambda: _composed(True),
        "scenes": _without_colour,
        "world": _world,
    },
    "words": {
        "ocr": lambda: _words(False),
        "ocr-held-out": lambda: _words(True),
    },
    "photo": {
        "ocr": lambda: ocr_prompts(held_out=False),
        "ocr-held-out": lambda: ocr_prompts(held_out=True),
        "scenes": lambda: scene_prompts(held_out=False),
        "scenes-held-out": lambda: scene_prompts(held_out=True),
        "count": lambda: composed.counting(False),
        "count-held-out": lambda: composed.counting(True),
        "geneval": lambda: composed.geneval(False),
        "geneval-held-out": lambda: composed.geneval(True),
    },
}
"""Generated prompt sets by domain and name. Sets with the suffix `-held-out` contain captions for evaluation only.

The default set of a reward has the same name in every domain.
"""

TRAINING_FILES = ("train_metadata.jsonl", "train.txt")
"""The files of training prompts in a folder in the layout of flow_grpo; the first that exists is read."""
NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
KINDS = {
    stat.S_IFDIR: f"a folder with neither {' nor '.join(TRAINING_FILES)}",
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
}

EMBEDDED_DOMAINS = ("tiny", "words")
"""The domains of the embedded models."""


HUB = "hf:"
"""The start of the name of a dataset of the hub (`hub_datasets.py`)."""


@dataclass(frozen=True)
class PromptSet:
    """A prompt set with its name in the settings: a named set, a file, or a dataset of the hub with its commit."""

    name: str
    prompts: tuple[Prompt, ...]
    commit: str | None = None

    def images_drawn(self, images: int, per_prompt: int | None = None) -> int:
        """The number of images that an evaluation of about `images` images samples (`spread`)."""
        chosen, each = spread(self.prompts, images, per_prompt)
        return len(chosen) * each


def load_prompt_set(source: str, domain: str) -> PromptSet:
    """Load a prompt set with its name. Raises Tdmr1Error as `load_prompts` does."""
    if source.startswith(HUB):
        from tdmr1_core.prompts.hub_datasets import read_dataset

        prompts, commit = read_dataset(source)
        return PromptSet(source, tuple(prompts), commit)
    return PromptSet(source, tuple(load_prompts(source, domain)))


def load_prompts(source: str, domain: str) -> list[Prompt]:
    """Load a prompt set of the domain by name, a prompt file, or a dataset of the hub (`hub_datasets.py`).

    A folder in the layout of flow_grpo is read from its train_metadata.jsonl or train.txt. Raises Tdmr1Error for an
    unknown name, for a path that is not a file, and as `read_prompt_file` and `read_dataset` do.
    """
    if source.startswith(HUB):
        return list(load_prompt_set(source, domain).prompts)
    known = PROMPT_SETS.get(domain, {})
    if source in known:
        return known[source]()
    path = _in_folder(source)
    if source and os.path.isfile(path):
        return read_prompt_file(path)
    found = _not_a_file(path) if source else "an empty name"
    what = "prompt set or file" if path.suffix else "prompt set"
    raise Tdmr1Error(
        f"the prompt set or file {source!r} is {found}"
        if found
        else f"there is no {what} {source!r} for models of the domain {domain!r}",
        f"name a prompt set, a prompt file or a dataset (hf:OWNER/DATASET:COLUMN); {close_match_hint(source, known)}",
        code="prompts-unknown",
        values={"name": source, "domain": domain, "found": found},
    )


def _in_folder(source: str) -> Path:
    """The file of the training prompts, if `source` is a folder in the layout of flow_grpo; otherwise its path."""
    path = Path(source)
    return next((file for name in TRAINING_FILES if os.path.isfile(file := path / name)), path)


def _not_a_file(path: Path) -> str | None:
    """What a path is that is not a file; None if there is nothing."""
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
    except ValueError:  # a NUL character
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        if error.errno == errno.ENOENT and path.is_symlink():
            return f"a link to {os.readlink(path)!r}, which does not exist"
        return None if error.errno in NOTHING_THERE else f"a path that cannot be read ({error.strerror})"
    return KINDS.get(kind, "a device")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """The names of prompt sets in the records of a run, by name: of a path only the end, so that it may be moved.

    The end is the file name, with as many folders as distinguish it from the other paths.
    """
    paths = {name: Path(name).parts for name in dict.fromkeys(names) if "/" in name and not name.startswith(HUB)}
    short = {}
    for name, parts in paths.items():
        others = [other for other in paths.values() if other != parts]
        count = 1
        while count < len(parts) and any(other[-count:] == parts[-count:] for other in others):
            count += 1
        short[name] = "/".join(parts[-count:])
    return {name: short.get(name, name) for name in names}


def spread(prompts: Sequence[Prompt], images: int, per_prompt: int | None = None) -> tuple[Sequence[Prompt], int]:
    """Choose prompts for about `images` images. Returns the prompts and the number of images per prompt.

    Without `per_prompt`, all prompts are used if there are at most `images`, and one image for each otherwise. If there
    are more prompts than the images allow, evenly spaced ones are chosen.
    """
    if per_prompt is None and len(prompts) <= images:
        return prompts, max(1, round(images / len(prompts)))
    per_prompt = per_prompt or 1
    count = min(len(prompts), max(1, images // per_prompt))
    return [prompts[number * len(prompts) // count] for number in range(count)], per_prompt


def held_out_companion(source: str, domain: str) -> str:
    """The held-out set of a named set (suffix `-held-out`) or of a file train… (test…); `source` if there is none."""
    candidate = f"{source}-held-out"
    if candidate in PROMPT_SETS.get(domain, {}):
        return candidate
    test = companion_file(source)
    return str(test) if test is not None and os.path.isfile(_in_folder(source)) and os.path.isfile(test) else source


def companion_file(source: str) -> Path | None:
    """The place of the file test… that belongs to a prompt file train…; None for a file of another name."""
    if source.startswith(HUB):
        return None
    path = _in_folder(source)
    return path.with_name(path.name.replace("train", "test", 1)) if path.name.startswith("train") else None
