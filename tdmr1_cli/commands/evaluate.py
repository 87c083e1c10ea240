"""`tdmr1 evaluate`: teacher, student and trained model on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.options import JsonOption, LoraOption, ModelPathOption, RewardOption, SetOption
from tdmr1_cli.output import emit_json, measure_document, message, plus_minus, signed, table
from tdmr1_cli.targets import Target, TargetArgument, find_target
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.layers import Flags, TypedReward, parse_reward
from tdmr1_core.settings.bounds import LARGEST_NUMBER, LARGEST_SEED, MOST_IMAGES, MOST_STEPS

if TYPE_CHECKING:
    from tdmr1_core.config import RewardConfig, RunConfig
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.group_sizes import EvaluationSize
    from tdmr1_core.preflight.resolved import ResolvedEngine
    from tdmr1_core.preflight.rewards import ResolvedReward
    from tdmr1_core.prompts.sets import PromptSet
    from tdmr1_core.runs.evaluation.roles import Row
    from tdmr1_core.runs.missing_inputs import Needed
    from tdmr1_rewards.api import RewardSpec


def command(
    target: TargetArgument,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "--prompts",
            metavar="SET|FILE",
            help="Prompt set or file (default: training and held-out); may be repeated.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images", metavar="N", min=1, max=MOST_IMAGES, help="Images for each prompt set (approximately)."
        ),
    ] = None,
    images_per_prompt: Annotated[
        int | None,
        typer.Option(
            "--images-per-prompt",
            metavar="N",
            min=1,
            max=MOST_IMAGES,
            help="Images of each prompt; 2 or more for rewards that compare images of a prompt.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of the initial noise.")
    ] = None,
    reward: RewardOption = None,
    teacher_steps: Annotated[
        int | None,
        typer.Option("--teacher-steps", metavar="N", min=1, max=MOST_STEPS, help="Sampling steps of the teacher."),
    ] = None,
    teacher_guidance: Annotated[
        list[float] | None,
        typer.Option(
            "--teacher-guidance",
            metavar="G",
            min=1,
            max=LARGEST_NUMBER,
            help="Guidance scale of the teacher; may be repeated.",
        ),
    ] = None,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the teacher, the few-step student that a run started from, and the trained model.

    All use the same prompts and the same noise, so that the gain is paired image by image. For a model that is not a
    run, only teacher and student are compared.
    """
    from tdmr1_core.preflight.group_sizes import EvaluationSize
    from tdmr1_core.preflight.rewards import specs_of
    from tdmr1_core.runs.evaluation.roles import prompt_sets

    typed = [parse_reward(text) for text in reward or ()]
    flags = Flags(
        rewards=reward or (),
        prompts=prompts[0] if prompts else None,
        sets=sets or (),
        model_path=model_path,
        lora=lora,
    )
    found = find_target(target, flags, needs_reward=True, needed=partial(_needed, typed, bool(prompts)))
    settings = found.resolved.config.evaluation
    size = EvaluationSize(images or settings.images, images_per_prompt or settings.images_per_prompt)
    rewards = found.resolved.finder.resolve(_reward_configs(found.resolved, typed))
    evaluated = prompt_sets(found.resolved, prompts)
    _check_groups(specs_of(rewards), evaluated, size)
    loaded = found.load()
    engine = loaded.engine
    tables = _measure(
        loaded,
        rewards,
        evaluated,
        size,
        seed=settings.seed if seed is None else seed,
        teacher=[
            (teacher_steps or engine.entry.teacher_steps, each)
            for each in teacher_guidance or [engine.entry.teacher_guidance]
        ],
    )
    engine.close()
    if json:
        emit_json(_document(target, loaded, tables))
    else:
        for name, rows in tables.items():
            _show(name, rows)


def _needed(typed: Sequence[TypedReward], prompts: bool, config: RunConfig, extensions: Extensions) -> Needed:
    """What an evaluation of a run with the rewards of --reward, and with or without --prompts, needs."""
    from tdmr1_core.runs.missing_inputs import needed_by_evaluation

    named = {reward.name for reward in typed if reward.source is None} if typed else None
    return needed_by_evaluation(config, extensions.plugins.rewards, named, prompts=not prompts)


