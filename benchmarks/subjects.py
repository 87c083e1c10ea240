"""What `tiny_learning.py` can teach and measure: how it is trained, what is drawn, and what is said of the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from judge import analyse, diversity, judge
from word_judge import judge_words

from tdmr1_core.config_loading import read_preset
from tdmr1_core.prompts.sets import load_prompts
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages
from tdmr1_core.tiny import words, world
from tdmr1_rewards.api import RewardBatch, RewardContext

Measures = dict[str, list[float]]


@dataclass(frozen=True)
class Sheet:
    """Prompts of some sets, each drawn `each` times, and what is measured on the pictures: a number an image or group.

    `itself` draws what a perfect model would: pictures as many, of the prompts asked for.
    """

    domain: str
    sets: tuple[str, ...]
    held_out_set: str
    each: int
    measure: Callable[[EvaluationImages], Measures]
    itself: Callable[[np.random.Generator, int], tuple[np.ndarray, list[Prompt]]]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """Every prompt, in the order it is drawn in."""
        return [prompt for name in self.sets for prompt in load_prompts(name, self.domain)]

    @property
    def clusters(self) -> np.ndarray:
        """Which prompt each picture is of (N,)."""
        return np.repeat(np.arange(len(self.prompts)), self.each)

    @property
    def never_trained(self) -> np.ndarray:
        """Whether each picture is of a prompt that no model was trained on (N,)."""
        held_out = {prompt.text for prompt in load_prompts(self.held_out_set, self.domain)}
        return np.repeat([prompt.text in held_out for prompt in self.prompts], self.each)

    def the_world_itself(self) -> Measures:
        """The same measures of pictures that the world drew rightly."""
        images, prompts = self.itself(np.random.default_rng(0), self.each)
        group_ids = [index // self.each for index in range(len(images))]
        return self.measure(EvaluationImages(images, tuple(prompts), tuple(group_ids)))


@dataclass(frozen=True)
class Subject:
    """Something to teach: a model and a reward by name, and what is drawn to measure it.

    `headlines` are what the reward is for, `beside` all else, by their names with what they are called in tables; all
    headlines are of the first sheet. `guidances` are those the teacher is measured at, on that sheet alone.
    `rewarded` says what the mean reward of an iteration is.
    """

    model: str
    reward: str
    rewarded: str
    sheets: tuple[Sheet, ...]
    headlines: Mapping[str, str]
    beside: Mapping[str, str]
    guidances: tuple[float, ...]


def _batch(pictures: EvaluationImages, images: object) -> RewardBatch:
    return RewardBatch(
        images=images,
        prompts=[prompt.text for prompt in pictures.prompts],
        metadata=[prompt.metadata for prompt in pictures.prompts],
        group_ids=pictures.group_ids,
        image_ids=list(range(len(pictures.images))),
        context=RewardContext(None, 0, 0),
    )


def _measure_counts(pictures: EvaluationImages) -> Measures:
    """The reward's own exact count, and all that the judge says."""
    from tdmr1_rewards.builtin.object_count import ObjectCount, ObjectCountOptions

    counted = ObjectCount(ObjectCountOptions(score="exact"))(_batch(pictures, pictures.images))
    analyses = analyse(pictures.images)
    judged = judge(pictures.images, [prompt.metadata for prompt in pictures.prompts], analyses)
    judged |= diversity(pictures.images, np.array(pictures.group_ids), analyses)
    exact = np.array(counted.scores, dtype=float).tolist()
    return {"exact": exact, **{name: judged[name].tolist() for name in (*OF_COUNTS, "count_right")}}


def _measure_pairs(pictures: EvaluationImages) -> Measures:
    """The reward's own verdict on pairs, and the judge's."""
    from tdmr1_rewards.builtin.geneval import GenEval, GenEvalOptions

    composed = GenEval(GenEvalOptions(score="strict"))(_batch(pictures, pictures.images))
    judged = judge(pictures.images, [prompt.metadata for prompt in pictures.prompts])
    named = {"binding_right": "binding_right", "relation_right": "relation_right"}
    named |= {f"pairs_{name}": name for name in ("found", "crispness", "background_noise", "size_error")}
    strict = np.array(composed.scores, dtype=float).tolist()
    return {"geneval": strict, **{name: judged[source].tolist() for name, source in named.items()}}


def _measure_words(pictures: EvaluationImages) -> Measures:
    """What the engine reads, as in training, and what the judge of words sees."""
    from PIL import Image
    from rapidfuzz.distance import Levenshtein

    from tdmr1_rewards.builtin.ocr_match import OcrMatch, OcrMatchOptions

    (trained,) = read_preset("tiny-words")["rewards"]
    reader = OcrMatch(OcrMatchOptions.model_validate(trained["options"]))
    result = reader(_batch(pictures, [Image.fromarray(image) for image in pictures.images]))
    asked = [prompt.metadata["text"] for prompt in pictures.prompts]
    read = [told["read"] for told in result.details or ()]
    wrong = [Levenshtein.distance(word.lower(), text) for word, text in zip(asked, read, strict=True)]
    return {
        "exact": [float(each == 0) for each in wrong],
        "letters": [1 - min(each, len(word)) / len(word) for each, word in zip(wrong, asked, strict=True)],
        **judge_words(pictures.images, asked, np.array(pictures.group_ids)),
    }


