"""One example per error code of the algorithm, stages, models, planning and prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch


def distillation_no_rewards(tmp_path: Path) -> None:
    from tdmr1_core.engine import Engine

    Engine.score(SimpleNamespace(scoring=None), None)


def update_not_finite(tmp_path: Path) -> None:
    from tdmr1_core.engine import Engine

    engine = SimpleNamespace(
        _consecutive_not_finite={"generator": 0},
        _metrics={},
        iteration_index=2,
        config=SimpleNamespace(optimizer=SimpleNamespace(on_not_finite="stop")),
    )
    Engine._skip_not_finite(engine, "generator", 0, "the loss is nan for images 3 to 5 of the batch")


def _run_out_of_memory(images: int) -> None:
    import torch

    from tdmr1_core.stages.micro_batches import MicroBatches

    def action(rows: torch.Tensor) -> None:
        if len(rows) > 1 or images == 1:
            raise torch.OutOfMemoryError("injected")

    MicroBatches("auto").each(images, action)


def out_of_memory(tmp_path: Path) -> None:
    _run_out_of_memory(1)


def micro_batch_halved(tmp_path: Path) -> None:
    _run_out_of_memory(2)


def model_unknown(tmp_path: Path) -> None:
    from tdmr1_core.models.catalog import BUILTIN_MODELS
    from tdmr1_core.models.registry import ModelRegistry

    ModelRegistry(BUILTIN_MODELS).get("sd3.5-tmd")


def model_invalid(tmp_path: Path) -> None:
    from tdmr1_core.models.catalog import BUILTIN_MODELS
    from tdmr1_core.models.registry import ModelRegistry

    (tmp_path / "model_index.json").write_text('{"_class_name": "ZImagePipeline"}')
    ModelRegistry(BUILTIN_MODELS).get("sd3.5-tdm", path=tmp_path)


def model_incomplete(tmp_path: Path) -> None:
    from tdmr1_core.models.pipeline_files import fetch

    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    fetch(str(tmp_path), ["vae"])


def model_unsupported(tmp_path: Path) -> None:
    from tdmr1_core.models.pipeline_files import family_of

    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    family_of(str(tmp_path))


def teacher_mismatch(tmp_path: Path) -> None:
    from tdmr1_core.models.catalog import BUILTIN_MODELS
    from tdmr1_core.models.loading import check_entry
    from tdmr1_core.models.registry import ModelRegistry

    for name, width in (("base", 8), ("teacher", 16)):
        for part in ("text_encoder", "vae"):
            (tmp_path / name / part).mkdir(parents=True)
            (tmp_path / name / part / "config.json").write_text(json.dumps({"hidden_size": width}))
        (tmp_path / name / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    entry = ModelRegistry(BUILTIN_MODELS).get("tiny-tdm")
    entry = replace(entry, base=str(tmp_path / "base"), teacher=str(tmp_path / "teacher"))
    check_entry(entry, training=False)


def model_license(tmp_path: Path) -> None:
    from tdmr1_core.errors import warn
    from tdmr1_core.models.catalog import BUILTIN_MODELS
    from tdmr1_core.models.licences import license_warnings
    from tdmr1_core.models.registry import ModelRegistry

    with patch("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path)):
        for found in license_warnings(ModelRegistry(BUILTIN_MODELS).get("flux1-schnell")):
            warn(str(found), code=found.code, **found.values)


def hub_unavailable(tmp_path: Path) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    from tdmr1_core.models.hub import hub_file

    with patch("huggingface_hub.hf_hub_download", side_effect=LocalEntryNotFoundError("injected")):
        hub_file("owner/name", "model_index.json")


def hub_denied(tmp_path: Path) -> None:
    from huggingface_hub.errors import GatedRepoError

    from tdmr1_core.models.hub import hub_file

    response = SimpleNamespace(headers={}, request=None, status_code=403)
    gated = GatedRepoError("injected", response=response)
    with (
        patch("huggingface_hub.get_token", return_value=None),
        patch("huggingface_hub.hf_hub_download", side_effect=gated),
    ):
        hub_file("owner/name", "model_index.json")


def dependency_missing(tmp_path: Path) -> None:
    from tdmr1_core.models.quantization import bitsandbytes

    with patch.dict(sys.modules, {"bitsandbytes": None}):
        bitsandbytes()


def lora_missing(tmp_path: Path) -> None:
    from tdmr1_core.models.catalog import BUILTIN_MODELS
    from tdmr1_core.models.registry import ModelRegistry

    raise ModelRegistry(BUILTIN_MODELS).get("sd3.5-large-tdm").missing_lora()


def lora_mismatch(tmp_path: Path) -> None:
    from tdmr1_core.models.lora.shape import LoraShape

    raise LoraShape(4, 8.0, ("attn.to_q",)).targets_error(ValueError("Target modules attn.to_q not found"))


def attention_unavailable(tmp_path: Path) -> None:
    import torch

    from tdmr1_core.models.attention import check_attention
    from tdmr1_core.models.families import FAMILIES

    with patch.object(torch, "__version__", "2.13.0"):
        check_attention("cudnn", torch.device("cpu"), torch.bfloat16, FAMILIES["krea2"])


def setting_invalid(tmp_path: Path) -> None:
    from tdmr1_core.models.families import FAMILIES
    from tdmr1_core.models.latent_shape import latent_grid

    latent_grid(FAMILIES["sd3"], {"in_channels": 16, "patch_size": 2}, 8).check(512, 516)


def plan_unavailable(tmp_path: Path) -> None:
    from tdmr1_core.planning.counting import count_parameters

    count_parameters("NoSuchNetwork", {})


def prompts_unknown(tmp_path: Path) -> None:
    from tdmr1_core.prompts.sets import load_prompts

    load_prompts("cuont", "tiny")


def _load_prompt_file(path: Path, content: bytes) -> None:
    from tdmr1_core.prompts.sets import load_prompts

    path.write_bytes(content)
    load_prompts(str(path), "photo")


def prompts_unreadable(tmp_path: Path) -> None:
    _load_prompt_file(tmp_path / "prompts.txt", b"\xff\xfe")


def prompts_empty(tmp_path: Path) -> None:
    _load_prompt_file(tmp_path / "prompts.txt", b"\n")


def prompts_doubtful(tmp_path: Path) -> None:
    from tdmr1_core.prompts.sets import load_prompts

    path = tmp_path / "prompts.txt"
    path.write_text("a cat\na dog\na cat\n")
    load_prompts(str(path), "tiny")


def prompts_truncated(tmp_path: Path) -> None:
    from tdmr1_core.errors import warn
    from tdmr1_core.models.prompt_lengths import load_readers
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.prompts import check_lengths
    from tdmr1_core.prompts.prompt import Prompt
    from tdmr1_core.prompts.sets import PromptSet

    texts = ("two red circles", "a wall with many many small red circles and one blue square")
    readers = load_readers(discover().models.get("tiny-tdm"))
    found = check_lengths(PromptSet("prompts.txt", tuple(Prompt(text, {}) for text in texts)), readers)
    warn(str(found), code=found.code, **found.values)


def _check_signs(*texts: str) -> None:
    from tdmr1_core.config import RewardConfig
    from tdmr1_core.errors import warn
    from tdmr1_core.preflight.prompts import check_targets
    from tdmr1_core.preflight.rewards import RewardFinder
    from tdmr1_core.prompts.prompt import Prompt
    from tdmr1_core.prompts.sets import PromptSet
    from tdmr1_rewards.registry import load_plugins

    rewards = RewardFinder(load_plugins().rewards).resolve([RewardConfig(name="ocr_match")])
    for found in check_targets(PromptSet("signs", tuple(Prompt(t, {}) for t in texts)), rewards, training=True):
        warn(str(found), code=found.code, **found.values)


def nothing_scored(tmp_path: Path) -> None:
    _check_signs("a sign", "a wall")


def images_unscored(tmp_path: Path) -> None:
    _check_signs('a sign "CAT"', "a wall")


def nothing_learned(tmp_path: Path) -> None:
    from tdmr1_cli.run_command import check_learned
    from tdmr1_core.runs.run import RunResult

    reason = "generator: no group has two different rewards"
    check_learned(RunResult(tmp_path / "run", 2, True, nothing_learned=reason))


def prompt_invalid(tmp_path: Path) -> None:
    _load_prompt_file(tmp_path / "prompts.jsonl", b'{"text": "a cat"}\n')


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "distillation-no-rewards": distillation_no_rewards,
    "update-not-finite": update_not_finite,
    "out-of-memory": out_of_memory,
    "micro-batch-halved": micro_batch_halved,
    "model-unknown": model_unknown,
    "model-invalid": model_invalid,
    "model-incomplete": model_incomplete,
    "model-unsupported": model_unsupported,
    "model-license": model_license,
    "teacher-mismatch": teacher_mismatch,
    "hub-unavailable": hub_unavailable,
    "hub-denied": hub_denied,
    "dependency-missing": dependency_missing,
    "lora-missing": lora_missing,
    "lora-mismatch": lora_mismatch,
    "setting-invalid": setting_invalid,
    "plan-unavailable": plan_unavailable,
    "attention-unavailable": attention_unavailable,
    "prompts-unknown": prompts_unknown,
    "prompts-unreadable": prompts_unreadable,
    "prompts-empty": prompts_empty,
    "prompt-invalid": prompt_invalid,
    "prompts-doubtful": prompts_doubtful,
    "prompts-truncated": prompts_truncated,
    "nothing-scored": nothing_scored,
    "images-unscored": images_unscored,
    "nothing-learned": nothing_learned,
}
