"""One example per error code of runs, checkpoints, LoRA files and processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, patch

ALARM = "jpeg size rose from 1 to 2 (+4.0 deviations) while entropy fell from 3 to 1 (-2.0 deviations)"


def lora_unreadable(tmp_path: Path) -> None:
    from tdmr1_core.models.lora.files import read_lora

    (tmp_path / "lora.ckpt").write_text("not a checkpoint")
    read_lora(tmp_path / "lora.ckpt", None, None)


def lora_keys(tmp_path: Path) -> None:
    from tdmr1_core.models.lora.matching import _parse_keys

    _parse_keys({"blocks.0.to_q.lora": None}, tmp_path / "lora.safetensors")


def lora_unsupported(tmp_path: Path) -> None:
    from tdmr1_core.models.lora.matching import _parse_keys

    _parse_keys({"transformer_blocks.0.attn.to_q.dora_scale": None}, tmp_path / "lora.safetensors")


def lora_alpha(tmp_path: Path) -> None:
    import torch

    from tdmr1_core.models.families import FAMILIES
    from tdmr1_core.models.lora.matching import match_by_name
    from tdmr1_core.models.lora.raw import RawLora
    from tdmr1_core.models.meta_network import MetaNetwork

    tensors = {"proj_out.lora_A.weight": torch.zeros(4, 16), "proj_out.lora_B.weight": torch.zeros(16, 4)}
    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
    network = MetaNetwork(FAMILIES["sd3"], sizes | {"out_channels": 4, "sample_size": 4, "pos_embed_max_size": 4})
    match_by_name(RawLora(tensors, {}), network, (), None, tmp_path / "lora.safetensors")


def processes_count(tmp_path: Path) -> None:
    from tdmr1_core.distributed import check_split

    check_split(48, 5)


def device_unavailable(tmp_path: Path) -> None:
    from tdmr1_core.distributed import join_processes

    with patch.dict(os.environ, {"RANK": "1", "WORLD_SIZE": "2"}):
        join_processes("cuda:1")


def run_folder_used(tmp_path: Path) -> None:
    from tdmr1_core.runs.run import _unused

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    _unused(tmp_path / "run")


def run_folder_locked(tmp_path: Path) -> None:
    from tdmr1_core.durable_files import lock_run

    lock = lock_run(tmp_path)
    try:
        lock_run(tmp_path)
    finally:
        lock.release()


def run_folder_missing(tmp_path: Path) -> None:
    from tdmr1_core.runs.checkpoints.resume import load_run_config

    load_run_config(tmp_path)


def link_outside(tmp_path: Path) -> None:
    from tdmr1_core.durable_files import check_links

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples").symlink_to(tmp_path)
    check_links(tmp_path / "run")


def record_damaged(tmp_path: Path) -> None:
    from tdmr1_core.runs.jsonl import read_lines

    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot JSON\n{"step": 3}\n')
    read_lines(tmp_path / "metrics.jsonl", dict)


def checkpoint_missing(tmp_path: Path) -> None:
    from tdmr1_core.runs.checkpoints.checkpoint import latest_checkpoint

    latest_checkpoint(tmp_path / "checkpoints")


def _write_checkpoint(folder: Path, settings: bytes) -> None:
    from tdmr1_core.runs.checkpoints.checkpoint import FILES, SETTINGS
    from tdmr1_core.runs.checkpoints.manifest import MANIFEST, describe

    folder.mkdir(parents=True)
    contents = dict.fromkeys(FILES, b"") | {SETTINGS: settings}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST).write_bytes(describe(contents))


def checkpoint_damaged(tmp_path: Path) -> None:
    from tdmr1_core.runs.checkpoints.checkpoint import read_checkpoint

    _write_checkpoint(tmp_path / "step-000120", b"{}")
    (tmp_path / "step-000120" / "weights.safetensors").write_bytes(b"three")
    read_checkpoint(tmp_path / "step-000120")


def checkpoint_mismatch(tmp_path: Path) -> None:
    from tdmr1_core.runs.checkpoints.checkpoint import read_config

    _write_checkpoint(tmp_path / "step-000120", b"not JSON")
    read_config(tmp_path / "step-000120")


def resume_settings(tmp_path: Path) -> None:
    import json

    import yaml

    from tdmr1_core.config_loading import dump, resolve
    from tdmr1_core.runs.checkpoints.resume import find_resume_point

    settings = dump(resolve([{"rewards": [{"name": "object_count"}], "seed": 0}]))
    _write_checkpoint(tmp_path / "checkpoints" / "step-000010", json.dumps(settings).encode())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, "seed": 7}))
    find_resume_point(tmp_path)


def resume_inputs(tmp_path: Path) -> None:
    from tdmr1_core.runs.checkpoints.fingerprints import TRAINING, Fingerprints, differences

    differences(Fingerprints(prompts={TRAINING: "one hash"}), Fingerprints(prompts={TRAINING: "another"}))


def config_incomplete(tmp_path: Path) -> None:
    from tdmr1_core.runs.checkpoints.fingerprints import read_header

    (tmp_path / "config.yaml").write_text("tdmr1: {versions: abc}\n")
    read_header(tmp_path)


def evaluation_cut_off(tmp_path: Path) -> None:
    from tdmr1_core.runs.run import Run

    resolved = MagicMock()
    resolved.config.iterations = 3
    resolved.config.saving.samples_every = 0
    run = Run(tmp_path / "run", resolved)
    run._stop = True
    evaluator = MagicMock(guard=None)
    evaluator.evaluate.return_value = []
    with patch("tdmr1_core.runs.run.save_comparison"), patch.object(run, "_open_resource_log"):
        run._loop(
            SimpleNamespace(iteration_index=3, trained={"generator": SimpleNamespace(updates=3)}),
            evaluator,
            MagicMock(),
            MagicMock(),
        )


def guard_alarm(tmp_path: Path) -> None:
    from tdmr1_core.runs.evaluation.evaluator import Evaluator
    from tdmr1_core.runs.evaluation.guard import GuardReading

    guard = SimpleNamespace(read=lambda engine, results: GuardReading(40, {}, (ALARM,)))
    Evaluator(SimpleNamespace(), None, guard).read_guard(None, [])


def tracker_failed(tmp_path: Path) -> None:
    from tdmr1_core.runs.tracking.client import Trackers

    tracked = Trackers.__new__(Trackers)
    tracked._folder = tmp_path / "run"
    tracked._report_one({"tracker": "wandb", "failed": "cannot be started: no API key is configured"})


def guard_stopped(tmp_path: Path) -> None:
    from tdmr1_core.runs.evaluation.guard import GuardReading
    from tdmr1_core.runs.run import Run

    run = Run(tmp_path / "run", MagicMock())
    with patch.object(run, "_save"):
        run._obey_guard(GuardReading(40, {}, (ALARM,)), SimpleNamespace(), MagicMock())


def guard_limited(tmp_path: Path) -> None:
    from tdmr1_core.runs.evaluation.guard import _warn_few

    _warn_few({"picture/entropy": 7, "picture/similarity_to_teacher": 0})


def export_mismatch(tmp_path: Path) -> None:
    from tdmr1_core.models.pipeline import PipelineBackbone
    from tdmr1_core.runs.output import export

    roles = SimpleNamespace(backbone=MagicMock(spec=PipelineBackbone))
    engine = SimpleNamespace(roles=roles, model_files=SimpleNamespace(), sigmas=None, size=None, entry=MagicMock())
    with (
        patch.object(export, "_metadata", return_value={}),
        patch.object(export, "write_lora"),
        patch.object(export, "_compare", return_value=(57, 8)),
    ):
        export.export_lora(engine, tmp_path / "export")


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "lora-unreadable": lora_unreadable,
    "lora-keys": lora_keys,
    "lora-unsupported": lora_unsupported,
    "lora-alpha": lora_alpha,
    "processes-count": processes_count,
    "device-unavailable": device_unavailable,
    "run-folder-used": run_folder_used,
    "run-folder-locked": run_folder_locked,
    "run-folder-missing": run_folder_missing,
    "link-outside": link_outside,
    "record-damaged": record_damaged,
    "checkpoint-missing": checkpoint_missing,
    "checkpoint-damaged": checkpoint_damaged,
    "checkpoint-mismatch": checkpoint_mismatch,
    "resume-settings": resume_settings,
    "resume-inputs": resume_inputs,
    "config-incomplete": config_incomplete,
    "evaluation-cut-off": evaluation_cut_off,
    "guard-alarm": guard_alarm,
    "guard-stopped": guard_stopped,
    "tracker-failed": tracker_failed,
    "guard-limited": guard_limited,
    "export-mismatch": export_mismatch,
}
