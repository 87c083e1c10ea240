"""The body of a request to score images: its limits, its version and its batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tdmr1_rewards.api import RewardBatch
from tdmr1_rewards.calling.wire import PROTOCOL, as_integer, decode_batch
from tdmr1_rewards.errors import Tdmr1Error, shorten
from tdmr1_rewards.serving.web import Refusal, parse_json
from tdmr1_rewards.texts.documents import LONGEST_METADATA, LONGEST_PROMPT

MOST_IMAGES = 4096
"""Largest number of images in a request."""
MOST_PIXELS = 1 << 28
"""Largest number of pixels of all images in a request: 256 images of 1024 x 1024, which need 0.8 GB of memory."""
LARGEST_INTEGER = 1 << 64
"""Limit of the absolute value of ids, iterations and seeds, which rewards may store in 64 bits."""


def read_batch(body: bytes) -> RewardBatch:
    """The batch of a request, with images as an array. Raises Refusal for an invalid request."""
    document = parse_json(body)
    if not isinstance(document, dict):
        raise Refusal(400, f"the request is a JSON {type(document).__name__}, not an object")
    version = document.get("protocol")
    if as_integer(version) != PROTOCOL:
        has = "no protocol version" if version is None else f"protocol version {shorten(ascii(version))}"
        raise Refusal(
            400,
            f"the request has {has}; this server needs version {PROTOCOL}",
            f'install the same version of tdmr1 on both machines; other clients send "protocol": {PROTOCOL}',
        )
    fields = document.get("batch")
    images = fields.get("images") if isinstance(fields, dict) else None
    if isinstance(images, list) and len(images) > MOST_IMAGES:
        raise Refusal(422, f"the request has {len(images)} images, but at most {MOST_IMAGES} are allowed")
    try:
        batch = decode_batch(fields, "array", MOST_PIXELS)
    except Tdmr1Error as error:
        raise Refusal(422, error.message, error.hint) from error
    if not len(batch):
        raise Refusal(422, "the request has no images")
    for index, (prompt, metadata) in enumerate(zip(batch.prompts, batch.metadata, strict=True)):
        _check_text(f"prompts[{index}]", prompt, LONGEST_PROMPT)
        _check_text(f"metadata[{index}]", metadata, LONGEST_METADATA)
    context = batch.context
    integers = [*batch.group_ids, *batch.image_ids, context.iteration, context.seed]
    if max(map(abs, integers)) >= LARGEST_INTEGER or min(context.iteration, context.seed) < 0:
        raise Refusal(422, "an id, the iteration or the seed is outside its range")
    # The run folder is on another machine: a reward must not write to this path here.
    return replace(batch, context=replace(context, run_folder=None))


def _check_text(name: str, value: str | Mapping[str, Any], longest: int) -> None:
    """Refuse a text, or the texts of a JSON value, that are too long or cannot be written in UTF-8."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) > longest:
        raise Refusal(422, f"{name} has {len(text)} characters, but at most {longest} are allowed")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(422, f"{name} has a surrogate that is not part of a pair") from error
