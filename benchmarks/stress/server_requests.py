"""Valid and hostile requests to a reward server and to a labelling page."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stress.case import Case
from stress.scheduler import Part

VALID = 0.2
"""Fraction of valid requests."""
HEAD = 0.3
"""Fraction of requests with a hostile path, query or header."""


def part(requests: int) -> Part:
    """The part with this many requests in an item."""
    return Part("requests", partial(_run, requests), seconds=4, size=requests)


def _run(count: int, case: Case) -> None:
    from support import hostile_requests as hostile

    logging.disable()
    with _servers(case.folder) as ports:
        for number in range(count):
            server = case.rng.choice(["reward", "label"])
            kind = case.rng.random()
            if kind < VALID:
                path, document = b"/score", hostile.score_request()
                if server == "label":
                    path, document = b"/api/answers", {**hostile.answer_request(), "key": f"k{number}"}
                request = (b"POST", path, json.dumps(document).encode(), [])
            elif kind < VALID + HEAD:
                request = hostile.hostile_head_request(case.rng)
            else:
                request = hostile.hostile_body_request(case.rng, server, number)
            try:
                status = hostile.send_and_check(ports[server], *request)
            except Exception as error:
                case.fault(f"request {number} to the {server} server: {type(error).__name__}: {error}")
                continue
            case.codes[f"HTTP {status}"] += 1
            if kind < VALID:
                case.check(status == 200, f"request {number} to the {server} server is valid, but has status {status}")


@contextmanager
def _servers(folder: Path) -> Iterator[dict[str, int]]:
    """The ports of both servers during the block."""
    from support.feedback_images import open_round
    from support.hostile_requests import TOKEN
    from support.limited_server import serving

    from tdmr1_rewards.api import RewardResult, RewardSpec
    from tdmr1_rewards.feedback import server as label_server
    from tdmr1_rewards.feedback.store import FeedbackStore
    from tdmr1_rewards.serving import server as reward_server

    spec = RewardSpec(name="echo", summary="s", factory="a:b", image_format="array", batch_size=8)
    scoring = reward_server.build_app(lambda batch: RewardResult([1.0] * len(batch)), spec, TOKEN)
    store = FeedbackStore(folder / "feedback")
    open_round(store, [1, 2], [3])
    labelling = label_server.build_app(store, TOKEN, log=lambda line: None)
    with serving(scoring) as reward_port, serving(labelling) as label_port:
        yield {"reward": reward_port, "label": label_port}
    store.close()
