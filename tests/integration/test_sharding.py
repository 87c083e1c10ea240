"""Two processes (gloo, on the CPU) that divide the frozen weights: half the bytes each, and the results of one."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.runs import Silent, rows, small_config
from support.warm_processes import warm_processes  # noqa: F401

from tdmr1_cli import multiprocess
from tdmr1_cli.multiprocess import launch
from tdmr1_cli.signals import ExitWithCode
from tdmr1_core.config import RunConfig
from tdmr1_core.config_loading import resolve
from tdmr1_core.conformance.tiny_pipelines import MAKERS, make_tiny_pipeline
from tdmr1_core.distributed import join_processes
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.blocks import blocks_of
from tdmr1_core.models.sharding import is_sharded, local_bytes
from tdmr1_core.preflight.resolved import resolve_run
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.output.export import export_lora
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

SHARDED = "memory.shard=true"
EXACT = 1e-9
LIMIT = 0.05
"""Minutes."""


def family_config(folder: Path, family: str, teacher: bool) -> RunConfig:
    """One iteration of a family in double precision, sharded if there are several processes."""
    model = {"name": str(folder / family), "height": 64, "width": 64, "rank": 4, "precision": "fp64"}
    if teacher:
        model["teacher"] = str(folder / "teacher")
    return resolve(
        [
            {
                "iterations": 1,
                "model": model,
                "rewards": [{"name": "jpeg_size"}],
                "prompts": {"train": str(folder / "prompts.txt")},
                "batch": {"groups": 2, "group_size": 2},
                "timesteps": {"per_iteration": 1, "k_sharing": "sample"},
                "generator": {"learning_rate": 1e-2},
                "memory": {"shard": True, "gradient_checkpointing": True, "compile": False},
            }
        ]
    )


def iterate(folder: Path, config: RunConfig) -> None:
    """Iterate in this process, alone or as one of several. Each writes its weights, metrics and frozen bytes."""
    processes = join_processes("cpu")
    engine = Engine.from_config(config, processes=processes)
    base = engine.roles.backbones[0]
    networks = [*(backbone.network for backbone in engine.roles.backbones), *base.text_encoders()]
    assert {is_sharded(network) for network in networks} == {processes.count > 1}
    reports = [engine.iteration() for _ in range(config.iterations)]
    engine.close()
    name = f"{processes.count}-{processes.rank}"
    weights = {f"{role}/{k}": v for role in engine.roles.names for k, v in engine.roles.weights(role).items()}
    save_file(weights, folder / f"weights-{name}.safetensors")
    metrics = [{k: v for k, v in r.metrics.items() if not k.startswith(("time/", "images_"))} for r in reports]
    (folder / f"{name}.json").write_text(json.dumps([metrics, [local_bytes(network) for network in networks]]))
    processes.leave()


@pytest.mark.parametrize(
    ("family", "teacher"),
    [
        ("flux2_klein", True),
        *(
            pytest.param(name, False, marks=pytest.mark.long)
            for name in ("sd3", "zimage", "krea2", "qwen_image", "flux1", "ernie_image")
        ),
    ],
)
def test_two_processes_hold_half_of_the_frozen_bytes_and_give_the_result_of_one(tmp_path, family, teacher):
    (tmp_path / "prompts.txt").write_text("two red circles\nthree green squares on a hill\n")
    make_tiny_pipeline(family, tmp_path / family)
    if teacher:
        MAKERS[family](tmp_path / "teacher", seed=1, distilled=False)
    config = family_config(tmp_path, family, teacher)
    iterate(tmp_path, config)
    launch(2, partial(iterate, tmp_path, config))
    names = ("1-0", "2-0", "2-1")
    (metrics, whole), (sharded, first_part), (_, second_part) = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in names
    )
    assert [set(row) for row in metrics] == [set(row) for row in sharded]
    largest = max(abs(a[key] - b[key]) for a, b in zip(metrics, sharded, strict=True) for key in a)
    print(f"bytes of each network: {whole}; of the processes: {first_part}, {second_part}")
    print(f"largest difference of a metric: {largest:.1e}")
    assert largest <= EXACT
    for total, *parts in zip(whole, first_part, second_part, strict=True):
        assert total <= sum(parts) <= 1.01 * total  # weights with an odd number of rows are padded
        assert max(parts) <= 0.51 * total
    alone, first, second = (load_file(tmp_path / f"weights-{name}.safetensors") for name in names)
    assert all(first[name].equal(second[name]) for name in first)
    assert max((alone[name] - first[name]).abs().max().item() for name in alone) <= EXACT


def test_blocks_are_the_items_of_the_outermost_lists():
    block = torch.nn.ModuleDict({"inner": torch.nn.ModuleList([torch.nn.Linear(1, 1)])})
    network = torch.nn.ModuleDict({"part": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([block, block])})})
    assert list(blocks_of(network)) == [block, block]


RUN = ("iterations=2", "saving.samples_every=1", "evaluation.every=1", "evaluation.images=5", "model.precision=fp64")


def run(folder: Path, assignments: tuple[str, ...], stops: bool = False) -> None:
    """A run in this process, alone or as one of several, or its continuation; `stops` ends it after an iteration."""

    class Stopping(Silent):
        def iteration(self, report) -> None:
            if stops:
                made.request_stop()

    processes = join_processes("cpu")
    if folder.exists():
        made = Run.resume(folder, processes=processes)
    else:
        made = Run.create(small_config(*RUN, *assignments), folder, processes=processes)
    assert made.execute(Stopping()).finished != stops


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the LoRA that is exported from a run."""
    return load_file(export_lora(load_trained(folder), folder / "export").file)


