"""What happens to disks, clocks and files under a run: one sentence that names the file, and nothing lost."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.errors import raises
from support.runs import Silent, files, rows, small_config

from tdmr1_cli.run_command import _execute as execute_here
from tdmr1_cli.signals import Stopped
from tdmr1_core import tiny
from tdmr1_core.build import parts as assemble
from tdmr1_core.distributed import Processes
from tdmr1_core.durable_files import lock_run
from tdmr1_core.engine import Engine
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.records import Prompt
from tdmr1_core.runs import metrics_log as tracking
from tdmr1_core.runs.checkpoints import manifest
from tdmr1_core.runs.checkpoints import resume as continuing
from tdmr1_core.runs.checkpoints.checkpoint import (
    FILES,
    LATEST,
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    read_config,
    save_checkpoint,
)
from tdmr1_core.runs.checkpoints.manifest import MANIFEST, describe
from tdmr1_core.runs.checkpoints.resume import load_run_config
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.run import Run
from tdmr1_core.stages import prompt_encoder as encoding
from tdmr1_core.stages.rollout import RolloutStage
from tdmr1_rewards.scoring.runner import RewardRunner

pytestmark = pytest.mark.integration
NEWEST, BEFORE = "step-000003", "step-000002"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    Run.create(small_config("saving.checkpoint_every=1", "evaluation.images=1"), folder).execute(Silent())
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
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_used(copied, name, damage):
    checkpoints = copied / "checkpoints"
    path = checkpoints / NEWEST / name
    DAMAGES[damage](path)
    with pytest.warns(RunWarning) as told:
        assert latest_checkpoint(checkpoints) == checkpoints / BEFORE
    sentences = [str(warning.message) for warning in told]
    assert len(sentences) == 2
    assert str(path) in sentences[0]
    assert BEFORE in sentences[1]


def test_looking_for_a_checkpoint_keeps_no_file_of_it_in_memory(copied, monkeypatch):
    read: list[str] = []
    real = manifest._read
    monkeypatch.setattr(manifest, "_read", lambda path: read.append(path.name) or real(path))
    assert latest_checkpoint(copied / "checkpoints").name == NEWEST
    assert read == [MANIFEST]
    assert read_config(copied / "checkpoints" / NEWEST)["iterations"] == 3
    assert read == [MANIFEST, MANIFEST, "config.json"]


def test_a_run_with_a_damaged_newest_checkpoint_ends_with_the_same_bits(copied, finished):
    flip_a_bit(copied / "checkpoints" / NEWEST / "weights.safetensors")
    with pytest.warns(RunWarning):
        resumed = Run.resume(copied)
    again = Silent()
    assert resumed.execute(again).finished
    assert [report.step for report in again.reports] == [3]
    assert files(copied) == files(finished)


def test_without_an_intact_checkpoint_all_that_is_left_is_to_begin_again(copied):
    for checkpoint in checkpoint_folders(copied / "checkpoints"):
        truncate(checkpoint / "optimizers.safetensors")
    with (
        pytest.warns(RunWarning),
        pytest.raises(Tdmr1Error, match=r"no intact checkpoint .*step-000003/optimizers.safetensors has \d+ bytes"),
    ):
        Run.resume(copied)


@pytest.mark.parametrize("content", [None, "", "step-0000", "../../etc", "\x00\xff"])
def test_a_pointer_that_names_nothing_is_done_without(copied, content):
    pointer = copied / "checkpoints" / LATEST
    pointer.unlink() if content is None else pointer.write_text(content)
    assert latest_checkpoint(copied / "checkpoints").name == NEWEST


def test_a_missing_checkpoint_is_told(copied):
    shutil.rmtree(copied / "checkpoints" / NEWEST)
    with pytest.warns(RunWarning, match="which is missing"):
        assert latest_checkpoint(copied / "checkpoints").name == BEFORE


def failing(monkeypatch, name: str, at: int, error: BaseException) -> None:
    """Let the at-th call of os.<name> raise."""
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
def test_a_disk_that_takes_no_more_leaves_earlier_checkpoints_alone(engine, copied, monkeypatch, call, at, code):
    before = files(copied)
    engine.iteration_index = 4
    failing(monkeypatch, call, at, OSError(code, os.strerror(code)))
    with pytest.raises(Tdmr1Error, match=f"checkpoints can't be written: {os.strerror(code)}"):
        save_checkpoint(engine, copied / "checkpoints", 2)
    engine.iteration_index = 3
    assert files(copied) == before


@pytest.mark.parametrize(("call", "at"), [*(("fsync", i) for i in range(1, 10)), ("rename", 1), ("replace", 1)])
def test_wherever_it_is_cut_off_there_is_an_intact_checkpoint(engine, copied, monkeypatch, call, at):
    class Cut(BaseException):
        """Nothing is cleared up after it."""

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


def test_weights_that_are_not_finite_are_not_saved(engine, copied):
    before = files(copied)
    weight = next(iter(engine.roles.parameters("fake").values()))
    kept = weight.detach().clone()
    weight.data[0] = float("nan")
    with pytest.raises(Tdmr1Error, match=r"fake/.* are not finite at iteration 3"):
        save_checkpoint(engine, copied / "checkpoints", 2)
    weight.data.copy_(kept)
    assert files(copied) == before


def test_a_full_disk_in_the_middle_of_a_run(finished, tmp_path, monkeypatch):
    folder, config = tmp_path / "run", load_run_config(finished)
    append = tracking.append_durable

    def full(path, content):
        if json.loads(content.splitlines()[0])["step"] == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, content)

    monkeypatch.setattr(tracking, "append_durable", full)
    with pytest.raises(Tdmr1Error, match=f"{folder} can't be written: No space left on device") as caught:
        Run.create(config, folder).execute(Silent())
    assert caught.value.hint == "free some space there"
    assert latest_checkpoint(folder / "checkpoints").name == "step-000001"
    monkeypatch.undo()
    Run.resume(folder).execute(Silent())
    assert files(folder) == files(finished)


def test_an_error_of_something_else_is_not_told_of_the_run_folder(copied, monkeypatch):
    (copied / "checkpoints" / LATEST).write_text(f"{BEFORE}\n")

    def lose_a_file(*_):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a reward's own file")

    monkeypatch.setattr(Engine, "iteration", lose_a_file)
    with pytest.raises(FileNotFoundError, match="a reward's own file"):
        Run.resume(copied).execute(Silent())


def test_a_full_disk_of_the_prompt_cache_is_an_error(engine, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine._encoder, "_cache", tmp_path / "prompts")
    monkeypatch.setattr(encoding, "write_durable", full)
    with raises("not-writable", path=str(tmp_path / "prompts")):
        engine.conditioning([Prompt("nobody has asked for this", {})])


def test_a_run_that_cannot_be_loaded_holds_nothing(copied, monkeypatch):
    def broken(*_, **__):
        raise Tdmr1Error("the model can't be loaded", "")

    closed: list[str] = []
    monkeypatch.setattr(RewardRunner, "close", lambda runner: closed.append("a runner"))
    monkeypatch.setattr(assemble, "fetch_model", broken)
    with pytest.raises(Tdmr1Error, match="can't be loaded"):
        Run.resume(copied).execute(Silent())
    lock_run(copied).release()
    assert len(closed) == 2, "the judge of evaluations, and the rewards of the training"


def test_what_a_guard_cannot_stop_is_refused_at_a_resume_too(copied):
    change(copied, "  stop: false", "  stop: true")
    with pytest.raises(Tdmr1Error, match=r"guard\.stop can stop nothing"):
        Run.resume(copied)
    lock_run(copied).release()


def test_people_are_asked_by_a_single_process_alone(copied, tmp_path, monkeypatch):
    """At a resume too, which is told of the number of processes anew."""
    together = Processes(count=2)
    with pytest.raises(Tdmr1Error, match="'human' asks people, and so needs a single process"):
        Run.create(small_config("rewards.0.name=human"), tmp_path / "new", processes=together)
    monkeypatch.setattr(Processes, "on_first", lambda processes, act: act())
    change(copied, "name: object_count", "name: human")
    monkeypatch.setattr(continuing, "_may_change", lambda *_: True)
    with pytest.raises(Tdmr1Error, match="'human' asks people"):
        Run.resume(copied, processes=together)


def test_a_guard_that_sees_no_trained_reward_cannot_be_asked_to_stop(tmp_path):
    asked = ("guard.stop=true", "evaluation.every=1")
    with pytest.raises(Tdmr1Error, match="evaluations judge none of the trained rewards") as caught:
        Run.create(small_config(*asked, "rewards.0.name=human"), tmp_path / "people")
    assert "evaluation.rewards" in caught.value.hint
    with pytest.raises(Tdmr1Error, match="evaluations judge none"):
        Run.create(small_config(*asked, "evaluation.rewards=[{name: jpeg_size}]"), tmp_path / "another")


def test_a_run_without_a_checkpoint_is_not_sent_back_and_forth(copied):
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(Tdmr1Error, match="already used") as created:
        Run.create(load_run_config(copied), copied)
    with pytest.raises(Tdmr1Error, match="there is no checkpoint") as resumed:
        Run.resume(copied)
    for caught in (created, resumed):
        assert "remove the folder" in caught.value.hint
        assert "--resume" not in caught.value.hint


def signalled(monkeypatch, owner, name: str, at: int, *signals: int) -> None:
    """Send this process signals before the at-th call of something."""
    real, calls = getattr(owner, name), itertools.count(1)

    def disturbed(*given, **named):
        if next(calls) == at:
            for number in signals:
                os.kill(os.getpid(), number)
        return real(*given, **named)

    monkeypatch.setattr(owner, name, disturbed)


def check_it_goes_on(folder: Path, finished: Path) -> None:
    """To the bits of a run that nobody disturbed."""
    assert Run.resume(folder).execute(Silent()).finished
    assert files(folder) == files(finished)


def test_sigterm_finishes_the_iteration_and_saves(finished, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    signalled(monkeypatch, RolloutStage, "run", 2, signal.SIGTERM)
    with pytest.raises(Stopped, match=f"stopped after iteration 2 of 3; saved: {folder}/checkpoints/{BEFORE}") as told:
        execute_here(Run.create(load_run_config(finished), folder), quiet=True)
    assert told.value.hint == f"tdmr1 train --resume {folder}"
    monkeypatch.undo()
    check_it_goes_on(folder, finished)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [(RolloutStage, "run", 2), (os, "fsync", 22), (os, "fsync", 26)],
    ids=["in the second rollout", "in the files of the second checkpoint", "before it is pointed at"],
)
def test_a_second_ctrl_c_leaves_at_once_and_harms_nothing(finished, tmp_path, monkeypatch, owner, name, at):
    folder = tmp_path / "run"
    signalled(monkeypatch, owner, name, at, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Stopped, match=f"stopped at once; saved: {folder}/checkpoints/step-000001"):
        execute_here(Run.create(load_run_config(finished), folder), quiet=True)
    monkeypatch.undo()
    check_it_goes_on(folder, finished)


def test_a_second_writer_is_refused(copied):
    lock = lock_run(copied)
    with pytest.raises(Tdmr1Error, match="another process is at work on the run folder"):
        Run.resume(copied)
    lock.release()


def test_a_killed_writer_holds_nothing(copied):
    code = "import sys, time; from pathlib import Path; from tdmr1_core.durable_files import lock_run\n"
    code += "lock = lock_run(Path(sys.argv[1])); print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(copied)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Tdmr1Error, match="another process"):
            lock_run(copied)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    lock_run(copied).release()


def test_two_that_begin_at_once_do_not_share_a_folder(finished, tmp_path):
    """Whether the other one is at work, or over: all three took the folder for a new one."""
    folder = tmp_path / "run"
    first, second, third = (Run.create(load_run_config(finished), folder) for _ in range(3))

    class Disturbed(Silent):
        def started(self, engine):
            before = files(folder)
            with pytest.raises(Tdmr1Error, match="another process is at work on the run folder"):
                second.execute(Silent())
            assert files(folder) == before

    assert first.execute(Disturbed()).finished
    assert files(folder) == files(finished)
    with pytest.raises(Tdmr1Error, match="already used"):
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
    ("old", "new", "told"),
    [
        ("beta_dpo: 1.0", "beta_dpo: 2.0", "surrogate.beta_dpo was 1.0 and is now 2.0"),
        ("seed: 0", "seed: 1", "seed was 0 and is now 1"),
        ("iterations: 3", "iterations: 4", "iterations was 3 and is now 4"),  # its learning rate falls over them
        ("  options: {}", "  options: {score: exact}", "rewards.0.options.score was None and is now exact"),
        ("  options: {}", "  options: {timeout: 3}", "rewards.0.options.timeout was None and is now 3"),
    ],
)
def test_any_other_change_is_refused_with_both_values(copied, old, new, told):
    change(copied, old, new)
    with pytest.raises(Tdmr1Error, match=told):
        Run.resume(copied)
    lock_run(copied).release()


def test_another_base_model_is_refused(copied, tmp_path):
    shutil.copytree(Path(tiny.__file__).parent / "pipeline", tmp_path / "pipeline")
    change(copied, "  path: null", f"  path: {tmp_path / 'pipeline'}")
    assert Run.resume(copied).execute(Silent()).finished, "the same model elsewhere"
    with (tmp_path / "pipeline" / "transformer" / "config.json").open("a") as config:
        config.write("\n")
    with pytest.raises(Tdmr1Error, match=f"{tmp_path}/pipeline is not the model that the run began with"):
        Run.resume(copied).execute(Silent())


def test_counters_come_back_with_a_checkpoint(engine, tmp_path):
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
    assert engine.counters()["sizes"] == before["sizes"], "the settings ask for another size now"
    engine.restore_counters(before)


@pytest.mark.parametrize("place", ["checkpoints", "checkpoints/step-000003", "checkpoints/latest", "metrics.jsonl"])
def test_a_link_out_of_the_run_folder_is_refused(copied, tmp_path, place):
    outside = tmp_path / "outside"
    shutil.move(copied / place, outside)
    (copied / place).symlink_to(outside)
    for use in (Run.resume, load_trained):
        with pytest.raises(Tdmr1Error, match=r"is a link to .*outside, outside of the folder"):
            use(copied)


class Payload:
    """What a pickle would do to whoever reads it."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


MARK = "/tmp/tdmr1-unpickled"


@pytest.mark.parametrize("name", FILES)
def test_a_pickle_in_a_checkpoint_is_refused_and_not_read(engine, copied, name):
    """Even where whoever put it there wrote a manifest that fits."""
    checkpoint = copied / "checkpoints" / NEWEST
    contents = {file: (checkpoint / file).read_bytes() for file in FILES} | {name: pickle.dumps(Payload())}
    (checkpoint / name).write_bytes(contents[name])
    (checkpoint / MANIFEST).write_bytes(describe(contents))
    with pytest.raises(Tdmr1Error, match=f"{NEWEST} holds something else than a checkpoint"):
        read_config(checkpoint) if name == "config.json" else load_checkpoint(engine, checkpoint)
    assert not Path(MARK).exists()
    assert engine.iteration_index == 3


def test_a_clock_that_jumps_changes_no_duration(finished, tmp_path, monkeypatch):
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
