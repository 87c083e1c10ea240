"""One class for each tracker: how a run is opened and continued in it through accelerate, and how it gets images.

Nothing but what `docs/tracking.md` lists is sent: the trackers' own collection of code, console output, command lines,
environment and git data is off, because all of these can hold secrets.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdmr1_core.runs.tracking.state import TRACKING, TrackedRun
from tdmr1_rewards.calling.image_files import read_image

ITERATION = "iteration"
"""The metric of W&B that is the x axis of all others: W&B's own step cannot go back to add an evaluation."""
LONGEST_NAME = 250
LONGEST_TAG = 64


@dataclass(frozen=True)
class RunFacts:
    """What trackers get when a run is opened: its folder, project, tags and settings by dotted name."""

    folder: Path
    project: str
    tags: Sequence[str]
    config: Mapping[str, bool | float | str | None]

    @property
    def local_folder(self) -> Path:
        """Where trackers write their own files."""
        return self.folder / TRACKING


class Adapter:
    """One run in one tracker. Its methods are called from one thread, and raise what the tracker raises."""

    accelerate_name = ""
    can_change_config = True
    """Whether the settings can be sent again when the run is resumed."""

    def __init__(self, run: TrackedRun, facts: RunFacts) -> None:
        self.run, self.facts = run, facts
        self.tracker: Any = None

    @property
    def project(self) -> str:
        """The first argument of accelerate's tracker."""
        return self.facts.project

    def open(self) -> None:
        """Start the tracked run, or continue it, and send the settings."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        self.tracker = LOGGER_TYPE_TO_CLASS[self.accelerate_name](self.project, **self.options())
        self.tracker.start()
        with suppress(Exception):  # SwanLab raises where there is none
            self.run.url = self.tracker.tracker.url or self.run.url
        self.opened()
        if self.can_change_config or not self.run.started:
            self.send_config()

    def options(self) -> dict[str, Any]:
        """The arguments of accelerate's tracker."""
        raise NotImplementedError

    def opened(self) -> None:
        """Called after the tracked run was started."""

    def send_config(self) -> None:
        """Send the settings of the run."""
        self.tracker.store_init_configuration(dict(self.facts.config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers of an iteration."""
        self.tracker.log(dict(values), step=step)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        raise NotImplementedError

    def finish(self) -> None:
        """Send what is left, and end the session of the tracked run."""
        self.tracker.finish()


class TensorBoard(Adapter):
    """Event files in the run folder."""

    accelerate_name = "tensorboard"
    can_change_config = False

    def options(self) -> dict[str, Any]:
        """Event files in the folder `tensorboard` of the run."""
        # What the default of `tracking` wrote before is sent again, so it is purged.
        purge = {} if self.run.started else {"purge_step": 0}
        return {"logging_dir": str(self.facts.folder), **purge}

    @property
    def project(self) -> str:
        """The name of the folder."""
        return "tensorboard"

    def send_config(self) -> None:
        """Write the settings and tags as texts."""
        lines = [f"    {name}: {value}" for name, value in self.facts.config.items()]
        self.tracker.log({"config": "\n".join(lines), "tags": ", ".join(self.facts.tags)}, step=0)

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        import numpy as np

        image = np.asarray(read_image(path))
        self.tracker.log_images({name: image[None]}, step=step, dataformats="NHWC")


class WeightsAndBiases(Adapter):
    """Weights & Biases, online or offline (`WANDB_MODE=offline`)."""

    accelerate_name = "wandb"

    def options(self) -> dict[str, Any]:
        """A run with a fixed id, whose files are in the run folder."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            symlink=False,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            x_stats_pid=os.getppid(),
        )
        return {
            "id": self.run.id,
            "name": self.run.name,
            "tags": list(self.facts.tags),
            "resume": "allow",
            "dir": str(self.facts.local_folder),
            "settings": settings,
        }

    def opened(self) -> None:
        """Make the iteration the x axis."""
        self._remove_links()
        self.tracker.tracker.define_metric(ITERATION)
        self.tracker.tracker.define_metric("*", step_metric=ITERATION)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers of an iteration."""
        self.tracker.log({**values, ITERATION: step})

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        import wandb

        self.tracker.log({name: wandb.Image(str(path)), ITERATION: step})

    def finish(self) -> None:
        """End the session."""
        super().finish()
        self._remove_links()

    def _remove_links(self) -> None:
        """Remove the link to a log in W&B's cache: a run folder with links to the outside is not resumed."""
        for path in self.facts.local_folder.glob("wandb/*/logs/*"):
            if path.is_symlink():
                path.unlink(missing_ok=True)


class Trackio(Adapter):
    """Trackio: a local database, a server or a Space (`TRACKIO_SPACE_ID`)."""

    accelerate_name = "trackio"

    def options(self) -> dict[str, Any]:
        """A run with a fixed name. Only metrics of the run are sent."""
        hardware = {"auto_log_cpu": False, "auto_log_gpu": False}
        return {"name": self.run.name, "resume": "allow", "embed": False, **hardware}

    def send_config(self) -> None:
        """Send the settings, with the tags, which trackio does not have."""
        self.tracker.store_init_configuration({**self.facts.config, "tags": ", ".join(self.facts.tags)})

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        import trackio

        self.tracker.log({name: trackio.Image(str(path))}, step=step)


class SwanLab(Adapter):
    """SwanLab, online or local (`SWANLAB_MODE=local`)."""

    accelerate_name = "swanlab"

    def options(self) -> dict[str, Any]:
        """An experiment with a fixed id, whose files are in the run folder."""
        import swanlab

        off = dict.fromkeys(("hardware", "runtime", "requirements", "conda", "git", "monitor"), False)
        folder = self.facts.local_folder / "swanlog"
        folder.mkdir(parents=True, exist_ok=True)
        return {
            "id": self.run.id,
            "name": self.run.name,
            "tags": list(self.facts.tags),
            "resume": "allow",
            "log_dir": str(folder),
            "settings": swanlab.Settings(interactive=False, probe=off, terminal={"proxy_type": "none"}),
        }

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        import swanlab

        self.tracker.log({name: swanlab.Image(str(path))}, step=step)


class MLflow(Adapter):
    """MLflow, in the store of `MLFLOW_TRACKING_URI`. A parameter of a run cannot change."""

    accelerate_name = "mlflow"
    can_change_config = False

    def options(self) -> dict[str, Any]:
        """A new run, whose id MLflow chooses, or the former one."""
        continued = {"run_id": self.run.id} if self.run.started else {"run_name": self.run.name}
        return {"tags": dict.fromkeys(self.facts.tags, "true"), **continued}

    def opened(self) -> None:
        """Keep the id."""
        self.run.id = self.tracker.tracker.info.run_id

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        import mlflow

        mlflow.log_image(read_image(path), key=name, step=step, synchronous=True)


class Comet(Adapter):
    """Comet, online or offline (`COMET_START_ONLINE=0`)."""

    accelerate_name = "comet_ml"

    def options(self) -> dict[str, Any]:
        """An experiment with a fixed key."""
        import comet_ml

        off = ["log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch", "log_env_details"]
        off += ["auto_output_logging", "auto_param_logging", "auto_metric_logging", "auto_log_co2"]
        settings = comet_ml.ExperimentConfig(
            name=self.run.name,
            tags=list(self.facts.tags),
            display_summary_level=0,
            offline_directory=str(self.facts.local_folder / "comet"),
            **dict.fromkeys(off, False),
        )
        mode = "get" if self.run.started else "get_or_create"
        return {"experiment_key": self.run.id, "mode": mode, "experiment_config": settings}

    def log_image(self, name: str, path: Path, step: int) -> None:
        """Send an image file."""
        self.tracker.tracker.log_image(str(path), name=name, step=step)


ADAPTERS: dict[str, type[Adapter]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "swanlab": SwanLab,
    "mlflow": MLflow,
    "comet": Comet,
}


def accepted_name(name: str, longest: int = LONGEST_NAME) -> str:
    """A metric or tag that every tracker accepts: ASCII letters, digits, spaces and `_ - . /`, without empty parts."""
    parts = re.sub(r"[^A-Za-z0-9_\-. /]", "_", name).split("/")
    kept = [part.strip(". ") for part in parts]
    return "/".join(part for part in kept if part)[:longest] or "_"
