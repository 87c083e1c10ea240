"""Samples and evaluates the roles of a loaded run: the teacher, the model that the run started from, the trained model.

All of them use the same prompts and the same noises, so that images can be compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tdmr1_core.config import RewardConfig
from tdmr1_core.engine import Engine
from tdmr1_core.models.roles import GENERATOR_EMA, TEACHER
from tdmr1_core.preflight.group_sizes import EvaluationSize
from tdmr1_core.preflight.resolved import ResolvedEngine, evaluation_prompts_name, training_prompts_name
from tdmr1_core.prompts.sets import PromptSet, load_prompt_set
from tdmr1_core.records import Prompt
from tdmr1_core.runs.evaluation.evaluate import (
    Evaluation,
    EvaluationImages,
    Measure,
    evaluate,
    paired_gain,
    sample_images,
)
from tdmr1_rewards.scoring.runner import RewardRunner

SAMPLED = ("generator", "teacher", "start")
"""The roles that `sample_role` knows; `start` are the weights that the run started from."""
STUDENT, TRAINED = "student", "trained"


@dataclass(frozen=True)
class Row:
    """The evaluation of one role on one prompt set; `label` names it in a table."""

    label: str
    steps: int
    guidance: float
    evaluation: Evaluation


def sample_role(
    engine: Engine,
    role: str,
    prompts: Sequence[Prompt],
    images: int,
    seed: int,
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
) -> EvaluationImages:
    """Sample `images` images of every prompt with a role of `SAMPLED`."""
    name = TEACHER if role == "teacher" else GENERATOR_EMA
    with start_weights(engine, role == "start"):
        return sample_images(engine, name, prompts, images, seed, steps=steps, guidance_scale=guidance_scale)


@contextmanager
def start_weights(engine: Engine, used: bool = True) -> Iterator[None]:
    """Within the context, the averaged generator has the weights that the run started from, if they are `used`."""
    if not used:
        yield
        return
    trained = engine.roles.weights(GENERATOR_EMA)
    engine.roles.load(GENERATOR_EMA, engine.start, "the start of the run")
    try:
        yield
    finally:
        engine.roles.load(GENERATOR_EMA, trained, "the run")


def prompt_sets(resolved: ResolvedEngine, names: Sequence[str] | None) -> list[PromptSet]:
    """The prompt sets of these names, else those of the run's own evaluations: training and held-out prompts."""
    config, entry = resolved.config, resolved.entry
    if not names:
        first = resolved.finder.resolve(config.rewards[:1])
        training = training_prompts_name(config, entry, first)
        names = [training, evaluation_prompts_name(config, entry, training)]
    return [load_prompt_set(name, entry.domain) for name in dict.fromkeys(names)]


def reward_configs(resolved: ResolvedEngine) -> list[RewardConfig]:
    """The rewards that score the evaluations of a run, else the default reward of the model; empty if there are none.

    A reward that asks people scores no evaluation. If no other is configured, the held-out rewards of the guard do.
    """
    config, default = resolved.config, resolved.entry.default_reward
    found = list(resolved.finder.evaluation_rewards(config))
    if config.rewards and not found:
        found = list(resolved.finder.held_out_rewards(config, resolved.entry.domain))
    if not (config.evaluation.rewards or config.rewards) and default is not None:
        found = [RewardConfig(name=default)]
    return found


def evaluate_roles(
    engine: Engine,
    runner: RewardRunner,
    sets: Sequence[PromptSet],
    size: EvaluationSize,
    *,
    seed: int,
    teacher: Sequence[tuple[int, float]],
    trained: bool = True,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, list[Row]]:
    """Evaluate the roles on every prompt set: the teacher, the student that the run started from, the trained model.

    `teacher` are its steps and guidance scales. `trained` is False for a model that is not a run. `progress` is called
    with what is evaluated, and the numbers of finished images and of all images.
    """
    tables: dict[str, list[Row]] = {each.name: [] for each in sets}

    def evaluate_role(label: str, role: str, steps: int, guidance: float) -> None:
        for each in sets:

            def report(done: int, total: int, what: str = f"{label} on {each.name}") -> None:
                progress(what, done, total)

            result = evaluate(
                engine,
                runner,
                role,
                each.name,
                each.prompts,
                images=size.images,
                images_per_prompt=size.per_prompt,
                seed=seed,
                steps=steps,
                guidance_scale=guidance,
                progress=report,
            )
            tables[each.name].append(Row(label, steps, guidance, result))

    for steps, guidance in teacher:
        evaluate_role(f"teacher, guidance {guidance:g}", TEACHER, steps, guidance)
    with start_weights(engine):
        evaluate_role(STUDENT, GENERATOR_EMA, engine.steps, 1.0)
    if trained:
        evaluate_role(TRAINED, GENERATOR_EMA, engine.steps, 1.0)
    return tables


def gains(rows: Sequence[Row]) -> dict[str, Measure] | None:
    """The paired gain of the trained model over the student for each reward; None without a trained model."""
    found = {row.label: row.evaluation for row in rows}
    if TRAINED not in found:
        return None
    after, before = found[TRAINED], found[STUDENT]
    return {name: paired_gain(after, before, name) for name in before.measures}
