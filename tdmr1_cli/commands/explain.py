"""`tdmr1 explain`: the implicit reward of a run's surrogate beside the true reward, for one group of images."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tdmr1_cli.commands.sample import check_prompt
from tdmr1_cli.options import JsonOption, LoraOption, ModelPathOption, SetOption
from tdmr1_cli.output import data, emit_json, message, number, table
from tdmr1_cli.targets import RunArgument, Target, check_run, load_target
from tdmr1_core.durable_files import check_writable
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.preflight.layers import Flags
from tdmr1_core.settings.bounds import LARGEST_NUMBER, LARGEST_SEED, MOST_IMAGES, MOST_STEPS

if TYPE_CHECKING:
    from tdmr1_core.config import RunConfig
    from tdmr1_core.plugins import Extensions
    from tdmr1_core.preflight.resolved import ResolvedEngine
    from tdmr1_core.preflight.rewards import ResolvedReward
    from tdmr1_core.prompts.prompt import Prompt
    from tdmr1_core.runs.looking.explain import Explanation
    from tdmr1_core.runs.missing_inputs import Needed


def command(
    run: RunArgument,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="The prompt of the group.")],
    images: Annotated[
        int | None,
        typer.Option(
            "--images", metavar="N", min=1, max=MOST_IMAGES, help="Images of the group (default: that of the run)."
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, max=LARGEST_SEED, help="Seed of all noise.")] = 0,
    draws: Annotated[
        int,
        typer.Option(
            "--draws", metavar="N", min=1, max=MOST_STEPS, help="Noise levels and noises of each implicit reward."
        ),
    ] = 8,
    strength: Annotated[
        float,
        typer.Option(
            "--strength", metavar="S", min=0, max=LARGEST_NUMBER, help="How far images are moved along the direction."
        ),
    ] = 4.0,
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The HTML file (default: RUN/explain.html).")
    ] = None,
    model_path: ModelPathOption = None,
    lora: LoraOption = None,
    sets: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Write an HTML page about what the surrogate of a run learned: its implicit reward of each step of a group.

    The images of `tdmr1 sample` with the same seed are shown after each step, with the true reward, the direction of
    the surrogate, and the best image against the worst. With --json the numbers are also printed as JSON.
    """
    check_run(run)
    check_prompt(prompt)
    file = output or run / "explain.html"
    check_writable(file.parent)
    flags = Flags(sets=sets or (), model_path=model_path, lora=lora)
    loaded = load_target(str(run), flags, needs_reward=True, needed=_needed)
    explanation = _explain(loaded, prompt, images, seed, draws, strength)
    from tdmr1_core.durable_files import write_results
    from tdmr1_core.runs.looking.explain_page import explain_page

    write_results({file: explain_page(explanation, run.resolve().name).encode()})
    if json:
        emit_json(_document(explanation, run, file))
    else:
        _show(explanation)
        data(str(file))


def _needed(config: RunConfig, extensions: Extensions) -> Needed:
    """The surrogate is on the backbone of the teacher, and the trained rewards score the images."""
    from tdmr1_core.runs.looking.implicit_rewards import no_surrogate
    from tdmr1_core.runs.missing_inputs import Needed, listed_trained

    if config.kind == "distill":
        raise no_surrogate()
    return Needed(teacher=True, rewards=listed_trained(config, extensions.plugins.rewards))


def _explain(loaded: Target, prompt: str, images: int | None, seed: int, draws: int, strength: float) -> Explanation:
    from tdmr1_cli.progress import Stages
    from tdmr1_core.build.rewards import build_runner
    from tdmr1_core.runs.looking.explain import explain

    engine, config = loaded.engine, loaded.engine.config
    rewards = _trained_rewards(loaded.resolved)
    with ExitStack() as closing, Stages() as stages:
        closing.callback(engine.close)
        device = str(engine.roles.backbone.device)
        scoring = config.scoring
        runner = build_runner(rewards, closing, device=device, combine=scoring.combine, workers=scoring.workers)
        return explain(
            engine,
            runner,
            _with_metadata(prompt, loaded.resolved),
            images=images or config.batch.group_size,
            seed=seed,
            draws=draws,
            strength=strength,
            progress=partial(stages, "steps"),
        )


def _trained_rewards(resolved: ResolvedEngine) -> tuple[ResolvedReward, ...]:
    """The trained rewards that score images without people. Raises Tdmr1Error if there is none."""
    found = tuple(
        reward for reward in resolved.finder.resolve(resolved.config.rewards) if reward.registered.spec.evaluates
    )
    if not found:
        names = [reward.name for reward in resolved.config.rewards]
        raise Tdmr1Error(
            f"the rewards of the run need people: {', '.join(names)}",
            "explain a run with a reward that scores images itself",
            code="reward-unknown",
            values={"rewards": names},
        )
    return found


def _with_metadata(text: str, resolved: ResolvedEngine) -> Prompt:
    """The prompt with the metadata that the prompts of the run, or a set of its model's domain, have for this text."""
    from tdmr1_core.prompts.prompt import Prompt
    from tdmr1_core.prompts.sets import PROMPT_SETS, load_prompts

    entry, named = resolved.entry, resolved.config.prompts.evaluate
    known = {prompt.text: prompt for prompt in resolved.prompts.prompts}
    for source in filter(None, (named, *PROMPT_SETS.get(entry.domain, ()))):
        if text in known:
            break
        with suppress(Tdmr1Error):
            known |= {prompt.text: prompt for prompt in load_prompts(source, entry.domain)}
    if text not in known:
        message("the prompt is not among those of the run: rewards get its text and no metadata")
    return known.get(text, Prompt(text, {}))


def _show(explanation: Explanation) -> None:
    best, worst = explanation.order[0], explanation.order[-1]
    rows = []
    for step in explanation.steps:
        high, low = step.levels
        shown = [number(step.against_final), number(step.against_own)]
        pair = [f"{step.implicit[image]:+.2g}" for image in (best, worst)]
        rows.append([str(step.number), f"{high:.3g} → {low:.3g}", *shown, *pair])
    columns = ["step", "noise level", "with final reward", "with own reward", "implicit, best", "implicit, worst"]
    count = len(explanation.steps[-1].total)
    table(columns, rows, title=f"rank correlation of implicit and true reward, {count} images")


def _document(explanation: Explanation, run: Path, file: Path) -> dict[str, Any]:
    return {
        "run": str(run),
        "page": str(file),
        "prompt": explanation.prompt.text,
        "seed": explanation.seed,
        "draws": explanation.draws,
        "iteration": explanation.iteration,
        "order": explanation.order,
        "steps": [
            {
                "step": step.number,
                "levels": step.levels,
                "implicit": step.implicit.tolist(),
                "stderr": step.error.tolist(),
                "reward": step.total,
                "rewards": dict(step.rewards),
                "rank_correlation_final": step.against_final,
                "rank_correlation_own": step.against_own,
            }
            for step in explanation.steps
        ],
    }
