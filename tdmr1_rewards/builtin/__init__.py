"""The rewards that come with tdmr1. They are registered through the same hook as those of plugins."""

from __future__ import annotations

from collections.abc import Callable

from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.hookspecs import hookimpl

SPECS = (
    RewardSpec(
        name="object_count",
        summary="does the image show the requested number of objects?",
        factory="tdmr1_rewards.builtin.object_count:ObjectCount",
        options="tdmr1_rewards.builtin.object_count:ObjectCountOptions",
        default_prompts="count",
        default_preset="geneval",
        batch_size=96,
        image_format="array",
        score_range="0 to 1",
        needs="for images larger than 64 pixels: the weights of PekingU/rtdetr_v2_r50vd (172 MB)",
        timeout=900.0,
        examples="tdmr1_rewards.builtin.object_count:examples",
    ),
    RewardSpec(
        name="geneval",
        summary="does the image show the requested objects, counts, colors and positions? (GenEval)",
        factory="tdmr1_rewards.builtin.geneval:GenEval",
        options="tdmr1_rewards.builtin.geneval:GenEvalOptions",
        default_prompts="geneval",
        default_preset="geneval",
        batch_size=96,
        image_format="array",
        score_range="0 to 1; with `score: published` at most 1, also negative",
        needs="for images larger than 64 pixels: the weights of facebook/mask2former-swin-small-coco-instance "
        "(0.3 GB) and, for colors, of openai/clip-vit-large-patch14 (1.7 GB)",
        timeout=900.0,
        examples="tdmr1_rewards.builtin.geneval:examples",
    ),
    RewardSpec(
        name="ocr_match",
        summary="does the image contain the text that the prompt quotes?",
        factory="tdmr1_rewards.builtin.ocr_match:OcrMatch",
        options="tdmr1_rewards.builtin.ocr_match:OcrMatchOptions",
        default_prompts="ocr",
        default_preset="ocr",
        score_range="0 to 1",
        needs="easyocr: its weights (about 100 MB, downloaded once); rapidocr: nothing",
        freeze="tdmr1_rewards.builtin.ocr_match:resolve_engine",
        requires=("rapidocr|easyocr|pytesseract", "rapidfuzz"),
        install="tdmr1[ocr]",
        examples="tdmr1_rewards.builtin.example_images:shop_signs",
    ),
    RewardSpec(
        name="human",
        summary="ratings by users, collected on a web page that this machine serves",
        factory="tdmr1_rewards.feedback.human:Human",
        options="tdmr1_rewards.feedback.human:HumanOptions",
        default_prompts="scenes",
        default_preset="hps",
        batch_size=4096,
        groupwise=True,
        timeout=None,
        evaluates=False,
        score_range="0 to 1",
        needs="users with a web browser",
        freeze="tdmr1_rewards.feedback.human:with_absolute_paths",
        requires=("fastapi", "uvicorn", "sklearn"),
        install="tdmr1[human]",
    ),
    RewardSpec(
        name="jpeg_size",
        summary="how small (or large) is the image as a JPEG file?",
        factory="tdmr1_rewards.builtin.jpeg_size:JpegSize",
        options="tdmr1_rewards.builtin.jpeg_size:JpegSizeOptions",
        default_prompts="count",
        batch_size=96,
        score_range="size in kB: negative if small files are preferred, else positive",
        examples="tdmr1_rewards.builtin.example_images:smooth_and_noisy",
    ),
    RewardSpec(
        name="aesthetic",
        summary="how beautiful is the image? (LAION's aesthetic predictor)",
        factory="tdmr1_rewards.builtin.aesthetic:Aesthetic",
        options="tdmr1_rewards.builtin.aesthetic:AestheticOptions",
        default_prompts="scenes",
        default_preset="hps",
        score_range="about 1 to 10",
        needs="OpenAI's CLIP ViT-L/14 (1.7 GB) and the head (4 MB), downloaded once",
        requires=("open_clip",),
        install="tdmr1[aesthetic]",
    ),
    RewardSpec(
        name="clip_score",
        summary="how well does the image match its prompt? (CLIP cosine)",
        factory="tdmr1_rewards.builtin.clip_score:ClipScore",
        options="tdmr1_rewards.builtin.clip_score:ClipScoreOptions",
        default_prompts="scenes",
        default_preset="hps",
        score_range="-scale to scale, by default -1 to 1",
        needs="OpenAI's CLIP ViT-L/14 (1.7 GB), downloaded once",
        requires=("transformers",),
        examples="tdmr1_rewards.builtin.example_images:shapes_with_prompts",
    ),
    RewardSpec(
        name="pickscore",
        summary="how strongly would users prefer the image for its prompt? (PickScore)",
        factory="tdmr1_rewards.builtin.pickscore:PickScore",
        options="tdmr1_rewards.builtin.pickscore:PickScoreOptions",
        default_prompts="scenes",
        default_preset="hps",
        score_range="usually 0.7 to 0.9 (18 to 24 with `divisor: 1`)",
        needs="PickScore v1 (4 GB), downloaded once",
        requires=("transformers",),
        examples="tdmr1_rewards.builtin.example_images:shapes_with_prompts",
    ),
    RewardSpec(
        name="hpsv2",
        summary="how strongly would users prefer the image for its prompt? (HPS v2.1)",
        factory="tdmr1_rewards.builtin.hpsv2:HpsScore",
        options="tdmr1_rewards.builtin.hpsv2:HpsOptions",
        default_prompts="scenes",
        default_preset="hps",
        score_range="-1 to 1, usually 0.2 to 0.35",
        needs="the HPS v2.1 checkpoint (2 GB), downloaded once",
        requires=("open_clip",),
        install="tdmr1[aesthetic]",
        examples="tdmr1_rewards.builtin.example_images:shapes_with_prompts",
    ),
    RewardSpec(
        name="vlm_judge",
        summary="a vision-language model rates the image (any OpenAI-compatible endpoint)",
        factory="tdmr1_rewards.builtin.vlm_judge:VlmJudge",
        options="tdmr1_rewards.builtin.vlm_judge:VlmJudgeOptions",
        default_prompts="scenes",
        default_preset="hps",
        timeout=900.0,
        score_range="0 to 1",
        needs="an endpoint with a model that takes images; an API key if the endpoint requires one",
        examples="tdmr1_rewards.builtin.example_images:shapes_with_prompts",
    ),
)


@hookimpl
def tdmr1_register_rewards(register: Callable[[RewardSpec], None]) -> None:
    """Register every built-in reward."""
    for spec in SPECS:
        register(spec)
