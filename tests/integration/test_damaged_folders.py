"""Run folders that somebody or something has spoilt: a sentence, or the rest of them, and never a silent loss."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load, save
from support.runs import Silent, files, small_config

from tdmr1_cli.main import main
from tdmr1_cli.run_command import _execute as execute_here
from tdmr1_cli.signals import Stopped
from tdmr1_core.build import parts as assemble
from tdmr1_core.durable_files import check_links
from tdmr1_core.engine import Engine
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.runs.checkpoints import checkpoint as checkpoints_module
from tdmr1_core.runs.checkpoints.checkpoint import (
    FILES,
    GOOD,
    LATEST,
    OPTIMIZERS,
    REWARDS,
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    mark_good,
    read_config,
    save_checkpoint,
)
from tdmr1_core.runs.checkpoints.manifest import MANIFEST, describe
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.metrics_log import Tracker
from tdmr1_core.runs.output import export
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration
NEWEST, BEFORE = "step-000002", "step-000001"
NESTED = b"[" * 100_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damages") / "whole"
    settings = ("iterations=2", "saving.checkpoint_every=1", "evaluation.images=1")
    Run.create(small_config(*settings), folder).execute(Silent())
    return folder


@pytest.fixture(scope="module")
def engine(finished):
    engine = load_trained(finished)
    load_checkpoint(engine, finished / "checkpoints" / NEWEST)
    yield engine
    engine.close()


def rewrite(checkpoint: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change files of a checkpoint, and let its manifest fit."""
    contents = {name: (checkpoint / name).read_bytes() for name in FILES}
    change(contents)
    for name, content in contents.items():
        (checkpoint / name).write_bytes(content)
    (checkpoint / MANIFEST).write_bytes(describe(contents))


def edit(**changes: object) -> Callable[[dict[str, bytes]], None]:
    def change(contents: dict[str, bytes]) -> None:
        contents["state.json"] = json.dumps({**json.loads(contents["state.json"]), **changes}).encode()

    return change


def manifest_of_numbers(path: Path) -> None:
    listed = dict.fromkeys(FILES, 5)
    told = checkpoints_module.manifest._hash_of_list(listed)
    path.write_text(json.dumps({"files": listed, "sha256": told}))


