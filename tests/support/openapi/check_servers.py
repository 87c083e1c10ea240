"""Sends requests that schemathesis derives from the OpenAPI schemas of both servers; prints their statuses as JSON.

    python -m support.openapi.check_servers EXAMPLES

Runs in an environment with schemathesis. The servers do not publish a schema; it is made from their apps, and the
bodies, which the apps read by themselves, are added here. EXAMPLES is the number of requests to each operation with
valid and with invalid values.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from support.feedback_images import open_round
from support.hostile_requests import TOKEN, score_request
from support.limited_server import serving

from tdmr1_rewards.api import RewardResult, RewardSpec
from tdmr1_rewards.feedback import server as label_server
from tdmr1_rewards.feedback.store import FeedbackStore
from tdmr1_rewards.serving import server as reward_server

CONTEXT = {"run_folder": {"type": ["string", "null"]}}
CONTEXT |= {name: {"type": "integer", "minimum": 0} for name in ("iteration", "seed")}


def one(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list with one item. All lists of a valid batch have the same length."""
    return {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with all of these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


BATCH = {
    "images": one({"enum": score_request()["batch"]["images"]}),
    "prompts": one({"type": "string"}),
    "metadata": one({"type": "object"}),
    "group_ids": one({"type": "integer"}),
    "image_ids": one({"type": "integer"}),
    "context": closed(CONTEXT),
}
BODIES = {
    "/score": closed({"protocol": {"enum": [1]}, "batch": closed(BATCH)}),
    "/api/answers": label_server.AnswerBody.model_json_schema(),
    "/api/undo": label_server.UndoBody.model_json_schema(),
}


@contextmanager
def servers() -> Iterator[list[tuple[FastAPI, int]]]:
    """Both servers during the block, with their ports."""
    spec = RewardSpec(name="echo", summary="s", factory="a:b", image_format="array", batch_size=8)
    scoring = reward_server.build_app(lambda batch: RewardResult([1.0] * len(batch)), spec, TOKEN)
    with tempfile.TemporaryDirectory() as folder:
        store = FeedbackStore(Path(folder))
        open_round(store, [1, 2], [3])
        labelling = label_server.build_app(store, TOKEN, log=lambda line: None)
        with serving(scoring) as first, serving(labelling) as second:
            yield [(scoring, first), (labelling, second)]
        store.close()


def schema_of(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI schema of an app with the bodies of its requests."""
    schema = app.openapi()
    for path, operations in schema["paths"].items():
        if path in BODIES:
            body = {"required": True, "content": {"application/json": {"schema": BODIES[path]}}}
            operations["post"]["requestBody"] = body
    return schema


def check(app: FastAPI, port: int, examples: int) -> dict[str, Counter[int]]:
    """The statuses of all requests, by operation. Raises AssertionError for a status of 500 or more."""
    found: dict[str, Counter[int]] = {}
    for result in schemathesis.openapi.from_dict(schema_of(app)).get_all_operations():
        operation = result.ok()
        statuses = found.setdefault(operation.label, Counter())
        for mode in schemathesis.GenerationMode:
            send_all(operation, mode, f"http://127.0.0.1:{port}", examples, statuses)
    return found


def send_all(operation: Any, mode: Any, address: str, examples: int, statuses: Counter[int]) -> None:
    """Send the requests of an operation with valid or with invalid values, as `mode` says."""
    checks = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    @checks
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        response = case.call(base_url=address, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)
        statuses[response.status_code] += 1
        assert response.status_code < 500, (response.status_code, response.text, case.as_curl_command())

    with contextlib.suppress(Unsatisfiable):  # an operation without parameters has no invalid values
        send()


def main() -> None:
    """Check both servers."""
    logging.disable()
    found: dict[str, Counter[int]] = {}
    with servers() as running:
        for app, port in running:
            found |= check(app, port, int(sys.argv[1]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
