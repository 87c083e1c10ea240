"""Two processes (gloo, on the CPU) give the same metrics and weights as one; if one fails, both end."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.errors import raises
from support.runs import Silent, small_config
from support.warm_processes import warm_processes  # noqa: F401

from tdmr1_cli.exits import end
from tdmr1_cli.multiprocess import launch
from tdmr1_cli.signals import ExitWithCode
from tdmr1_core.distill import DistillEngine
from tdmr1_core.distributed import Processes, check_split, join_processes
from tdmr1_core.durable_files import lock_run
from tdmr1_core.engine import Engine
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.records import Groups, Prompt
from tdmr1_core.runs.evaluation import guard
from tdmr1_core.runs.run import Run
from tdmr1_core.stages.draws import sharing_ids

pytestmark = pytest.mark.integration

TIMINGS = ("time/", "images_per_second")
EXACT = ("model.precision=fp64", "surrogate.trust_region=0.001", "surrogate.drift_threshold=0.05")
UNEVEN = ("batch.groups=4", "batch.micro_batch=4", "surrogate.only_with_signal=true")
"""With the reward below, the first process has one group with signal, and the second process has two."""
REWARD = '''
from tdmr1_rewards import RewardBatch, RewardResult

def one_sided(batch: RewardBatch) -> RewardResult:
    """0 for the first group, the redness of the others, and no score for one image."""
    numbered = zip(batch.image_ids, batch.images, strict=True)
    red = [None if i == 6 else float(image.resize((1, 1)).getpixel((0, 0))[0]) for i, image in numbered]
    return RewardResult(scores=[score if group else 0.0 for score, group in zip(red, batch.group_ids)])
'''


def iterate(folder: Path, assignments: tuple[str, ...], preset: str, reward: str | None) -> None:
    """Two iterations in this process, alone or as one of several. Each writes its weights, the first the metrics."""
    named = {"rewards": [{"name": "one_sided", "source": reward}]} if reward else {}
    config = small_config("iterations=2", "timesteps.per_iteration=1", *assignments, preset=preset, **named)
    processes = join_processes(config.model.device)
    kind = DistillEngine if config.kind == "distill" else Engine
    engine = kind.from_config(config, processes=processes)
    reports = [engine.iteration() for _ in range(config.iterations)]
    engine.close()
    weights = {f"{role}/{k}": v for role in engine.roles.names for k, v in engine.roles.weights(role).items()}
    save_file(weights, folder / f"weights-{processes.count}-{processes.rank}.safetensors")
    if processes.first:
        rows = [{k: v for k, v in r.metrics.items() if not k.startswith(TIMINGS)} for r in reports]
        (folder / f"metrics-{processes.count}.json").write_text(json.dumps(rows))
    processes.leave()


def differences(folder: Path) -> tuple[float, float]:
    """The largest difference of any metric, and of any weight, between one process and two."""
    one, two = (json.loads((folder / f"metrics-{count}.json").read_text()) for count in (1, 2))
    assert [set(row) for row in one] == [set(row) for row in two]
    metrics = max(abs(a[key] - b[key]) for a, b in zip(one, two, strict=True) for key in a)
    alone, first, second = (load_file(folder / f"weights-{name}.safetensors") for name in ("1-0", "2-0", "2-1"))
    assert all(first[name].equal(second[name]) for name in first)
    return metrics, max((alone[name] - first[name]).abs().max().item() for name in alone)


@pytest.mark.parametrize(
    ("preset", "assignments", "one_sided"),
    [
        ("tiny", (*EXACT, "timesteps.k_sharing=sample", "advantages.permute=true", "batch.micro_batch=3"), True),
        ("distill-tiny", ("model.precision=fp64",), False),
        ("tiny", (*EXACT, *UNEVEN, "memory.shard=true"), True),
    ],
    ids=["one process has no signal", "distilled", "sharded, one process makes fewer passes"],
)
def test_two_processes_give_the_result_of_one(tmp_path, preset, assignments, one_sided):
    reward = None
    if one_sided:
        (tmp_path / "reward.py").write_text(REWARD)
        reward = f"{tmp_path}/reward.py:one_sided"
    iterate(tmp_path, assignments, preset, reward)
    launch(2, partial(iterate, tmp_path, assignments, preset, reward))
    metrics, weights = differences(tmp_path)
    print(f"largest difference: {metrics:.2e} of a metric, {weights:.2e} of a weight")
    assert metrics <= 1e-9
    assert weights <= 1e-9


def fail(how: str) -> None:
    """The second process fails while the first waits for it."""
    processes = join_processes("cpu")
    if how == "exit" and not processes.first:
        end(7)

    def action() -> None:
        if how == "error" and not processes.first:
            raise Tdmr1Error("the second process cannot continue", "fix it", code="reward-failed")

    processes.on_each(action)
    processes.gather(None)


def test_an_error_of_one_process_is_printed_by_the_first_only(capfd):
    with pytest.raises(ExitWithCode) as caught:
        launch(2, partial(fail, "error"))
    assert caught.value.code == 2
    assert capfd.readouterr().err == "error: the second process cannot continue [reward-failed]\n\nhint: fix it\n"


def test_a_process_that_exits_ends_the_other(capfd):
    with pytest.raises(ExitWithCode) as caught:
        launch(2, partial(fail, "exit"))
    assert caught.value.code == 7
    assert capfd.readouterr().err == ""


def iterate_broken(folder: Path, policy: str) -> None:
    """Two iterations. In the first one, only the second process has a loss that is not finite."""
    processes = join_processes("cpu")
    engine = Engine.from_config(small_config(f"optimizer.on_not_finite={policy}"), processes=processes)
    losses = engine._fake.losses
    if not processes.first:
        engine._fake.losses = lambda *given: losses(*given) + (0.0 if engine.iteration_index else math.inf)
    reports = [engine.iteration() for _ in range(2)]
    engine.close()
    save_file(engine.roles.weights("fake"), folder / f"{processes.rank}.safetensors")
    documents = [{"metrics": dict(report.metrics), "skipped": report.skipped} for report in reports]
    (folder / f"{processes.rank}.json").write_text(json.dumps(documents))
    processes.leave()


def test_an_update_that_is_not_finite_in_one_process_is_skipped_in_all(tmp_path):
    launch(2, partial(iterate_broken, tmp_path, "skip"))
    one, other = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert all(one[name].equal(other[name]) for name in one)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    broken, whole = first
    assert broken["skipped"] == ["fake: the loss is inf for images 4 to 7 of the batch"]
    assert broken["metrics"]["not_finite/fake"] == 2, "one for each step of the trajectory"
    assert "grad_norm/fake" not in broken["metrics"]
    assert all(math.isfinite(value) for value in broken["metrics"].values())
    assert whole["skipped"] == []
    assert whole["metrics"]["grad_norm/fake"] > 0


def test_an_update_that_is_not_finite_in_one_process_stops_all(tmp_path, capfd):
    with pytest.raises(ExitWithCode) as caught:
        launch(2, partial(iterate_broken, tmp_path, "stop"))
    assert caught.value.code == 2
    printed = capfd.readouterr().err
    assert printed.count("error: ") == 1
    assert "[update-not-finite]" in printed
    assert "images 4" in printed


def run_guarded(folder: Path, alarm_at: int) -> None:
    """One process of a run with a guard alarm after iteration `alarm_at`: a new run for 1, otherwise a resume."""
    guard.find_alarms = lambda first, now, *_: ("it is hacked",) if now.step == alarm_at else ()
    processes = join_processes("cpu")
    if alarm_at == 1:
        settings = ("guard.stop=true", "evaluation.every=1", "evaluation.images=8", "iterations=2")
        run = Run.create(small_config(*settings), folder, processes=processes)
    else:
        run = Run.resume(folder, processes=processes)
    assert run.execute(Silent()).finished


def test_an_alarm_ends_all_processes_and_only_the_first_locks_the_folder(tmp_path, capfd):
    folder = tmp_path / "run"

    def refused(alarm_at: int) -> str:
        with pytest.raises(ExitWithCode) as caught:
            launch(2, partial(run_guarded, folder, alarm_at))
        assert caught.value.code == 2
        printed = capfd.readouterr().err
        assert printed.count("error: ") == 1
        return printed

    printed = refused(1)
    assert printed.count("it is hacked [guard-alarm]") == 1
    assert "[guard-stopped]" in printed
    assert (folder / "checkpoints" / "latest").read_text() == "step-000000\n"
    lock = lock_run(folder)
    assert "[run-folder-locked]" in refused(0)
    lock.release()
    launch(2, partial(run_guarded, folder, -1))
    assert (folder / "checkpoints" / "good").read_text() == "step-000002\n"


def test_shards_keep_the_numbers_of_their_groups():
    whole = Groups(3, tuple(Prompt(str(i), {}) for i in range(6)), 2)
    shards = [Processes(rank, 3).shard_groups(whole) for rank in range(3)]
    assert [prompt.text for shard in shards for prompt in shard.prompts] == list("012345")
    for sharing in ("step", "group", "sample", 1, 4, 5):
        assert [i for shard in shards for i in sharing_ids(shard, sharing)] == sharing_ids(whole, sharing)


def test_groups_that_cannot_be_divided_are_refused():
    with raises("processes-count", groups=48, processes=5, suitable=[45, 50]):
        check_split(48, 5)
    with raises("processes-count", groups=1, processes=2, suitable=[2]) as caught:
        check_split(1, 2)
    assert "batch.groups=2," in caught.value.hint
