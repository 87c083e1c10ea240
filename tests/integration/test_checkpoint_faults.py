"""Faults of disks, clocks and files during a run: the error names the file, and nothing is lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from support.errors import raises, warns
from support.runs import Silent, files, rows, small_config

from tdmr1_cli.run_command import _execute as execute
from tdmr1_cli.signals import Stopped
from tdmr1_core import tiny
from tdmr1_core.build import parts
from tdmr1_core.distributed import Processes
from tdmr1_core.durable_files import check_links, lock_run, replace_durable
from tdmr1_core.engine import Engine
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.records import Prompt
from tdmr1_core.runs import metrics_log
from tdmr1_core.runs import run as run_module
from tdmr1_core.runs.checkpoints import changes as changes_module
from tdmr1_core.runs.checkpoints import manifest
from tdmr1_core.runs.checkpoints.checkpoint import (
    FILES,
    LATEST,
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    read_config,
    read_latest_checkpoint,
    save_checkpoint,
)
from tdmr1_core.runs.checkpoints.manifest import MANIFEST, describe
from tdmr1_core.runs.checkpoints.resume import load_run_config
from tdmr1_core.runs.evaluation.evaluator import Evaluator
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.output.export import export_lora
from tdmr1_core.runs.run import Run
from tdmr1_core.stages import prompt_encoder
from tdmr1_core.stages.rollout import RolloutStage
from tdmr1_rewards.scoring.runner import RewardRunner

pytestmark = pytest.mark.integration
NEWEST, BEFORE = "step-000003", "step-000002"
SETTINGS = ("saving.checkpoint_every=1", "evaluation.images=1", "timesteps.per_iteration=1", "batch.group_size=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    Run.create(small_config(*SETTINGS), folder).execute(Silent())
    return folder


@pytest.fixture(scope="module")
def engine(finished):
    engine = load_trained(finished)
    yield engine
    engine.close()


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES = {"bit flip": flip_a_bit, "truncated": truncate, "missing": Path.unlink, "empty": lambda p: p.write_bytes(b"")}


@pytest.mark.parametrize(("name", "damage"), itertools.product((*FILES, MANIFEST), DAMAGES))
def test_a_damaged_file_is_named_and_the_earlier_checkpoint_is_used(copied, name, damage):
    checkpoints = copied / "checkpoints"
    path = checkpoints / NEWEST / name
    DAMAGES[damage](path)
    with warns("checkpoint-damaged", path=str(path)) as warned:
        assert latest_checkpoint(checkpoints) == checkpoints / BEFORE
    assert len(warned) == 2
    assert warned[1].message.values == {"used": BEFORE}


def test_checking_a_checkpoint_loads_only_its_manifest(copied, monkeypatch):
    read: list[str] = []
    real = manifest._read
    monkeypatch.setattr(manifest, "_read", lambda path: read.append(path.name) or real(path))
    assert latest_checkpoint(copied / "checkpoints").name == NEWEST
    assert read == [MANIFEST]


def test_reading_the_settings_of_a_checkpoint_opens_no_other_file(copied, monkeypatch):
    opened: list[str] = []
    real = manifest._opened
    monkeypatch.setattr(manifest, "_opened", lambda path: opened.append(path.name) or real(path))
    assert read_config(copied / "checkpoints" / NEWEST)["iterations"] == 3
    assert opened == [MANIFEST, "config.json"]


def test_a_run_with_a_damaged_latest_checkpoint_ends_with_the_same_bits(copied, finished):
    flip_a_bit(copied / "checkpoints" / NEWEST / "weights.safetensors")
    with pytest.warns(RunWarning):
        resumed = Run.resume(copied)
    observer = Silent()
    assert resumed.execute(observer).finished
    assert [report.step for report in observer.reports] == [3]
    assert files(copied) == files(finished)


@pytest.mark.parametrize("fault", ["a kill", "a full disk"])
def test_a_resume_of_a_finished_run_keeps_its_last_evaluation_until_it_is_repeated(
    copied, finished, monkeypatch, fault
):
    if fault == "a kill":
        monkeypatch.setattr(Evaluator, "evaluate", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or sys.exit(9))
    else:
        monkeypatch.setattr(metrics_log, "keep_lines", full_after(metrics_log.keep_lines, len(metrics_log.LOGS)))
    with pytest.raises((SystemExit, Tdmr1Error)):
        Run.resume(copied).execute(Silent())
    for name in metrics_log.LOGS:
        assert (copied / name).read_bytes() == (finished / name).read_bytes()
    monkeypatch.undo()
    check_resume(copied, finished)


def full_after(write, calls: int):
    """A function that raises the error of a full disk after this number of calls of `write`."""
    count = itertools.count(1)

    def write_or_fail(*given, **named):
        if next(count) > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*given, **named)

    return write_or_fail


def test_without_an_intact_checkpoint_a_resume_is_refused(copied):
    for checkpoint in checkpoint_folders(copied / "checkpoints"):
        truncate(checkpoint / "optimizers.safetensors")
    damaged = copied / "checkpoints" / NEWEST / "optimizers.safetensors"
    with pytest.warns(RunWarning), raises("checkpoint-missing") as caught:
        Run.resume(copied)
    assert caught.value.values["damage"]["path"] == str(damaged)


@pytest.mark.parametrize("content", [None, "", "step-0000", "../../etc", "\x00\xff"])
def test_an_invalid_pointer_is_ignored(copied, content):
    pointer = copied / "checkpoints" / LATEST
    pointer.unlink() if content is None else pointer.write_text(content)
    assert latest_checkpoint(copied / "checkpoints").name == NEWEST


def test_a_missing_checkpoint_is_reported(copied):
    shutil.rmtree(copied / "checkpoints" / NEWEST)
    with warns("checkpoint-damaged", checkpoint=NEWEST):
        assert latest_checkpoint(copied / "checkpoints").name == BEFORE


def failing(monkeypatch, name: str, at: int, error: BaseException) -> None:
    """Make the at-th call of os.<name> raise an error."""
    real, calls = getattr(os, name), itertools.count(1)

    def sometimes(*arguments, **keywords):
        if next(calls) == at:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, name, sometimes)


DISK_CALLS = [("fsync", 1), ("fsync", 4), ("fsync", 6), ("rename", 1), ("mkdir", 1)]
DISK_ERRORS = [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT]


@pytest.mark.parametrize(
    ("call", "at", "code"),
    [(*call, code) for call in DISK_CALLS for code in DISK_ERRORS],
)
def test_a_failed_write_leaves_earlier_checkpoints_unchanged(engine, copied, monkeypatch, call, at, code):
    before = files(copied)
    engine.iteration_index = 4
    failing(monkeypatch, call, at, OSError(code, os.strerror(code)))
    with raises("not-writable", path=str(copied / "checkpoints"), reason=os.strerror(code)):
        save_checkpoint(engine, copied / "checkpoints", 2)
    engine.iteration_index = 3
    assert files(copied) == before


@pytest.mark.parametrize(("call", "at"), [*(("fsync", i) for i in range(1, 10)), ("rename", 1), ("replace", 1)])
def test_after_a_crash_at_any_write_there_is_an_intact_checkpoint(engine, copied, monkeypatch, call, at):
    class Cut(BaseException):
        """Simulates a crash: nothing is cleaned up."""

    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    engine.iteration_index = 4
    failing(monkeypatch, call, at, Cut())
    with pytest.raises(Cut):
        save_checkpoint(engine, copied / "checkpoints", 2)
    engine.iteration_index = 3
    monkeypatch.undo()
    assert latest_checkpoint(copied / "checkpoints").name in (NEWEST, "step-000004")
    save_checkpoint(engine, copied / "checkpoints", 2)
    assert not list((copied / "checkpoints").glob(".*"))


def test_an_export_on_a_full_disk_leaves_no_trace(engine, tmp_path, monkeypatch):
    failing(monkeypatch, "fsync", 1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with raises("not-writable", path=str(tmp_path / "lora"), reason="No space left on device"):
        export_lora(engine, tmp_path / "lora")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_saved(engine, copied):
    before = files(copied)
    weight = next(iter(engine.roles.parameters("fake").values()))
    kept = weight.detach().clone()
    weight.data[0] = float("nan")
    with raises("update-not-finite", iteration=3) as caught:
        save_checkpoint(engine, copied / "checkpoints", 2)
    assert caught.value.values["tensor"].startswith("fake/")
    weight.data.copy_(kept)
    assert files(copied) == before


def test_a_full_disk_during_a_run(finished, tmp_path, monkeypatch):
    folder, config = tmp_path / "run", load_run_config(finished)
    append = metrics_log.append_durable

    def full(path, content):
        if json.loads(content.splitlines()[0])["step"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, content)

    monkeypatch.setattr(metrics_log, "append_durable", full)
    with raises("not-writable", path=str(folder), reason="No space left on device") as caught:
        Run.create(config, folder).execute(Silent())
    assert "space" in caught.value.hint
    assert latest_checkpoint(folder / "checkpoints").name == "step-000001"
    monkeypatch.undo()
    Run.resume(folder).execute(Silent())
    assert files(folder) == files(finished)


def test_a_disk_error_elsewhere_is_not_reported_as_one_of_the_run_folder(copied, monkeypatch):
    (copied / "checkpoints" / LATEST).write_text(f"{BEFORE}\n")

    def lose_a_file(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a reward's own file")

    monkeypatch.setattr(Engine, "iteration", lose_a_file)
    with pytest.raises(FileNotFoundError, match="a reward's own file"):
        Run.resume(copied).execute(Silent())


def test_a_full_disk_of_the_prompt_cache_is_an_error(engine, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine._encoder, "cache", tmp_path / "prompts")
    monkeypatch.setattr(prompt_encoder, "write_durable", full)
    with raises("not-writable", path=str(tmp_path / "prompts")):
        engine.conditioning([Prompt("a prompt that is not cached", {})])


def test_a_run_that_cannot_be_loaded_releases_its_lock_and_rewards(copied, monkeypatch):
    def broken(*_, **__):
        raise Tdmr1Error("the model cannot be loaded", "")

    closed: list[str] = []
    monkeypatch.setattr(RewardRunner, "close", lambda runner: closed.append("a runner"))
    monkeypatch.setattr(parts, "fetch_model", broken)
    with pytest.raises(Tdmr1Error, match="the model cannot be loaded"):
        Run.resume(copied).execute(Silent())
    lock_run(copied).release()
    assert len(closed) == 3, "the rewards of the evaluations, of the guard and of the training"


def test_an_ineffective_guard_stop_is_refused_at_a_resume_too(copied):
    change(copied, "  stop: false", "  stop: true")
    with raises("setting-conflict") as caught:
        Run.resume(copied)
    assert "guard.stop" in caught.value.message
    lock_run(copied).release()


def test_the_reward_human_needs_a_single_process(copied, tmp_path, monkeypatch):
    """Also at a resume, which may have another number of processes."""
    together = Processes(count=2)
    monkeypatch.setattr(Processes, "on_each", lambda processes, act: act())
    monkeypatch.setattr(Processes, "on_first", lambda processes, act: act())
    with raises("processes-count", reward="human", processes=2):
        Run.create(small_config("rewards.0.name=human"), tmp_path / "new", processes=together)
    change(copied, "name: object_count", "name: human")
    monkeypatch.setattr(changes_module, "_may_change", lambda *_: True)
    with raises("processes-count", reward="human", processes=2):
        Run.resume(copied, processes=together)


def test_guard_stop_needs_a_trained_reward_in_evaluations(tmp_path):
    settings = ("guard.stop=true", "evaluation.every=1")
    with raises("setting-conflict") as caught:
        Run.create(small_config(*settings, "rewards.0.name=human"), tmp_path / "people")
    assert "guard.stop" in caught.value.message
    assert "evaluation.rewards" in caught.value.hint
    with raises("setting-conflict") as caught:
        Run.create(small_config(*settings, "evaluation.rewards=[{name: jpeg_size}]"), tmp_path / "another")
    assert "guard.stop" in caught.value.message


def test_the_hints_for_a_run_without_a_checkpoint_do_not_contradict_each_other(copied):
    shutil.rmtree(copied / "checkpoints")
    with raises("run-folder-used", folder=str(copied)) as created:
        Run.create(load_run_config(copied), copied)
    with raises("checkpoint-missing", path=str(copied / "checkpoints")) as resumed:
        Run.resume(copied)
    for caught in (created, resumed):
        assert re.search("remove the (run )?folder", caught.value.hint)
        assert "--resume" not in caught.value.hint


def send_signals(monkeypatch, owner, name: str, at: int, *signals: int) -> None:
    """Send signals to this process before the at-th call of a function."""
    real, calls = getattr(owner, name), itertools.count(1)

    def signal_first(*given, **named):
        if next(calls) == at:
            for number in signals:
                os.kill(os.getpid(), number)
        return real(*given, **named)

    monkeypatch.setattr(owner, name, signal_first)


def check_resume(folder: Path, finished: Path) -> None:
    """Check that a resume ends with the same bits as a run that was not interrupted."""
    assert Run.resume(folder).execute(Silent()).finished
    assert files(folder) == files(finished)


def test_sigterm_finishes_the_iteration_and_saves(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    send_signals(monkeypatch, RolloutStage, "run", 2, signal.SIGTERM)
    with pytest.raises(
        Stopped, match=f"stopped after iteration 2 of 3; saved: {folder}/checkpoints/{BEFORE}"
    ) as caught:
        execute(Run.create(load_run_config(finished), folder), quiet=True)
    assert caught.value.hint == f"tdmr1 train --resume {folder}"
    monkeypatch.undo()
    check_resume(folder, finished)


def test_a_grid_that_a_kill_prevented_is_drawn_by_a_resume(tmp_path, monkeypatch):
    """The run is asked to stop and saves iteration 1; it is killed before it has drawn the grid of that iteration."""
    folder = tmp_path / "run"
    send_signals(monkeypatch, RolloutStage, "run", 1, signal.SIGTERM)
    send_signals(monkeypatch, run_module, "save_preview", 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        Run.create(small_config(*SETTINGS, "iterations=2", "saving.samples_every=9"), folder).execute(Silent())
    assert [path.name for path in (folder / "samples").glob("step-*.png")] == ["step-000000.png"]
    monkeypatch.undo()
    Run.resume(folder).execute(Silent())
    names = sorted(path.name for path in (folder / "samples").glob("step-*.png"))
    assert names == ["step-000000.png", "step-000001.png", "step-000002.png"]


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [(RolloutStage, "run", 2), (os, "fsync", 22), (os, "fsync", 26)],
    ids=["in the second rollout", "while the second checkpoint is written", "before latest names it"],
)
def test_a_second_ctrl_c_stops_at_once_and_damages_nothing(finished, tmp_path, monkeypatch, owner, name, at):
    folder = tmp_path / "run"
    send_signals(monkeypatch, owner, name, at, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Stopped, match=f"stopped at once; saved: {folder}/checkpoints/step-000001"):
        execute(Run.create(load_run_config(finished), folder), quiet=True)
    monkeypatch.undo()
    check_resume(folder, finished)


def test_a_second_writer_is_refused(copied):
    lock = lock_run(copied)
    with raises("run-folder-locked", folder=str(copied)):
        Run.resume(copied)
    lock.release()


def test_the_lock_of_a_killed_writer_is_released(copied):
    code = "import sys, time; from pathlib import Path; from tdmr1_core.durable_files import lock_run\n"
    code += "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(copied)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with raises("run-folder-locked"):
            lock_run(copied)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    lock_run(copied).release()


def test_two_runs_created_at_the_same_time_do_not_share_a_folder(finished, tmp_path):
    """Three runs are created before the folder exists. The others are refused during the first run and after it."""
    folder = tmp_path / "run"
    first, second, third = (Run.create(load_run_config(finished), folder) for _ in range(3))

    class StartSecond(Silent):
        def started(self, engine):
            before = files(folder)
            with raises("run-folder-locked", folder=str(folder)):
                second.execute(Silent())
            assert files(folder) == before

    assert first.execute(StartSecond()).finished
    assert files(folder) == files(finished)
    with raises("run-folder-used", folder=str(folder)):
        third.execute(Silent())
    assert files(folder) == files(finished)


def change(folder: Path, old: str, new: str) -> None:
    path = folder / "config.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_harmless_change_of_settings_is_recorded(copied):
    change(copied, "keep: 2", "keep: 5")
    run = Run.resume(copied)
    assert run.config.saving.keep == 5
    run.execute(Silent())
    (line,) = (copied / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line) == {"checkpoint": NEWEST, "changes": {"saving.keep": [2, 5]}, "differences": []}


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("beta_dpo: 1.0", "beta_dpo: 2.0", {"surrogate.beta_dpo": [1.0, 2.0]}),
        ("seed: 0", "seed: 1", {"seed": [0, 1]}),
        ("iterations: 3", "iterations: 4", {"iterations": [3, 4]}),  # the learning rate decays over the iterations
        ("  options: {}", "  options: {score: exact}", {"rewards.0.options.score": [None, "exact"]}),
        ("  options: {}", "  options: {timeout: 3}", {"rewards.0.options.timeout": [None, 3]}),
    ],
)
def test_any_other_change_is_refused_with_both_values(copied, old, new, changes):
    change(copied, old, new)
    with raises("resume-settings", path=str(copied / "config.yaml"), changes=changes):
        Run.resume(copied)
    lock_run(copied).release()


def test_another_base_model_is_refused(copied, tmp_path):
    shutil.copytree(Path(tiny.__file__).parent / "pipeline", tmp_path / "pipeline")
    change(copied, "  path: null", f"  path: {tmp_path / 'pipeline'}")
    assert Run.resume(copied).execute(Silent()).finished, "the same model elsewhere"
    with (tmp_path / "pipeline" / "transformer" / "config.json").open("a") as config:
        config.write("\n")
    with raises("resume-inputs", input="model", path=str(tmp_path / "pipeline")):
        Run.resume(copied).execute(Silent())


def test_counters_are_restored_from_a_checkpoint(engine, tmp_path):
    before = engine.counters()
    assert before["in_a_row"] == {"fake": 0, "surrogate": 0, "generator": 0}
    changed = json.loads(json.dumps(before))
    changed["in_a_row"]["fake"], changed["sizes"]["generator"] = 7, 2
    engine.restore_counters(changed)
    checkpoint = save_checkpoint(engine, tmp_path, 1)
    engine.restore_counters(before)
    load_checkpoint(engine, checkpoint)
    assert engine.counters() == changed
    engine.restore_counters(before)
    engine.restore_counters({**changed, "micro_batch": 3})
    assert engine.counters()["sizes"] == before["sizes"], "the setting of the micro-batch has changed"
    engine.restore_counters(before)


def test_readers_of_a_run_that_replaces_its_only_checkpoint_read_an_intact_one(copied):
    checkpoints, template, over = copied / "checkpoints", copied / "template", threading.Event()
    shutil.copytree(checkpoints / NEWEST, template)
    shutil.rmtree(checkpoints / BEFORE)

    def rotate() -> None:
        """Replace the checkpoint as `save_checkpoint` does with `keep: 1`, as fast as possible."""
        for number in itertools.count(4):
            name = f"step-{number:06d}"
            shutil.copytree(template, checkpoints / f".{name}.tmp")
            os.rename(checkpoints / f".{name}.tmp", checkpoints / name)
            replace_durable(checkpoints / LATEST, f"{name}\n".encode())
            shutil.rmtree(checkpoints / f"step-{number - 1:06d}")
            if over.is_set():
                return

    writer = threading.Thread(target=rotate)
    writer.start()
    try:
        with warnings.catch_warnings(action="error"):
            read, limit = [read_latest_checkpoint(checkpoints)[0]], time.monotonic() + 60
            while len(read) < 12 or (len(set(read)) < 2 and time.monotonic() < limit):
                read.append(read_latest_checkpoint(checkpoints)[0])
            check_links(copied)
    finally:
        over.set()
        writer.join()
    assert len(set(read)) > 1, "the checkpoint was replaced meanwhile"


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/step-000003", "checkpoints/latest", "metrics.jsonl"])
def test_a_link_out_of_the_run_folder_is_refused(copied, tmp_path, place):
    outside = tmp_path / "outside"
    shutil.move(copied / place, outside)
    (copied / place).symlink_to(outside)
    for use in (Run.resume, load_trained):
        with raises("link-outside", path=str(copied / place)):
            use(copied)


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


MARK = "/tmp/tdmr1-unpickled"


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_a_checkpoint_is_refused_and_not_executed(engine, copied, name):
    """Even if the manifest matches."""
    checkpoint = copied / "checkpoints" / NEWEST
    contents = {file: (checkpoint / file).read_bytes() for file in FILES} | {name: pickle.dumps(Payload())}
    (checkpoint / name).write_bytes(contents[name])
    (checkpoint / MANIFEST).write_bytes(describe(contents))
    with raises("checkpoint-mismatch", path=str(checkpoint)):
        read_config(checkpoint) if name == "config.json" else load_checkpoint(engine, checkpoint)
    assert not Path(MARK).exists()
    assert engine.iteration_index == 3


def test_a_jump_of_the_clock_changes_no_duration(finished, tmp_path, monkeypatch):
    now, jumps = time.time, itertools.cycle([0, -4e7, 9e7, 3])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    folder = tmp_path / "run"
    Run.create(load_run_config(finished), folder).execute(Silent())
    monkeypatch.undo()
    assert files(folder) == files(finished)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert all(0 <= row[key] < 600 for key in row if key.startswith("time/"))
    assert [row["step"] for row in rows(folder / "metrics.jsonl")] == [1, 2, 3]