def flat(row: dict) -> dict[str, object]:
    """A row with the values of its nested mappings, and with its lists as texts."""
    nested = {f"{key}/{k}": v for key, value in row.items() if isinstance(value, dict) for k, v in value.items()}
    return nested | {k: str(v) if isinstance(v, list) else v for k, v in row.items() if not isinstance(v, dict)}


def test_a_run_with_grids_evaluations_caches_and_a_resume_has_the_export_of_one_process(tmp_path):
    cache = tmp_path / "cache"
    run(tmp_path / "alone", (f"memory.prompt_cache={cache}",))
    known = sorted(cache.rglob("*.safetensors"))
    for path in known[::3]:
        path.unlink()  # some prompts are encoded again, not the same number in each process
    divided = (SHARDED, f"memory.prompt_cache={cache}")
    launch(2, partial(run, tmp_path / "divided", divided, stops=True))
    assert set(cache.rglob("*.safetensors")) <= set(known)
    with pytest.warns(match=r"memory.shard has no effect: there is a single process"):
        run(tmp_path / "divided", divided)
    assert sorted(cache.rglob("*.safetensors")) == known
    alone, other = (exported(tmp_path / name) for name in ("alone", "divided"))
    assert alone.keys() == other.keys()
    assert max((alone[name] - other[name]).abs().max().item() for name in alone) <= EXACT
    for name in ("metrics.jsonl", "evaluations.jsonl", "guard.jsonl"):
        for one, two in zip(rows(tmp_path / "alone" / name), rows(tmp_path / "divided" / name), strict=True):
            assert flat(one) == pytest.approx(flat(two), abs=EXACT, nan_ok=True)
    for name in ("samples/step-000001.png", "samples/step-000002.png", "before_after.png"):
        assert (tmp_path / "divided" / name).exists()


@pytest.mark.parametrize("weights", ["nf4", "8bit"])
def test_quantized_weights_are_refused(weights):
    with pytest.raises(Tdmr1Error) as caught:
        resolve_run(small_config(SHARDED, f"memory.weights={weights}"))
    assert caught.value.code == "setting-conflict"
    assert caught.value.message == f"memory.shard cannot divide weights that memory.weights={weights} quantizes"


def fail(how: str, rank: int) -> None:
    """One process fails in the middle of a pass, while the other one waits for a block of weights."""
    processes = join_processes("cpu", LIMIT)
    engine = Engine.from_config(small_config(SHARDED), processes=processes)
    if processes.rank == rank:
        block = next(iter(blocks_of(engine.roles.backbone.network)))
        block.register_forward_pre_hook(lambda *_: _fail(how))
    engine.iteration()


def _fail(how: str) -> None:
    if how == "memory":
        raise torch.OutOfMemoryError
    os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])


@pytest.mark.parametrize(
    ("how", "rank", "sentence"),
    [
        ("killed", 1, r"process 2 of 2 was killed by SIGKILL"),
        (
            "stopped",
            1,
            r"no progress of process 2 \(last known stage: (loading|rollout)\) of 2 processes for 0\.05 minutes",
        ),
        ("memory", 0, r"the device is out of memory.*set batch.micro_batch to 2 or less: memory.shard cannot reduce"),
    ],
)
def test_a_process_that_fails_in_a_pass_ends_all(how, rank, sentence, monkeypatch, capfd):
    monkeypatch.setattr(multiprocess, "GRACE", 1.0)
    began = time.monotonic()
    with pytest.raises((ExitWithCode, Tdmr1Error)) as caught:
        launch(2, partial(fail, how, rank))
    printed = capfd.readouterr().err
    printed += caught.value.message if isinstance(caught.value, Tdmr1Error) else ""
    assert re.search(sentence, printed, re.DOTALL), printed
    assert time.monotonic() - began < 60