def _reward_configs(resolved: ResolvedEngine, typed: Sequence[TypedReward]) -> list[RewardConfig]:
    """The rewards of --reward with the options of the config, else those that score the evaluations of the run."""
    from tdmr1_core.config import RewardConfig
    from tdmr1_core.runs.evaluation.roles import reward_configs

    config = resolved.config
    if typed:
        configured = config.evaluation.rewards or config.rewards
        known = {reward.name: reward.model_dump() for reward in (*config.rewards, *configured)}
        return [
            RewardConfig.model_validate({**known.get(name, {}), **reward.tree})
            for name, reward in {reward.name: reward for reward in typed}.items()
        ]
    found = reward_configs(resolved)
    if config.rewards and not resolved.finder.evaluation_rewards(config):
        asking = ", ".join(reward.name for reward in config.rewards)
        message(f"{asking}: scored by people only; the images are scored by {', '.join(r.name for r in found) or '–'}")
    if not found:
        raise Tdmr1Error("no reward to evaluate with", "name one with --reward", code="reward-unknown")
    return found


def _check_groups(specs: Mapping[str, RewardSpec], prompt_sets: Sequence[PromptSet], size: EvaluationSize) -> None:
    """Raise Tdmr1Error if a reward compares the images of a prompt, but there is one image of each."""
    from tdmr1_core.preflight.group_sizes import Names, reject_single_images

    options = Names(images="--images", per_prompt="--images-per-prompt", rewards="--reward")
    reject_single_images(specs, prompt_sets, size, options)


def _measure(
    loaded: Target,
    rewards: Sequence[ResolvedReward],
    sets: Sequence[PromptSet],
    size: EvaluationSize,
    *,
    seed: int,
    teacher: Sequence[tuple[int, float]],
) -> dict[str, list[Row]]:
    """Evaluate every role on every prompt set."""
    from tdmr1_cli.progress import Stages
    from tdmr1_core.build.rewards import build_runner
    from tdmr1_core.runs.evaluation.roles import evaluate_roles

    engine = loaded.engine
    with ExitStack() as closing, Stages() as stages:
        runner = build_runner(rewards, closing, device=str(engine.roles.backbone.device))
        _check_groups(runner.set_up_served(), sets, size)
        return evaluate_roles(
            engine, runner, sets, size, seed=seed, teacher=teacher, trained=loaded.is_run, progress=stages
        )


def _show(source: str, rows: Sequence[Row]) -> None:
    from tdmr1_core.runs.evaluation.roles import gains

    rewards = list(rows[0].evaluation.measures)
    lines = []
    for row in rows:
        measures = row.evaluation.measures
        cells = [cell for name in rewards for cell in (plus_minus(measures[name]), str(measures[name].n))]
        lines.append([row.label, str(row.steps), *cells])
    if gained := gains(rows):
        cells = [cell for value in gained.values() for cell in (signed(value), str(value.n))]
        lines.append(["trained − student", "", *cells])
    columns = ["", "steps", *(column for name in rewards for column in (name, "n"))]
    table(columns, lines, title=f"{source}: mean ± standard error")


def _document(target: str, loaded: Target, tables: dict[str, list[Row]]) -> dict[str, Any]:
    from tdmr1_core.runs.evaluation.roles import gains

    sets = []
    for source, rows in tables.items():
        gained = gains(rows)
        listed = [
            {
                "role": row.label.partition(",")[0],
                "steps": row.steps,
                "guidance": row.guidance,
                "rewards": {name: measure_document(value) for name, value in row.evaluation.measures.items()},
            }
            for row in rows
        ]
        gain = {name: measure_document(value) for name, value in gained.items()} if gained else None
        sets.append({"prompts": source, "rows": listed, "gain": gain})
    iteration = loaded.engine.iteration_index if loaded.is_run else None
    return {"target": target, "model": loaded.engine.entry.name, "iteration": iteration, "prompt_sets": sets}
