"""One example per error code of the reward API, the plugin registry, calling, sources and scoring."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult, RewardSpec
from tdmr1_rewards.registry import Provenance, RewardRegistry
from tdmr1_rewards.sources.source import create_reward, find_reward, parse_source, reference_for

ORIGIN = Provenance("mine", "my-rewards", "1.0", "my_rewards")


def _spec(**fields: Any) -> RewardSpec:
    return RewardSpec(
        **({"name": "neatness", "summary": "", "factory": "json:loads", "default_prompts": "count"} | fields)
    )


def _create(options: dict[str, Any] | None = None, **fields: Any) -> None:
    create_reward(find_reward(RewardRegistry([(_spec(**fields), ORIGIN)]), "neatness"), options or {})


def _batch(*prompts: str) -> RewardBatch:
    count = len(prompts)
    images = np.zeros((count, 2, 2, 3), np.uint8)
    return RewardBatch(
        images, prompts, [{}] * count, [0] * count, list(range(count)), RewardContext(None, iteration=4, seed=0)
    )


def _score(reward: Callable[[RewardBatch], Any], *prompts: str, **settings: Any) -> None:
    from tdmr1_rewards.scoring.active_reward import ActiveReward
    from tdmr1_rewards.scoring.runner import RewardRunner

    entry = ActiveReward("neatness", 1.0, _spec(batch_size=1), reward, ORIGIN, **settings)
    with RewardRunner([entry], "weighted_sum", workers=1) as runner:
        runner.score(_batch(*prompts))
        runner.states()


def _failing_for_cats(folder: Path) -> Callable[[RewardBatch], RewardResult]:
    (folder / "words.py").write_text(
        "from tdmr1_rewards import RewardResult\n\n"
        "def words(batch):\n"
        "    if 'a cat' in batch.prompts:\n"
        "        raise OSError('no such word')\n"
        "    return RewardResult([1.0] * len(batch))\n"
    )
    return parse_source(f"{folder / 'words.py'}:words").load()


def _remote() -> Any:
    from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

    return RemoteReward("http://127.0.0.1:9/neatness", RemoteOptions(patience=0, token="a-token"))


def reward_unknown(tmp_path: Path) -> None:
    find_reward(RewardRegistry([(_spec(), ORIGIN)]), "neatnes")


def reward_name_conflict(tmp_path: Path) -> None:
    other = Provenance("theirs", "their-rewards", "2.0", "their_rewards")
    RewardRegistry([(_spec(), ORIGIN), (_spec(), other)]).get("neatness")


def reward_source(tmp_path: Path) -> None:
    parse_source("rewards.py:")


def reward_spec(tmp_path: Path) -> None:
    _spec(batch_size=0)


def reward_import(tmp_path: Path) -> None:
    _create(factory="no_such_module:Neatness")


def reward_signature(tmp_path: Path) -> None:
    from tdmr1_rewards.sources.foreign import adapt

    adapt(lambda left, right: 0, owner="neatness")


def reward_build(tmp_path: Path) -> None:
    _create(factory="decimal:Decimal")


def reward_options(tmp_path: Path) -> None:
    from tdmr1_rewards.builtin.object_count import ObjectCountOptions
    from tdmr1_rewards.calling.reference import validate_options

    validate_options(ObjectCountOptions, {"min_aera": 4, "score": "best"}, "reward 'object_count' (from tdmr1)")


def reward_environment(tmp_path: Path) -> None:
    from tdmr1_rewards.calling.process import ProcessHost
    from tdmr1_rewards.calling.reference import Reference

    ProcessHost(Reference(factory="a:b"), "reward 'neatness'", "pil", tmp_path / "venv" / "bin" / "python").start()


def reward_failed(tmp_path: Path) -> None:
    _score(_failing_for_cats(tmp_path), "a cat")


def reward_skipped(tmp_path: Path) -> None:
    _score(_failing_for_cats(tmp_path), "a cat", "a dog", on_failure="skip")


def reward_process_state(tmp_path: Path) -> None:
    def move(batch: RewardBatch) -> RewardResult:
        os.environ["PRECISION"] = "low"
        return RewardResult([1.0] * len(batch))

    with patch.dict(os.environ):
        _score(move, "a cat")


def reward_format(tmp_path: Path) -> None:
    from tdmr1_rewards.sources.foreign import adapt

    def brightness(images, prompts):
        return [image.convert("L").getpixel((0, 0)) / 255 for image in images]

    _score(adapt(brightness), "a cat")


def reward_result(tmp_path: Path) -> None:
    _score(lambda batch: RewardResult([float("nan")]), "a cat")


def reward_metadata(tmp_path: Path) -> None:
    from tdmr1_rewards.scoring.combine import applicability

    applicability([{"rewards": "neatness"}], ["neatness"])


def reward_state(tmp_path: Path) -> None:
    class Counting:
        def __call__(self, batch: RewardBatch) -> RewardResult:
            return RewardResult([1.0] * len(batch))

        def state_dict(self) -> dict[str, Any]:
            return {"pair": (1, 2)}

    _score(Counting(), "a cat")


def reward_combined(tmp_path: Path) -> None:
    from tdmr1_rewards.scoring.combine import weighted_sum

    weighted_sum({"neatness": [1e308]}, {"neatness": 10.0}, {"neatness": [True]})


def setting_conflict(tmp_path: Path) -> None:
    found = find_reward(RewardRegistry([]), "remote:http://127.0.0.1:9/neatness")
    reference_for(found, {}, Path(sys.executable))


def server_unreachable(tmp_path: Path) -> None:
    _remote().setup("cpu")


def server_refused(tmp_path: Path) -> None:
    from requests import Response

    response = Response()
    response.status_code = 422
    response._content = b'{"error": "the request has no images", "hint": "send at least one image"}'
    _remote()._decode(response, "http://127.0.0.1:9")


def server_protocol(tmp_path: Path) -> None:
    remote = _remote()
    with patch.object(remote, "_request", return_value=({"protocol": 1, "scores": 1.0}, "http://127.0.0.1:9")):
        remote(_batch("a cat"))


def token_invalid(tmp_path: Path) -> None:
    from tdmr1_rewards.calling.wire import check_token

    check_token("a token")


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "reward-unknown": reward_unknown,
    "reward-name-conflict": reward_name_conflict,
    "reward-source": reward_source,
    "reward-spec": reward_spec,
    "reward-import": reward_import,
    "reward-signature": reward_signature,
    "reward-build": reward_build,
    "reward-options": reward_options,
    "reward-environment": reward_environment,
    "reward-failed": reward_failed,
    "reward-format": reward_format,
    "reward-process-state": reward_process_state,
    "reward-skipped": reward_skipped,
    "reward-result": reward_result,
    "reward-metadata": reward_metadata,
    "reward-state": reward_state,
    "reward-combined": reward_combined,
    "setting-conflict": setting_conflict,
    "server-unreachable": server_unreachable,
    "server-refused": server_refused,
    "server-protocol": server_protocol,
    "token-invalid": token_invalid,
}