MANIFESTS = {
    "nested": lambda path: path.write_bytes(NESTED),
    "numbers": manifest_of_numbers,
    "a list": lambda path: path.write_text('{"files": [], "sha256": 5}'),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", MANIFESTS.values(), ids=MANIFESTS)
def test_whatever_stands_for_a_manifest_the_checkpoint_before_it_is_used(copied, damage):
    damage(copied / "checkpoints" / NEWEST / MANIFEST)
    with pytest.warns(RunWarning, match=f"{NEWEST}/{MANIFEST} is"):
        assert latest_checkpoint(copied / "checkpoints").name == BEFORE


def test_weights_that_are_a_pipe_are_not_waited_for(copied):
    path = copied / "checkpoints" / NEWEST / "weights.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(RunWarning, match="weights.safetensors is no file"):
        assert latest_checkpoint(copied / "checkpoints").name == BEFORE
    with pytest.raises(Tdmr1Error, match=r"weights.safetensors is neither a file nor a folder"):
        check_links(copied)


FOREIGN = {
    "settings nested": lambda contents: contents.update({"config.json": NESTED}),
    "state nested": lambda contents: contents.update({"state.json": NESTED}),
    "state a list": lambda contents: contents.update({"state.json": b"[]"}),
    "rewards nested": lambda contents: contents.update({REWARDS: NESTED}),
    "rewards numbers": lambda contents: contents.update({REWARDS: b"[5]"}),
    "iteration infinite": lambda contents: contents.update({"state.json": b'{"iteration": 1e999}'}),
    "counters": edit(counters=5),
    "sizes": edit(counters={"in_a_row": dict.fromkeys(("fake", "surrogate", "generator"), float("inf"))}),
    "moments": edit(moments=[]),
    "updates": edit(updates=5),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_a_checkpoint_of_something_else_is_a_sentence(engine, copied, change):
    checkpoint = copied / "checkpoints" / NEWEST
    rewrite(checkpoint, change)
    read = read_config if (checkpoint / "config.json").read_bytes() == NESTED else partial(load_checkpoint, engine)
    with pytest.raises(Tdmr1Error, match=f"{NEWEST} holds something else than a checkpoint"):
        read(checkpoint)


def without(wanted: Callable[[str], bool]) -> Callable[[dict[str, bytes]], None]:
    def change(contents: dict[str, bytes]) -> None:
        contents[OPTIMIZERS] = save({name: t for name, t in load(contents[OPTIMIZERS]).items() if not wanted(name)})

    return change


def reshaped(contents: dict[str, bytes]) -> None:
    tensors = load(contents[OPTIMIZERS])
    name = next(name for name in tensors if name.endswith("/exp_avg"))
    contents[OPTIMIZERS] = save({**tensors, name: tensors[name].flatten()[:3].clone()})


def uncounted(contents: dict[str, bytes]) -> None:
    state = json.loads(contents["state.json"])
    del state["moments"]
    contents["state.json"] = json.dumps(state).encode()


MOMENTS = {
    "none": (without(lambda name: True), r"moments of 0 weights of the \w+, not of \d+"),
    "one weight less": (without(lambda name: "transformer_blocks.0.attn.to_q.lora_A" in name), "moments of"),
    "no second ones": (without(lambda name: name.endswith("exp_avg_sq")), "the moments of .* are not whole"),
    "no count of steps": (without(lambda name: name.endswith("/step")), "the moments of .* are not whole"),
    "of another shape": (reshaped, r"the moments of .* are \(3,\), the weight is"),
    "none, and of an earlier version": (
        lambda contents: (uncounted(contents), without(lambda name: True)(contents)),
        "moments of 0 weights",
    ),
}


@pytest.mark.parametrize(("change", "told"), MOMENTS.values(), ids=MOMENTS)
def test_missing_moments_are_refused(engine, copied, change, told):
    checkpoint = copied / "checkpoints" / NEWEST
    rewrite(checkpoint, change)
    with pytest.raises(Tdmr1Error, match=f"{OPTIMIZERS} does not fit: .*{told}"):
        load_checkpoint(engine, checkpoint)
    load_checkpoint(engine, checkpoint, moments=False)


def test_every_weight_has_moments_and_their_number_is_kept(engine, finished):
    state = json.loads((finished / "checkpoints" / NEWEST / "state.json").read_text())
    assert state["moments"] == {name: len(role.parameters) for name, role in engine.trained.items()}


@pytest.mark.parametrize("name", [".lock", "resumes.jsonl", "samples", "tensorboard"])
def test_what_stands_where_the_run_writes_is_named(engine, copied, name):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if name in (".lock", "resumes.jsonl") else path.write_text("")

    def write() -> None:
        run = Run.resume(copied)
        try:
            run._open_folder(engine)
            Tracker(copied, tensorboard=True).go_back(2, evaluated=2)
        finally:
            run._release()

    with pytest.raises(Tdmr1Error, match=r"can't be (written|read): (Is a directory|File exists|Not a dir)") as caught:
        write()
    assert caught.value.hint


def test_a_line_of_continuations_that_was_cut_short_does_not_merge_with_the_next(engine, copied):
    (copied / "resumes.jsonl").write_text('{"checkpoint": "step-000001", "changes": {}}\n{"checkp')
    run = Run.resume(copied)
    run._open_folder(engine)
    run._release()
    lines = [json.loads(line) for line in (copied / "resumes.jsonl").read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == [BEFORE, NEWEST]


@pytest.mark.parametrize("content", [b"", b"step-0000", b"../..", b"\xff\xfe", None])
def test_the_good_checkpoint_stands_in_for_a_latest_that_names_none(copied, content):
    checkpoints = copied / "checkpoints"
    mark_good(checkpoints, checkpoints / BEFORE)
    (checkpoints / LATEST).unlink()
    if content is not None:
        (checkpoints / LATEST).write_bytes(content)
    with pytest.warns(RunWarning, match=f"{LATEST} names no checkpoint: using {BEFORE}, which .*{GOOD} names"):
        assert latest_checkpoint(checkpoints).name == BEFORE
    (checkpoints / BEFORE / "weights.safetensors").write_bytes(b"")
    with pytest.warns(RunWarning, match=f"{LATEST} names no checkpoint: using the newest that is intact"):
        assert latest_checkpoint(checkpoints).name == NEWEST


def test_an_emptied_latest_is_told_without_a_good_one_too(copied):
    (copied / "checkpoints" / LATEST).write_text("")
    with pytest.warns(RunWarning, match=f"{LATEST} names no checkpoint: using the newest that is intact"):
        assert latest_checkpoint(copied / "checkpoints").name == NEWEST


@pytest.fixture
def third(engine):
    """The engine as if another iteration was over."""
    engine.iteration_index = 3
    yield engine
    engine.iteration_index = 2


def test_while_the_good_checkpoint_is_unknown_none_is_dropped(third, copied):
    checkpoints = copied / "checkpoints"
    (checkpoints / GOOD).write_text("\x00")
    with pytest.warns(RunWarning, match=f"{GOOD} names no checkpoint, so none is dropped"):
        save_checkpoint(third, checkpoints, 1)
    assert [path.name for path in checkpoint_folders(checkpoints)] == [BEFORE, NEWEST, "step-000003"]
    mark_good(checkpoints, checkpoints / NEWEST)
    save_checkpoint(third, checkpoints, 1)
    assert [path.name for path in checkpoint_folders(checkpoints)] == [NEWEST, "step-000003"]


def test_an_intact_checkpoint_is_not_dropped_for_a_damaged_one(third, copied):
    checkpoints = copied / "checkpoints"
    (checkpoints / NEWEST / "weights.safetensors").write_bytes(b"")
    save_checkpoint(third, checkpoints, 2)
    assert (checkpoints / BEFORE).is_dir()
    third.iteration_index = 4
    save_checkpoint(third, checkpoints, 2)
    assert [path.name for path in checkpoint_folders(checkpoints)] == ["step-000003", "step-000004"]


def test_fewer_iterations_than_are_done_are_refused(copied):
    before = files(copied)
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("\niterations: 2\n", "\niterations: 1\n"))
    with pytest.raises(Tdmr1Error, match=r"iterations is 1 in .*, and 2 are done already") as caught:
        Run.resume(copied)
    assert "set it to 2 or more" in caught.value.hint
    assert files(copied).keys() == before.keys()


def test_a_checkpoint_that_cannot_be_loaded_is_not_what_one_is_sent_to(copied, monkeypatch):
    def broken(*_, **__):
        raise Tdmr1Error("the model can't be loaded", "get another")

    (copied / "checkpoints" / LATEST).write_bytes(b"\xff\xfe")
    monkeypatch.setattr(assemble, "fetch_model", broken)
    with pytest.warns(RunWarning), pytest.raises(Tdmr1Error, match="can't be loaded") as caught:
        execute_here(Run.resume(copied), quiet=True)
    assert caught.value.hint == "get another"


def test_after_that_the_checkpoint_is_named_by_a_pointer_that_names_one(copied, monkeypatch):
    """Not by what else may be in it by then."""
    pointer = copied / "checkpoints" / LATEST

    def check(content: bytes, hint: str) -> None:
        def broken(engine):
            pointer.write_bytes(content)
            raise Tdmr1Error("it fails", "mend it")

        monkeypatch.setattr(Engine, "iteration", broken)
        pointer.write_text(BEFORE)
        with pytest.raises(Tdmr1Error, match="it fails") as caught:
            execute_here(Run.resume(copied), quiet=True)
        assert caught.value.hint == hint

    check(b"../..", "mend it")
    check(BEFORE.encode(), f"mend it; up to {BEFORE} the run is saved: `tdmr1 train --resume {copied}`")


def test_a_stop_does_not_say_that_nothing_is_saved_where_only_the_pointer_is_lost(copied, monkeypatch):
    def stopped(engine):
        (copied / "checkpoints" / LATEST).write_text("")
        raise KeyboardInterrupt

    (copied / "checkpoints" / LATEST).write_text(BEFORE)
    monkeypatch.setattr(Engine, "iteration", stopped)
    with pytest.raises(Stopped, match=r"^stopped at once$") as told:
        execute_here(Run.resume(copied), quiet=True)
    assert told.value.hint == f"tdmr1 train --resume {copied}"


def test_sigterm_leaves_an_export_as_ctrl_c_does(copied, monkeypatch, capsys):
    def terminated(*_):
        assert (copied / ".export.tmp").is_dir()
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(export, "_compare", terminated)
    former = signal.getsignal(signal.SIGTERM)
    assert main(["export", str(copied)]) == 130
    assert capsys.readouterr().err.endswith("stopped\n")
    assert not list(copied.glob("*export*"))
    assert not list(copied.glob(".export*"))
    assert signal.getsignal(signal.SIGTERM) == former
