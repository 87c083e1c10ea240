"""One example per error code of the command line, settings and plugins."""

from __future__ import annotations

import io
import json
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from tdmr1_rewards.errors import Tdmr1Error


def _error_printed_by(action: Callable[[], int]) -> Tdmr1Error:
    """The error that the command line prints as JSON. `kind` is what it prints before the message on stderr."""
    from tdmr1_cli.error_boundary import guarded

    printed, messages = io.StringIO(), io.StringIO()
    with (
        patch.dict(os.environ, {"TDMR1_DEBUG": ""}),
        patch.object(warnings, "formatwarning"),
        redirect_stdout(printed),
        redirect_stderr(messages),
    ):
        guarded(action, as_json=True)
    document = json.loads(printed.getvalue())["error"]
    error = Tdmr1Error(document["message"], document["hint"], code=document["code"], values=document["values"])
    error.kind = messages.getvalue().partition(error.message)[0].removesuffix(": ")
    return error


def usage(tmp_path: Path) -> None:
    from tdmr1_cli.main import _run

    raise _error_printed_by(lambda: _run(["rewards", "info", "--josn"]))


def unexpected(tmp_path: Path) -> None:
    from tdmr1_rewards.calling.import_file import load_from_file

    (tmp_path / "observer.py").write_text("def observe():\n    raise ValueError('not a valid number')\n")
    raise _error_printed_by(load_from_file(tmp_path / "observer.py", "observe"))


def interrupted(tmp_path: Path) -> None:
    from tdmr1_cli.run_command import _execute

    def interrupt(observer: object) -> None:
        raise KeyboardInterrupt

    run = SimpleNamespace(folder=tmp_path / "run", processes=SimpleNamespace(first=True), execute=interrupt)

    def execute() -> int:
        _execute(run, quiet=True)
        return 0

    raise _error_printed_by(execute)


def option_conflict(tmp_path: Path) -> None:
    from tdmr1_cli.run_command import resume_run
    from tdmr1_core.preflight.layers import Flags

    resume_run(tmp_path, Flags(), output=None, dry_run=True, quiet=False)


def target_unknown(tmp_path: Path) -> None:
    from tdmr1_cli.targets import load_target
    from tdmr1_core.preflight.layers import Flags

    load_target("sd3.5-tmd", Flags(), needs_reward=False)


def wrong_kind(tmp_path: Path) -> None:
    from tdmr1_core.plugins import discover
    from tdmr1_core.preflight.layers import Flags, resolve_settings

    (tmp_path / "distill.yaml").write_text("kind: distill\n")
    resolve_settings(Flags(config=tmp_path / "distill.yaml"), "train", discover())


def process_failed(tmp_path: Path) -> None:
    from tdmr1_cli import multiprocess

    with (
        patch("torch.multiprocessing.start_processes"),
        patch.object(multiprocess, "_wait", return_value=[0, -signal.SIGKILL]),
    ):
        multiprocess.launch(2, lambda: None)


def config_unreadable(tmp_path: Path) -> None:
    from tdmr1_core.config_loading import read_file

    (tmp_path / "config.yaml").write_text("seed: 1\n  iterations: 3\n")
    read_file(tmp_path / "config.yaml")


def preset_unknown(tmp_path: Path) -> None:
    from tdmr1_core.config_loading import read_preset

    read_preset("ocrr")


def assignment_invalid(tmp_path: Path) -> None:
    from tdmr1_core.config_loading import parse_assignments

    parse_assignments(["generator.learning_rate"])


def setting_unknown(tmp_path: Path) -> None:
    from tdmr1_core.config_loading import resolve

    resolve([{"generator": {"learning_rat": 1e-4}}])


def setting_renamed(tmp_path: Path) -> None:
    from tdmr1_core.config_loading import resolve

    resolve([{"memory": {"weights": "whole"}}])


def _resolve_run(rewards: list[str], **settings: object) -> None:
    from tdmr1_core.config_loading import resolve
    from tdmr1_core.errors import warn
    from tdmr1_core.preflight.resolved import resolve_run

    for warning in resolve_run(resolve([{"rewards": [{"name": name} for name in rewards], **settings}])).warnings:
        warn(str(warning), code=warning.code, **warning.values)


def setting_ineffective(tmp_path: Path) -> None:
    _resolve_run(["object_count"], generator={"huber_c": 0.5})


def prompts_missing(tmp_path: Path) -> None:
    _resolve_run([], kind="distill")


def several_errors(tmp_path: Path) -> None:
    _resolve_run(["object_cuont", "ocr_mtach"])


def plugin_failed(tmp_path: Path) -> None:
    import pluggy

    from tdmr1_core import hookspecs
    from tdmr1_core.plugins import Hooks
    from tdmr1_rewards.hookspecs import hookimpl

    class Notifier:
        @hookimpl
        def tdmr1_after_iteration(self) -> None:
            raise OSError("the disk is full")

    manager = pluggy.PluginManager("tdmr1")
    manager.add_hookspecs(hookspecs)
    manager.register(Notifier(), "my-notifier")
    Hooks(manager).call("tdmr1_after_iteration", engine=None, report=None)


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "usage": usage,
    "unexpected": unexpected,
    "interrupted": interrupted,
    "option-conflict": option_conflict,
    "target-unknown": target_unknown,
    "wrong-kind": wrong_kind,
    "process-failed": process_failed,
    "config-unreadable": config_unreadable,
    "preset-unknown": preset_unknown,
    "assignment-invalid": assignment_invalid,
    "setting-unknown": setting_unknown,
    "setting-renamed": setting_renamed,
    "setting-ineffective": setting_ineffective,
    "prompts-missing": prompts_missing,
    "several-errors": several_errors,
    "plugin-failed": plugin_failed,
}
