"""The tasks of `tiny_learning.py`: model, reward, evaluation prompts and metrics of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from image_metrics import analyse, diversity, measure_images
from word_metrics import measure_words

from tdmr1_core.config_loading import read_preset
from tdmr1_core.prompts.sets import load_prompts
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import EvaluationImages
from tdmr1_core.tiny import words, world
from tdmr1_rewards.api import RewardBatch, RewardContext

Measures = dict[str, list[float]]


@dataclass(frozen=True)
class Sheet:
    """Prompt sets of a domain, sampled `each` times per prompt, and the metrics of the images.

    `measure` returns one value per image, or per group, for each metric. `reference(rng, each)` renders as
    many correct images, as a perfect model would: uint8 (N, H, W, 3) and their prompts.
    """

    domain: str
    sets: tuple[str, ...]
    held_out_set: str
    each: int
    measure: Callable[[EvaluationImages], Measures]
    reference: Callable[[np.random.Generator, int], tuple[np.ndarray, list[Prompt]]]

    @cached_property
    def prompts(self) -> list[Prompt]:
        """All prompts, in the order of sampling."""
        return [prompt for name in self.sets for prompt in load_prompts(name, self.domain)]

    @property
    def clusters(self) -> np.ndarray:
        """The index of the prompt of each image (N,)."""
        return np.repeat(np.arange(len(self.prompts)), self.each)

    @property
    def held_out(self) -> np.ndarray:
        """Whether the prompt of each image was never used in training (N,)."""
        texts = {prompt.text for prompt in load_prompts(self.held_out_set, self.domain)}
        return np.repeat([prompt.text in texts for prompt in self.prompts], self.each)

    def reference_measures(self) -> Measures:
        """The same metrics for correct images of the world."""
        images, prompts = self.reference(np.random.default_rng(0), self.each)
        group_ids = [index // self.each for index in range(len(images))]
        return self.measure(EvaluationImages(images, tuple(prompts), tuple(group_ids)))


@dataclass(frozen=True)
class Subject:
    """A task: names of model and reward, and the sheets that measure the result.

    `headlines` are the metrics that the reward should improve (all of the first sheet), `unrewarded` are the others.
    Both map the name of a metric to its label in the tables. The teacher is measured on the first sheet, with each
    guidance scale of `guidances`. `rewarded` is the label of the training reward in the plot.
    """

    model: str
    reward: str
    rewarded: str
    sheets: tuple[Sheet, ...]
    headlines: Mapping[str, str]
    unrewarded: Mapping[str, str]
    guidances: tuple[float, ...]


def _batch(evaluation: EvaluationImages, images: object) -> RewardBatch:
    """`images`: the images in the format of the reward."""
    return RewardBatch(
        images=images,
        prompts=[prompt.text for prompt in evaluation.prompts],
        metadata=[prompt.metadata for prompt in evaluation.prompts],
        group_ids=evaluation.group_ids,
        image_ids=list(range(len(evaluation.images))),
        context=RewardContext(None, 0, 0),
    )


def _measure_counts(evaluation: EvaluationImages) -> Measures:
    """The exact count according to the reward, and independent metrics."""
    from tdmr1_rewards.builtin.object_count import ObjectCount, ObjectCountOptions

    counted = ObjectCount(ObjectCountOptions(score="exact"))(_batch(evaluation, evaluation.images))
    analyses = analyse(evaluation.images)
    metrics = measure_images(evaluation.images, [prompt.metadata for prompt in evaluation.prompts], analyses)
    metrics |= diversity(evaluation.images, np.array(evaluation.group_ids), analyses)
    exact = np.array(counted.scores, dtype=float).tolist()
    return {"exact": exact, **{name: metrics[name].tolist() for name in (*COUNT_METRICS, "count_right")}}


def _measure_pairs(evaluation: EvaluationImages) -> Measures:
    """The strict score of the reward, and independent metrics of pairs."""
    from tdmr1_rewards.builtin.geneval import GenEval, GenEvalOptions

    composed = GenEval(GenEvalOptions(score="strict"))(_batch(evaluation, evaluation.images))
    metrics = measure_images(evaluation.images, [prompt.metadata for prompt in evaluation.prompts])
    named = {"binding_right": "binding_right", "relation_right": "relation_right"}
    named |= {f"pairs_{name}": name for name in ("found", "crispness", "background_noise", "size_error")}
    strict = np.array(composed.scores, dtype=float).tolist()
    return {"geneval": strict, **{name: metrics[source].tolist() for name, source in named.items()}}


def _measure_words(evaluation: EvaluationImages) -> Measures:
    """The text that the OCR engine of the training reads, and independent metrics."""
    from PIL import Image
    from rapidfuzz.distance import Levenshtein

    from tdmr1_rewards.builtin.ocr_match import OcrMatch, OcrMatchOptions
    from tdmr1_rewards.builtin.text_comparison import normalize

    (trained,) = read_preset("tiny-words")["rewards"]
    reader = OcrMatch(OcrMatchOptions.model_validate(trained["options"]))
    result = reader(_batch(evaluation, [Image.fromarray(image) for image in evaluation.images]))
    requested = [prompt.metadata["text"] for prompt in evaluation.prompts]
    read = [details["read"] for details in result.details or ()]
    errors = [Levenshtein.distance(normalize(word), text) for word, text in zip(requested, read, strict=True)]
    return {
        "exact": [float(count == 0) for count in errors],
        "letters": [1 - min(count, len(word)) / len(word) for count, word in zip(errors, requested, strict=True)],
        **measure_words(evaluation.images, requested, np.array(evaluation.group_ids)),
    }


def _correct_counts(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[Prompt]]:
    """`each` rendered images of every caption of a number."""
    captions = world.count_captions()
    scenes_of: dict[str, list[world.Scene]] = {caption.text: [] for caption in captions}
    while min(map(len, scenes_of.values())) < each:
        scene = world.sample_scene(rng, pair_share=0.0)
        first = scene.objects[0]
        scenes_of[world.CountCaption(len(scene.objects), first.colour, first.shape).text].append(scene)
    scenes = [scene for caption in captions for scene in scenes_of[caption.text][:each]]
    prompts = [Prompt(caption.text, caption.metadata) for caption in captions for _ in range(each)]
    return np.stack([world.render(scene, rng) for scene in scenes]), prompts


def _correct_pairs(rng: np.random.Generator, number: int, *, ordered: bool) -> tuple[np.ndarray, list[Prompt]]:
    """`number` rendered images of random pairs, with their captions."""
    scenes = [world.sample_scene(rng, pair_share=1.0) for _ in range(number)]
    captions = [world.PairCaption.of(scene) for scene in scenes]
    captions = [caption.ordered for caption in captions] if ordered else captions
    images = np.stack([world.render(scene, rng) for scene in scenes])
    return images, [Prompt(caption.text, caption.metadata) for caption in captions]


def _sheet_of_pairs(name: str, each: int, *, ordered: bool) -> Sheet:
    """With `ordered`, captions name the left or upper object first."""

    def reference(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[Prompt]]:
        return _correct_pairs(rng, each * len(sheet.prompts), ordered=ordered)

    held_out = f"{name}-held-out"
    sheet = Sheet("tiny", (name, held_out), held_out, each, _measure_pairs, reference)
    return sheet


def _correct_words(rng: np.random.Generator, each: int) -> tuple[np.ndarray, list[Prompt]]:
    """`each` rendered images of every word."""
    captions = [caption for caption in words.word_captions() for _ in range(each)]
    images = np.stack([words.render(caption.word, rng) for caption in captions])
    return images, [Prompt(caption.text, caption.metadata) for caption in captions]


COUNT_METRICS: Sequence[str] = (
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
COUNTS = Sheet("tiny", ("count-all",), "count-held-out", 24, _measure_counts, _correct_counts)
PAIRS, ORDERED_PAIRS = _sheet_of_pairs("pairs", 2, ordered=False), _sheet_of_pairs("ordered-pairs", 4, ordered=True)
WORDS = Sheet("words", ("ocr", "ocr-held-out"), "ocr-held-out", 3, _measure_words, _correct_words)

DRAWING_LABELS = {
    "shape_right": "objects with the requested shape, fraction",
    "colour_right": "objects with the requested color, fraction",
    "crispness": "crispness, 0 to 1",
    "background_noise": "background noise, 0 to 0.5",
    "size": "radius, pixels",
    "size_error": "distance of the radius from the range of the world, pixels",
    "position_x": "mean x, pixels",
    "position_y": "mean y, pixels",
    "pixel_distance": "difference between images of a group, 0 to 1",
    "position_spread": "spread of positions of a group, pixels",
    "layout_distance": "difference between layouts of a group, pixels",
}
COMPOSITION_LABELS = {
    "binding_right": "pairs with the two requested objects, fraction",
    "relation_right": "pairs in the requested spatial relation, fraction",
}

SUBJECTS = {
    "count": Subject(
        model="tiny-tdm",
        reward="object_count",
        rewarded="½ exact + ½ graded count",
        sheets=(COUNTS, PAIRS),
        headlines={"exact": "exact count"},
        unrewarded={**DRAWING_LABELS, **COMPOSITION_LABELS, "count_right": "exact count by independent code, fraction"},
        guidances=(3.0, 2.0, 4.0),
    ),
    "composition": Subject(
        model="tiny-pairs-tdm",
        reward="geneval",
        rewarded="½ strict + ½ graded score",
        sheets=(ORDERED_PAIRS, COUNTS),
        headlines={
            "binding_right": "pairs with the two requested objects",
            "relation_right": "pairs in the requested spatial relation",
            "geneval": "fully correct pairs, strict score of the reward",
        },
        unrewarded={
            "pairs_found": "pairs: objects found",
            "pairs_crispness": "pairs: crispness, 0 to 1",
            "pairs_background_noise": "pairs: background noise, 0 to 0.5",
            "pairs_size_error": "pairs: distance of the radius from the range of the world, pixels",
            "exact": "counts: exact count, fraction",
            **{name: f"counts: {label}" for name, label in DRAWING_LABELS.items()},
        },
        guidances=(3.0, 2.0, 4.0),
    ),
    "words": Subject(
        model="tiny-words-tdm",
        reward="ocr_match",
        rewarded="correctly read letters",
        sheets=(WORDS,),
        headlines={"exact": "exactly read words", "letters": "correctly read letters"},
        unrewarded={
            "nearest_exact": "the nearest word is the requested one, fraction",
            "nearest_letters": "letters of the nearest word that are as requested, fraction",
            "likeness": "similarity to the nearest word, -1 to 1",
            "contrast": "contrast of letters and background, -1 to 1",
            "background_noise": "background noise, 0 to 0.5",
            "pixel_distance": "difference between images of one word, 0 to 1",
        },
        guidances=(2.5, 1.5, 4.0),
    ),
}