def _right_counts(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[Prompt]]:
    captions = world.count_captions()
    drawn: dict[str, list[world.Scene]] = {caption.text: [] for caption in captions}
    while min(map(len, drawn.values())) < each:
        scene = world.sample_scene(rng, pair_share=0.0)
        first = scene.objects[0]
        drawn[world.CountCaption(len(scene.objects), first.colour, first.shape).text].append(scene)
    scenes = [scene for caption in captions for scene in drawn[caption.text][:each]]
    prompts = [Prompt(caption.text, caption.metadata) for caption in captions for _ in range(each)]
    return np.stack([world.render(scene, rng) for scene in scenes]), prompts


def _right_pairs(rng: np.random.Generator, number: int, *, ordered: bool) -> tuple[np.ndarray, list[Prompt]]:
    scenes = [world.sample_scene(rng, pair_share=1.0) for _ in range(number)]
    captions = [world.PairCaption.of(scene) for scene in scenes]
    captions = [caption.ordered for caption in captions] if ordered else captions
    images = np.stack([world.render(scene, rng) for scene in scenes])
    return images, [Prompt(caption.text, caption.metadata) for caption in captions]


def _sheet_of_pairs(name: str, each: int, *, ordered: bool) -> Sheet:
    def itself(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[Prompt]]:
        return _right_pairs(rng, each * len(sheet.prompts), ordered=ordered)

    held_out = f"{name}-held-out"
    sheet = Sheet("tiny", (name, held_out), held_out, each, _measure_pairs, itself)
    return sheet


def _right_words(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[Prompt]]:
    captions = [caption for caption in words.word_captions() for _ in range(each)]
    images = np.stack([words.render(caption.word, rng) for caption in captions])
    return images, [Prompt(caption.text, caption.metadata) for caption in captions]


OF_COUNTS: Sequence[str] = (
    "shape_right",
    "colour_right",
    "crispness",
    "background_noise",
    "size",
    "size_error",
    "position_x",
    "position_y",
    "pixel_distance",
    "position_spread",
    "layout_distance",
)
COUNTS = Sheet("tiny", ("count-all",), "count-held-out", 24, _measure_counts, _right_counts)
PAIRS, ORDERED_PAIRS = _sheet_of_pairs("pairs", 2, ordered=False), _sheet_of_pairs("ordered-pairs", 4, ordered=True)
WORDS = Sheet("words", ("ocr", "ocr-held-out"), "ocr-held-out", 3, _measure_words, _right_words)

OF_DRAWING = {
    "shape_right": "objects of the asked shape, share",
    "colour_right": "objects of the asked colour, share",
    "crispness": "crispness, 0 to 1",
    "background_noise": "noise of the background, 0 to 0.5",
    "size": "radius, pixels",
    "size_error": "radius outside the world's range, pixels",
    "position_x": "mean x, pixels",
    "position_y": "mean y, pixels",
    "pixel_distance": "difference of pictures in a group, 0 to 1",
    "position_spread": "spread of positions in a group, pixels",
    "layout_distance": "difference of layouts in a group, pixels",
}
OF_COMPOSITION = {
    "binding_right": "pairs: the two objects asked for, share",
    "relation_right": "pairs: they lie as asked, share",
}

SUBJECTS = {
    "count": Subject(
        model="tiny-tdm",
        reward="object_count",
        rewarded="½ exact + ½ graded count",
        sheets=(COUNTS, PAIRS),
        headlines={"exact": "exact count"},
        beside={**OF_DRAWING, **OF_COMPOSITION, "count_right": "the judge's own exact count, share"},
        guidances=(3.0, 2.0, 4.0),
    ),
    "composition": Subject(
        model="tiny-pairs-tdm",
        reward="geneval",
        rewarded="½ all right + ½ graded composition",
        sheets=(ORDERED_PAIRS, COUNTS),
        headlines={
            "binding_right": "pairs with the two objects asked for",
            "relation_right": "pairs that lie as asked",
            "geneval": "pairs all as asked, by the reward itself",
        },
        beside={
            "pairs_found": "pairs: objects found",
            "pairs_crispness": "pairs: crispness, 0 to 1",
            "pairs_background_noise": "pairs: noise of the background, 0 to 0.5",
            "pairs_size_error": "pairs: radius outside the world's range, pixels",
            "exact": "counts: exact count, share",
            **{name: f"counts: {label}" for name, label in OF_DRAWING.items()},
        },
        guidances=(3.0, 2.0, 4.0),
    ),
    "words": Subject(
        model="tiny-words-tdm",
        reward="ocr_match",
        rewarded="letters read right",
        sheets=(WORDS,),
        headlines={"exact": "words read exactly", "letters": "letters read right"},
        beside={
            "nearest_exact": "the nearest word is the one asked for, share",
            "nearest_letters": "letters of the nearest word as asked, share",
            "likeness": "likeness to the nearest word, -1 to 1",
            "contrast": "ink against its background, -1 to 1",
            "background_noise": "noise of the background, 0 to 0.5",
            "pixel_distance": "difference of pictures of one word, 0 to 1",
        },
        guidances=(2.5, 1.5, 4.0),
    ),
}
