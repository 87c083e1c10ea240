"""Prompt sets by name or from files; torch is not needed to look at them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tdmr1_core.errors import Tdmr1Error, close_match_hint
from tdmr1_core.prompts import geneval as composed
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
from tdmr1_rewards.sources.source import find

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.plugins import Extensions


def _count(held_out: bool | None) -> list[Prompt]:
    return [Prompt(caption.text, caption.metadata) for caption in count_captions(held_out=held_out)]


def _pairs(held_out: bool | None, relations: Sequence[str] = RELATIONS) -> list[Prompt]:
    return [Prompt(caption.text, caption.metadata) for caption in pair_captions(relations, held_out=held_out)]


def _world() -> list[Prompt]:
    """Every caption the tiny model was trained on; those of count scenes five times, so that they are half of all."""
    captions = training_captions()
    captions += 4 * [caption for caption in captions if isinstance(caption, CountCaption)]
    return [Prompt(caption.text, caption.metadata) for caption in captions]


def _open_to_taste() -> list[Prompt]:
    """Count captions that leave the colour open, for rewards that ask what pleases."""
    captions = [CountCaption(count + 1, None, shape) for count in range(len(NUMBERS)) for shape in SHAPES]
    return [Prompt(caption.text, caption.metadata) for caption in captions]


def _composed(held_out: bool) -> list[Prompt]:
    """Count captions, which `exclude` one more, and as many pair captions: the world's share of GenEval's tasks."""
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
        "scenes": _open_to_taste,
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
"""Generated prompt sets by domain and name; `-held-out` ones hold captions never trained on.

A set that is a reward's default has one name in every domain, so that the reward needs no more than that name.
"""


def training_prompts(config: RunConfig, extensions: Extensions) -> str:
    """The prompt set of a run: its own, or the first reward's default, or else the first one of the model's domain.

    Raises Tdmr1Error where there is none of them.
    """
    if config.prompts.train is not None:
        return config.prompts.train
    name_one = "name a prompt set or file with --prompts"
    if not config.rewards:
        raise Tdmr1Error("a distillation needs prompts", name_one)
    first = config.rewards[0]
    if own := find(extensions.plugins.rewards, first.source or first.name, first.python).spec.default_prompts:
        return own
    domain = extensions.entry(config.model).domain
    if not PROMPT_SETS.get(domain):
        raise Tdmr1Error(
            f"reward {first.name!r} has no prompts of its own, and there is no prompt set for {domain} models", name_one
        )
    return next(iter(PROMPT_SETS[domain]))


def load_prompts(source: str, domain: str) -> list[Prompt]:
    """A prompt set of the domain by name, or a file: .jsonl in GenEval's layout, any other one prompt a line.

    A folder in flow_grpo's layout stands for its training prompts: train_metadata.jsonl or train.txt. Raises
    Tdmr1Error for an unknown name and for a file that is missing, empty or not text.
    """
    known = PROMPT_SETS.get(domain, {})
    if source in known:
        return known[source]()
    path = _in_folder(Path(source))
    if not path.is_file():
        what = "no prompt set and no file" if path.suffix else "no prompt set"
        raise Tdmr1Error(
            f"there is {what} {source!r} for {domain} models", close_match_hint(source, known) + "; or name a file"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Tdmr1Error(f"the prompt file {path} is not text (byte {error.start})", "save it as UTF-8") from error
    except OSError as error:
        raise Tdmr1Error(f"the prompt file {path} can't be read: {error.strerror}", "check its permissions") from error
    parse = _parse_json if path.suffix == ".jsonl" else _parse_text
    prompts = [parse(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise Tdmr1Error(f"the prompt file {path} holds no prompts", "write one prompt a line")
    return prompts


def _in_folder(path: Path) -> Path:
    """The training prompts in a folder of flow_grpo's layout; any other path as it is."""
    found = (path / name for name in ("train_metadata.jsonl", "train.txt"))
    return next((file for file in found if file.is_file()), path)


def _parse_text(line: str, path: Path, number: int) -> Prompt:
    if "\0" in line:
        raise Tdmr1Error(f"the prompt file {path} is not text (line {number})", "save it as UTF-8")
    return Prompt(line.strip(), {})


def _parse_json(line: str, path: Path, number: int) -> Prompt:
    try:
        entry = json.loads(line)
        return Prompt(str(entry["prompt"]), entry)
    except (ValueError, KeyError, TypeError) as error:
        raise Tdmr1Error(
            f"line {number} of {path} is not a JSON object with a prompt", 'write {"prompt": "…", …} on each line'
        ) from error


def evaluation_prompts(config: RunConfig, extensions: Extensions, domain: str) -> dict[str, list[Prompt]]:
    """The prompts that evaluations use, by name: those of training, and last the held-out ones."""
    source = training_prompts(config, extensions)
    held_out = config.prompts.evaluate or held_out_companion(source, domain)
    return {name: load_prompts(name, domain) for name in dict.fromkeys((source, held_out))}


def spread(prompts: Sequence[Prompt], images: int) -> tuple[Sequence[Prompt], int]:
    """The prompts that about so many images are drawn for, and how many are drawn for each of them.

    Each has the same number; of more prompts than images, as many as there are images, evenly spread.
    """
    if len(prompts) <= images:
        return prompts, max(1, round(images / len(prompts)))
    return [prompts[number * len(prompts) // images] for number in range(images)], 1


def held_out_companion(source: str, domain: str) -> str:
    """The held-out set that belongs to a named set or to a file train…, or the same set where there is none."""
    candidate = f"{source}-held-out"
    if candidate in PROMPT_SETS.get(domain, {}):
        return candidate
    path = _in_folder(Path(source))
    test = path.with_name(path.name.replace("train", "test", 1))
    return str(test) if path.name.startswith("train") and path.is_file() and test.is_file() else source
