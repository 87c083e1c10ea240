"""Damaged run folders: an error or a warning names the damage, and everything intact is still used."""

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
from support.errors import raises, warns
from support.runs import Silent, files, small_config

from tdmr1_cli.main import main
from tdmr1_cli.run_command import _execute as execute
from tdmr1_cli.signals import Stopped
from tdmr1_core.build import parts
from tdmr1_core.durable_files import check_links
from tdmr1_core.engine import Engine
from tdmr1_core.errors import RunWarning, Tdmr1Error
from tdmr1_core.runs.checkpoints import manifest
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
from tdmr1_core.runs.metrics_log import RunLog
from tdmr1_core.runs.output import export
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration
NEWEST, BEFORE = "step-000002", "step-000001"
NESTED = b"[" * 100_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("damages") / "whole"
    settings = ("iterations=2", "saving.checkpoint_every=1", "evaluation.images=1", "timesteps.per_iteration=1")
    Run.create(small_config(*settings), folder).execute(Silent())
    return folder


@pytest.fixture(scope="module")
def engine(finished):
    engine = load_trained(finished)
    load_checkpoint(engine, finished / "checkpoints" / NEWEST)
    yield engine
    engine.close()


def rewrite(checkpoint: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change files of a checkpoint and write a matching manifest."""
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
    digest = manifest._hash_of_list(listed)
    path.write_text(json.dumps({"files": listed, "sha256": digest}))


MANIFESTS = {
    "nested": lambda path: path.write_bytes(NESTED),
    "numbers": manifest_of_numbers,
    "a list": lambda path: path.write_text('{"files": [], "sha256": 5}'),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", MANIFESTS.values(), ids=MANIFESTS)
def test_with_a_damaged_manifest_the_earlier_checkpoint_is_used(copied, damage):
    path = copied / "checkpoints" / NEWEST / MANIFEST
    damage(path)
    with warns("checkpoint-damaged", path=str(path)):
        assert latest_checkpoint(copied / "checkpoints").name == BEFORE


def test_a_pipe_in_place_of_the_weights_does_not_block(copied):
    path = copied / "checkpoints" / NEWEST / "weights.safetensors"
    path.unlink()
    os.mkfifo(path)
    with warns("checkpoint-damaged", path=str(path)):
        assert latest_checkpoint(copied / "checkpoints").name == BEFORE
    with raises("link-outside", path=str(path)):
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
def test_a_checkpoint_with_other_content_is_refused(engine, copied, change):
    checkpoint = copied / "checkpoints" / NEWEST
    rewrite(checkpoint, change)
    read = read_config if (checkpoint / "config.json").read_bytes() == NESTED else partial(load_checkpoint, engine)
    with raises("checkpoint-mismatch", path=str(checkpoint)):
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


def has_no_moments(values: dict) -> bool:
    return values["found"] == 0 < values["expected"]


def is_incomplete(values: dict) -> bool:
    return "parameter" in values and len(values["found"]) == 2


MOMENTS = {
    "none": (without(lambda name: True), has_no_moments),
    "one parameter missing": (
        without(lambda name: "transformer_blocks.0.attn.to_q.lora_A" in name),
        lambda values: 0 < values["found"] < values["expected"],
    ),
    "no second moments": (without(lambda name: name.endswith("exp_avg_sq")), is_incomplete),
    "no step counts": (without(lambda name: name.endswith("/step")), is_incomplete),
    "of another shape": (reshaped, lambda values: values["shape"] == [3] != values["expected"]),
    "none, without their number as in earlier versions": (
        lambda contents: (uncounted(contents), without(lambda name: True)(contents)),
        has_no_moments,
    ),
}


@pytest.mark.parametrize(("change", "expected"), MOMENTS.values(), ids=MOMENTS)
def test_missing_moments_are_refused(engine, copied, change, expected):
    checkpoint = copied / "checkpoints" / NEWEST
    rewrite(checkpoint, change)
    with raises("checkpoint-mismatch", path=str(checkpoint / OPTIMIZERS)) as caught:
        load_checkpoint(engine, checkpoint)
    assert expected(caught.value.values), caught.value.values
    load_checkpoint(engine, checkpoint, moments=False)


def test_every_parameter_has_moments_and_their_number_is_saved(engine, finished):
    state = json.loads((finished / "checkpoints" / NEWEST / "state.json").read_text())
    assert state["moments"] == {name: len(role.parameters) for name, role in engine.trained.items()}


@pytest.mark.parametrize("target", ["nowhere", "config.yaml", ".lock"])
def test_a_link_in_the_place_of_the_lock_is_refused(copied, target):
    (copied / ".lock").unlink(missing_ok=True)
    (copied / ".lock").symlink_to(target)
    with raises("link-outside", path=str(copied / ".lock")):
        Run.resume(copied)
    assert (copied / "config.yaml").stat().st_size > 0


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (".lock", "not-writable"),
        ("resumes.jsonl", "record-damaged"),
        ("samples", "not-writable"),
        ("tensorboard", "not-writable"),
    ],
)
def test_an_obstacle_where_the_run_writes_is_named(engine, copied, name, code):
    path = copied / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.mkdir() if name in (".lock", "resumes.jsonl") else path.write_text("")

    def write() -> None:
        run = Run.resume(copied)
        try:
            run._open_folder(engine)
            RunLog(copied, tensorboard=True).go_back(2, evaluated=2)
        finally:
            run._release()

    with raises(code) as caught:
        write()
    assert caught.value.values["reason"] in ("Is a directory", "File exists", "Not a directory")
    assert caught.value.hint


def test_a_truncated_line_of_resumes_does_not_merge_with_the_next(engine, copied):
    (copied / "resumes.jsonl").write_text('{"checkpoint": "step-000001", "changes": {}}\n{"checkp')
    run = Run.resume(copied)
    run._open_folder(engine)
    run._release()
    lines = [json.loads(line) for line in (copied / "resumes.jsonl").read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == [BEFORE, NEWEST]


@pytest.mark.parametrize("content", [b"", b"step-0000", b"../..", b"\xff\xfe", None])
def test_the_good_checkpoint_is_used_if_latest_names_none(copied, content):
    checkpoints = copied / "checkpoints"
    mark_good(checkpoints, checkpoints / BEFORE)
    (checkpoints / LATEST).unlink()
    if content is not None:
        (checkpoints / LATEST).write_bytes(content)
    with warns("checkpoint-damaged", path=str(checkpoints / LATEST), used=BEFORE):
        assert latest_checkpoint(checkpoints).name == BEFORE
    (checkpoints / BEFORE / "weights.safetensors").write_bytes(b"")
    with warns("checkpoint-damaged", path=str(checkpoints / LATEST), used=None):
        assert latest_checkpoint(checkpoints).name == NEWEST


def test_an_empty_latest_is_reported_without_a_good_checkpoint_too(copied):
    (copied / "checkpoints" / LATEST).write_text("")
    with warns("checkpoint-damaged", path=str(copied / "checkpoints" / LATEST), used=None):
        assert latest_checkpoint(copied / "checkpoints").name == NEWEST


@pytest.fixture
def third(engine):
    """The engine with its iteration counter set to 3; no iteration is executed."""
    engine.iteration_index = 3
    yield engine
    engine.iteration_index = 2


def test_while_good_is_unreadable_no_checkpoint_is_deleted(third, copied):
    checkpoints = copied / "checkpoints"
    (checkpoints / GOOD).write_text("\x00")
    with warns("checkpoint-damaged", path=str(checkpoints / GOOD)):
        save_checkpoint(third, checkpoints, 1)
    assert [path.name for path in checkpoint_folders(checkpoints)] == [BEFORE, NEWEST, "step-000003"]
    mark_good(checkpoints, checkpoints / NEWEST)
    save_checkpoint(third, checkpoints, 1)
    assert [path.name for path in checkpoint_folders(checkpoints)] == [NEWEST, "step-000003"]


def test_an_intact_checkpoint_is_not_deleted_in_favor_of_a_damaged_one(third, copied):
    checkpoints = copied / "checkpoints"
    (checkpoints / NEWEST / "weights.safetensors").write_bytes(b"")
    save_checkpoint(third, checkpoints, 2)
    assert (checkpoints / BEFORE).is_dir()
    third.iteration_index = 4
    save_checkpoint(third, checkpoints, 2)
    assert [path.name for path in checkpoint_folders(checkpoints)] == ["step-000003", "step-000004"]


def test_fewer_iterations_than_completed_are_refused(copied):
    before = files(copied)
    path = copied / "config.yaml"
    path.write_text(path.read_text().replace("\niterations: 2\n", "\niterations: 1\n"))
    with raises("resume-settings", path=str(path), iterations=1, completed=2) as caught:
        Run.resume(copied)
    assert "2" in caught.value.hint
    assert files(copied).keys() == before.keys()


def test_a_checkpoint_that_cannot_be_loaded_is_not_named_in_the_hint(copied, monkeypatch):
    def broken(*_, **__):
        raise Tdmr1Error("the model cannot be loaded", "get another", code="model-incomplete")

    (copied / "checkpoints" / LATEST).write_bytes(b"\xff\xfe")
    monkeypatch.setattr(parts, "fetch_model", broken)
    with pytest.warns(RunWarning), raises("model-incomplete") as caught:
        execute(Run.resume(copied), quiet=True)
    assert caught.value.hint == "get another"


def test_an_error_during_a_run_names_the_checkpoint_in_latest(copied, monkeypatch):
    """If `latest` is damaged by then, no checkpoint is named."""
    pointer = copied / "checkpoints" / LATEST

    def hint_after(content: bytes) -> str:
        def broken(engine):
            pointer.write_bytes(content)
            raise Tdmr1Error("it fails", "fix it", code="reward-failed")

        monkeypatch.setattr(Engine, "iteration", broken)
        pointer.write_text(BEFORE)
        with raises("reward-failed") as caught:
            execute(Run.resume(copied), quiet=True)
        return caught.value.hint

    assert hint_after(b"../..") == "fix it"
    hint = hint_after(BEFORE.encode())
    for part in ("fix it", BEFORE, f"`tdmr1 train --resume {copied}`"):
        assert part in hint


def test_a_stop_with_a_damaged_pointer_does_not_report_that_nothing_is_saved(copied, monkeypatch):
    def stopped(engine):
        (copied / "checkpoints" / LATEST).write_text("")
        raise KeyboardInterrupt

    (copied / "checkpoints" / LATEST).write_text(BEFORE)
    monkeypatch.setattr(Engine, "iteration", stopped)
    with pytest.raises(Stopped, match=r"^stopped at once$") as caught:
        execute(Run.resume(copied), quiet=True)
    assert caught.value.hint == f"tdmr1 train --resume {copied}"


def test_sigterm_during_an_export_leaves_nothing_half_written(copied, monkeypatch, capsys):
    def terminated(*_):
        assert (copied / "export" / ".export.tmp").is_dir()
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the export continued")

    monkeypatch.setattr(export, "_compare", terminated)
    former = signal.getsignal(signal.SIGTERM)
    assert main(["export", str(copied)]) == 130
    assert capsys.readouterr().err.endswith("stopped\n")
    assert not list(copied.glob("*export*"))
    assert not list(copied.glob(".export*"))
    assert signal.getsignal(signal.SIGTERM) == former
