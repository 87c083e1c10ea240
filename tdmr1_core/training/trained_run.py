"""The run folder of a training as an object: its metrics, images, evaluations and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tdmr1_core.config import RunConfig
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.library_logs import quiet_libraries
from tdmr1_core.prompts.files import find_fault
from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.runs.checkpoints.run_config import load_run_config
from tdmr1_core.runs.jsonl import Row as LogRow
from tdmr1_core.runs.jsonl import read_lines
from tdmr1_core.runs.metrics_log import EVALUATIONS, METRICS
from tdmr1_rewards.calling import session

if TYPE_CHECKING:
    from PIL.Image import Image

    from tdmr1_core.engine import Engine
    from tdmr1_core.runs.evaluation.evaluate import Measure
    from tdmr1_core.runs.missing_inputs import Needed


class TrainedRun:
    """A run folder. `tdmr1_core.train` returns it; TrainedRun(folder) opens the folder of an earlier run.

    `rewards` are those rewards of the run that are objects of this Python program, by their names. The trained weights
    are loaded by the first call of `sample`, `evaluate` or `export`, and kept until `close`.

    Tables (`metrics`, `evaluations` and the result of `evaluate`) are pandas DataFrames if pandas is installed, and
    lists of dicts otherwise.
    """

    def __init__(self, folder: str | Path, rewards: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder).absolute()
        self._objects = dict(rewards or {})
        self._engine: Engine | None = None
        self._loaded: tuple[str | None, bool, bool] | None = None
        """The checkpoint of the engine, and whether it has the start of the run and the teacher."""

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.folder)!r}: {self.iterations} iterations)"

    @property
    def config(self) -> RunConfig:
        """The settings of the run. Raises Tdmr1Error if the folder is not a run folder."""
        return load_run_config(self.folder)

    @property
    def iterations(self) -> int:
        """The iterations that are saved; 0 before the first checkpoint."""
        from tdmr1_core.runs.checkpoints.checkpoint import iteration_of

        latest = self._latest_checkpoint()
        return 0 if latest is None else iteration_of(Path(latest))

    @property
    def finished(self) -> bool:
        """Whether all iterations of the run are done. A run that was stopped is continued by `train(resume=folder)`."""
        return self.iterations >= self.config.iterations

    @property
    def metrics(self) -> Any:
        """The metrics of each iteration as a table: `step`, `reward/mean`, `loss/generator` …"""
        return as_table(read_lines(self.folder / METRICS, dict))

    @property
    def evaluations(self) -> Any:
        """The evaluations during the run as a table: `step`, `role`, `prompts`, `n`, `<reward>/mean` …"""
        return as_table(read_lines(self.folder / EVALUATIONS, dict))

    def sample(
        self,
        prompt: str | Sequence[str],
        images: int = 4,
        *,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        role: str = "generator",
    ) -> list[Image]:
        """Sample `images` images of each prompt, in the order of the prompts. Returns PIL images.

        `role` is "generator" (the trained model), "start" (what the run started from) or "teacher"; they have the same
        initial noise for the same seed and prompt. `steps` and `guidance` are by default those of the role. Raises
        Tdmr1Error for a text that is not a prompt, numbers below 1, an unknown role, and a run without a checkpoint.
        """
        from PIL import Image

        from tdmr1_core.runs.evaluation.roles import SAMPLED, sample_role
        from tdmr1_core.runs.missing_inputs import Needed

        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        for text in texts:
            if found := find_fault(text):
                hint = "give a text with at least one visible character"
                raise _invalid(f"{text!r} is not a prompt: it is {found}", hint, prompt=str(text), found=found)
        if not texts:
            raise _invalid("there is no prompt to sample", "give at least one prompt")
        _check_counts(images=images, steps=steps)
        if role not in SAMPLED:
            raise _invalid(f"there is no role {role!r}", f"the roles are {', '.join(SAMPLED)}", role=role)
        engine = self._load(Needed(start=role == "start", teacher=role == "teacher"))
        prompts = [Prompt(text, {}) for text in texts]
        drawn = sample_role(engine, role, prompts, images, seed, steps=steps, guidance_scale=guidance)
        return [Image.fromarray(image) for image in drawn.images]

    def evaluate(
        self,
        prompts: str | Path | Sequence[str | Path] | None = None,
        *,
        images: int | None = None,
        images_per_prompt: int | None = None,
        seed: int | None = None,
        teacher: bool = True,
    ) -> Any:
        """Evaluate teacher, student (what the run started from) and trained model on the same prompts and noises.

        `prompts` are names of prompt sets or files (default: training and held-out prompts of the run). `images` is
        about the number of images of each set; like `images_per_prompt` and `seed` it is by default that of the run.
        Without `teacher`, only student and trained model are evaluated. Returns a table with the columns `prompts`,
        `role`, `steps`, `guidance`, `reward`, `mean`, `stderr` and `n`; the role `gain` is trained − student, paired
        image by image. Raises Tdmr1Error for prompts and rewards that cannot be found, and for numbers below 1.
        """
        from tdmr1_core.build.rewards import build_runner
        from tdmr1_core.plugins import discover
        from tdmr1_core.preflight.group_sizes import EvaluationSize, Names, reject_single_images
        from tdmr1_core.preflight.rewards import specs_of
        from tdmr1_core.runs.evaluation.roles import evaluate_roles, gains, prompt_sets, reward_configs
        from tdmr1_core.runs.load_run import resolve_trained
        from tdmr1_core.runs.missing_inputs import needed_by_evaluation

        _check_counts(images=images, images_per_prompt=images_per_prompt)
        given = [prompts] if isinstance(prompts, str | Path) else prompts
        names = None if given is None else [str(name) for name in given]
        with session.provide(self._objects), ExitStack() as closing:
            extensions, config = discover(), self.config
            settings = config.evaluation
            needed = needed_by_evaluation(config, extensions.plugins.rewards, None, prompts=not names)
            engine = self._load(replace(needed, teacher=teacher))
            resolved = resolve_trained(self.folder, extensions)
            rewards = resolved.finder.resolve(reward_configs(resolved))
            sets = prompt_sets(resolved, names)
            size = EvaluationSize(
                settings.images if images is None else images,
                settings.images_per_prompt if images_per_prompt is None else images_per_prompt,
            )
            reject_single_images(specs_of(rewards), sets, size, Names("images", "images_per_prompt", "the run"))
            runner = build_runner(rewards, closing, device=str(engine.roles.backbone.device))
            tables = evaluate_roles(
                engine,
                runner,
                sets,
                size,
                seed=settings.seed if seed is None else seed,
                teacher=[(engine.entry.teacher_steps, engine.entry.teacher_guidance)] if teacher else [],
            )
        rows = []
        for name, listed in tables.items():
            for row in listed:
                place = {"prompts": name, "role": row.label.partition(",")[0], "steps": row.steps}
                for reward, measure in row.evaluation.measures.items():
                    rows.append(_row({**place, "guidance": row.guidance}, reward, measure))
            for reward, measure in (gains(listed) or {}).items():
                rows.append(_row({"prompts": name, "role": "gain", "steps": None, "guidance": None}, reward, measure))
        return as_table(rows)

    def export(self, folder: str | Path | None = None, *, comfyui: bool = False) -> Path:
        """Write the trained model as a LoRA that diffusers loads, and return the file; see `tdmr1 export`.

        `folder` is by default the folder `export` of the run. With `comfyui`, a LoRA file for ComfyUI is written too.
        Raises Tdmr1Error if a file already exists, and if the LoRA does not reproduce the images of the run.
        """
        from tdmr1_core.durable_files import check_writable
        from tdmr1_core.runs.missing_inputs import Needed
        from tdmr1_core.runs.output.export import EXPORT, export_lora

        target = Path(folder) if folder is not None else self.folder / EXPORT
        check_writable(target)
        engine = self._load(Needed())
        with quiet_libraries():
            return export_lora(engine, target, comfy=comfyui).file

    def close(self) -> None:
        """Release the loaded weights. The next call that needs them loads them again."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._loaded = None

    def _load(self, needed: Needed) -> Engine:
        """The engine with the latest weights, and with what is `needed`. It is kept for the next call."""
        from tdmr1_core.plugins import discover
        from tdmr1_core.runs.load_run import load_resolved, resolve_trained
        from tdmr1_core.runs.missing_inputs import check_inputs

        latest, start, teacher = self._latest_checkpoint(), needed.start, needed.teacher
        if self._engine is not None and self._loaded is not None:
            checkpoint, has_start, has_teacher = self._loaded
            if checkpoint == latest and has_start >= start and has_teacher >= teacher:
                return self._engine
            start, teacher = start or has_start, teacher or has_teacher
        self.close()
        extensions = discover()
        check_inputs(self.folder, self.config, extensions, needed)
        resolved = resolve_trained(self.folder, extensions)
        with quiet_libraries():
            self._engine = load_resolved(self.folder, resolved, start=start, teacher=teacher)
        self._loaded = (latest, start, teacher)
        return self._engine

    def _latest_checkpoint(self) -> str | None:
        from tdmr1_core.runs.checkpoints.checkpoint import LATEST, read_pointer
        from tdmr1_core.runs.checkpoints.resume import CHECKPOINTS

        return read_pointer(self.folder / CHECKPOINTS / LATEST)


def as_table(rows: list[LogRow]) -> Any:
    """A pandas DataFrame of the rows if pandas is installed, else the rows."""
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def _row(place: dict[str, Any], reward: str, measure: Measure) -> dict[str, Any]:
    return {**place, "reward": reward, "mean": measure.mean, "stderr": measure.stderr, "n": measure.n}


def _check_counts(**counts: int | None) -> None:
    """Raise Tdmr1Error for a number that is no integer of at least 1. None stands for the default."""
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise _invalid(f"{name} is {count!r}, not an integer of at least 1", f"give {name} a number", **counts)


def _invalid(message: str, hint: str, **values: Any) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="argument-invalid", values=values)
