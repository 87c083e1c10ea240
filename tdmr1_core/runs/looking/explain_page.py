"""An explanation as one HTML page without external files and without scripts."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from tdmr1_core.runs.looking.explain import ExplainedStep, Explanation
from tdmr1_core.runs.looking.heat_map import SMALL_SIDE, data_url, heat_map
from tdmr1_core.runs.looking.scatter_chart import scatter_chart
from tdmr1_rewards.errors import printable
from tdmr1_rewards.texts.redaction import redact

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Browsers load nothing from outside the page."""
STRONGEST = 0.99
"""This quantile of the lengths of the direction in a step gets the full color."""
STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1f23; --quiet: #565d66; --line: #d4d8dd; --card: #f5f6f8;
  --point: #1b6ca8 }
@media (prefers-color-scheme: dark) { :root { --back: #15181c; --text: #e8eaed; --quiet: #a9b1bb; --line: #3a414a;
  --card: #1e2329; --point: #6cb6f0 } }
* { box-sizing: border-box }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  color: var(--text); background: var(--back); overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem } p { max-width: 48rem; margin: .4rem 0 } .quiet { color: var(--quiet) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 1px solid var(--line); vertical-align: bottom; white-space: normal; max-width: 8rem;
  overflow-wrap: normal }
caption { text-align: left; padding-bottom: .3rem } .wide { margin: .8rem 0 }
.strip { display: flex; flex-wrap: wrap; gap: .8rem; margin: 0; padding: 0; list-style: none }
figure { margin: 0 } .strip li { width: 12rem }
figure img { display: block; width: 100%; height: auto; border-radius: 4px }
figcaption { font-size: .85rem; line-height: 1.35; padding-top: .25rem; font-variant-numeric: tabular-nums }
.pixels img { image-rendering: pixelated }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .charts figure { width: 15rem; max-width: 100% }
svg { display: block; width: 100%; height: auto; background: var(--card); border-radius: 4px }
svg text { fill: var(--text) }
svg .axis { stroke: var(--line) } svg .point { fill: var(--point) }
.card { background: var(--card); border-radius: 6px; padding: .8rem 1rem; margin: .8rem 0 }
.choice { display: inline-flex; gap: .5rem; align-items: center; padding: .4rem 0 }
.choice input { width: 1.2rem; height: 1.2rem }
.map { display: none } body:has(#maps:checked) .all .map { display: block }
body:has(#maps:checked) .all .plain { display: none }
.swatch { display: inline-block; width: 6rem; height: .8rem; border-radius: 3px; vertical-align: middle;
  background: linear-gradient(90deg, #777, rgb(200, 30, 90), rgb(255, 235, 120)) }
@media (max-width: 30rem) { body { font-size: 15px } .strip li { width: calc(50% - .4rem) }
  .charts figure { width: calc(50% - .5rem) } }
@media print { body { max-width: none; padding: 0 } .choice { display: none } figure, .card { break-inside: avoid } }
"""


def explain_page(explanation: Explanation, run: str) -> str:
    """The explanation of a group of the run with the name `run`, as HTML."""
    prompt = redact(explanation.prompt.text)
    title = f"What the surrogate rewards: {prompt}"
    first = explanation.steps[0].view.images
    pixels = ' class="pixels"' if first.shape[2] <= SMALL_SIDE else ""
    parts = [
        f"<h1>What the surrogate rewards: “{_text(prompt)}”</h1>",
        _facts(explanation, run),
        "<h2>Does the surrogate agree with the reward?</h2>",
        _agreement(explanation),
        "<h2>Best and worst image</h2>",
        _best_and_worst(explanation),
        "<h2>All images, best first</h2>",
        _all_images(explanation),
        "<h2>How this was computed</h2>",
        _method(explanation),
    ]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{_text(title)}</title><style>{STYLE}</style>"
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body{pixels}><main>\n{body}\n</main></body></html>\n'
    )


def _facts(explanation: Explanation, run: str) -> str:
    last = explanation.steps[-1]
    rewards = ", ".join(last.rewards)
    facts = f"Run {run}, model {explanation.model}, after {explanation.iteration} iterations. True reward: {rewards}. "
    facts += f"{len(last.total)} images from seed {explanation.seed}, in {len(explanation.steps)} steps."
    return f'<p class="quiet">{_text(facts)}</p>'


def _agreement(explanation: Explanation) -> str:
    rows = []
    for step in explanation.steps:
        high, low = step.levels
        cells = [f"{step.number}", f"{high:.3g} → {low:.3g}", _number(step.against_final), _number(step.against_own)]
        rows.append("<tr><td>" + "</td><td>".join(cells) + f"</td><td>{_mean(step.total)}</td></tr>")
    names = ("step", "noise level", "with the final reward", "with the step’s reward", "mean reward of the step")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    count = len(explanation.steps[-1].total)
    meaning = (
        f"The rank correlation is between the implicit reward of the surrogate and the true reward, over the images "
        f"of this group (n = {count}). 1 means the same order, 0 no relation, -1 the opposite order, and – that all "
        "values are equal or too few are known. One small group says little: compare several prompts and seeds."
    )
    if explanation.boundary == "last":
        meaning += (
            " This run trained its surrogate after the last step only; the earlier steps show how far that carries."
        )
    if all(score is None for score in explanation.steps[-1].total):
        reason = explanation.unscored or "no reason is known"
        return f'<p class="card">No reward scored the final images: {_text(redact(reason))}</p>'
    charts = "".join(
        f"<figure>{scatter_chart(step.implicit, explanation.steps[-1].total, f'step {step.number}')}"
        f"<figcaption>Step {step.number}: implicit reward (to the right), final true reward (up)</figcaption></figure>"
        for step in explanation.steps
    )
    caption = "<caption>Rank correlation of implicit and true reward</caption>"
    table = f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    scrolled = f'<div class="wide" tabindex="0" role="region" aria-label="Rank correlations by step">{table}</div>'
    return f'<p>{_text(meaning)}</p>{scrolled}<div class="charts">{charts}</div>'


def _best_and_worst(explanation: Explanation) -> str:
    order = explanation.order
    chosen = [("Best", order[0]), ("Worst", order[-1])] if len(order) > 1 else [("Only", order[0])]
    legend = (
        "The first row shows the clean image that each step predicts. The second row shows where the direction of "
        'the surrogate points, from weak (gray) to strong (yellow): <span class="swatch" role="img" '
        'aria-label="gray, red, yellow"></span> with one scale for all images of a step. The third row shows the '
        f"image moved along that direction, {explanation.strength:g} times its length. The reward term moves the "
        "generator this way, with the guidance of the surrogate added."
    )
    parts = [f"<p>{legend}</p>"]
    for name, image in chosen:
        parts.append(f'<div class="card"><h3>{name} image: final reward {_score(explanation.steps[-1], image)}</h3>')
        parts.append(_strip([_figure(step, image, "image", caption=True) for step in explanation.steps]))
        parts.append("<h3>Where the surrogate points</h3>")
        parts.append(_strip([_figure(step, image, "map") for step in explanation.steps]))
        parts.append("<h3>Moved along the direction</h3>")
        parts.append(_strip([_figure(step, image, "target") for step in explanation.steps]) + "</div>")
    return "".join(parts)


def _all_images(explanation: Explanation) -> str:
    toggle = '<label class="choice"><input type="checkbox" id="maps"> Show where the surrogate points</label>'
    rows = []
    for place, image in enumerate(explanation.order, 1):
        figures = [_figure(step, image, "both", caption=True) for step in explanation.steps]
        score = _score(explanation.steps[-1], image)
        rows.append(f"<h3>{place}. Image {image}: final reward {score}</h3>{_strip(figures)}")
    return f'{toggle}<div class="all">{"".join(rows)}</div>'


def _strip(figures: Sequence[str]) -> str:
    return '<ul class="strip">' + "".join(f"<li>{figure}</li>" for figure in figures) + "</ul>"


def _figure(step: ExplainedStep, image: int, kind: str, *, caption: bool = False) -> str:
    """An image of a step with its numbers: the `image`, the `map`, the `target`, or image and map in one place."""
    words = {"image": "predicted image", "map": "where the surrogate points", "target": "moved along the direction"}
    shown = [(each, "") for each in ("image", "map", "target") if each == kind]
    if kind == "both":
        shown = [("image", "plain"), ("map", "map")]
    tags = "".join(
        f'<img class="{css}" src="{data_url(_pixels(step, image, each))}" '
        f'alt="Image {image}, step {step.number}: {words[each]}">'
        for each, css in shown
    )
    lines = f"Step {step.number}"
    if caption:
        error = step.error[image]
        spread = f" ± {error:.2g}" if math.isfinite(error) else ""
        lines += f"<br>implicit {step.implicit[image]:+.2g}{spread}<br>reward {_score(step, image)}"
    return f"<figure>{tags}<figcaption>{lines}</figcaption></figure>"


def _pixels(step: ExplainedStep, image: int, kind: str) -> np.ndarray:
    view = step.view
    if kind == "target":
        return view.targets[image]
    if kind == "image":
        return view.images[image]
    return heat_map(view.images[image], view.direction[image], float(np.quantile(view.direction, STRONGEST)))


def _method(explanation: Explanation) -> str:
    reference = "frozen base model" if explanation.reference == "frozen" else "moving average of the surrogate"
    boundary = "last step only" if explanation.boundary == "last" else "all steps, later ones more often"
    lines = [
        "The image of step k is the clean latent that the averaged generator predicts there, decoded. The last one is "
        "the final image.",
        "The implicit reward after step k is β (ℓ_ref − ℓ), relative to the mean of the group. ℓ is the mean squared "
        "error of the surrogate’s velocity at the re-noised latent after the step, ℓ_ref that of the reference "
        "(TDM-R1, arXiv 2603.07700, Eq. 7–9). Noise level and noise are drawn as in training and shared by the "
        f"group; the value is the mean of {explanation.draws} draws ± its standard error.",
        f"The reference is the {reference}. The surrogate was trained after: {boundary}.",
        "The direction is the clean latent of the surrogate minus that of the reference, both without guidance, "
        "averaged over the draws. The map shows its length over the channels.",
    ]
    return "".join(f"<p>{_text(line)}</p>" for line in lines)


def _score(step: ExplainedStep, image: int) -> str:
    """The combined reward of an image, and the single rewards if there are several."""
    total = _value(step.total[image])
    if len(step.rewards) < 2:
        return total
    parts = ", ".join(f"{_text(name)} {_value(scores[image])}" for name, scores in step.rewards.items())
    return f"{total} ({parts})"


def _value(score: float | None) -> str:
    return "–" if score is None else f"{score:.3g}"


def _mean(scores: Sequence[float | None]) -> str:
    known = [score for score in scores if score is not None]
    return _value(sum(known) / len(known) if known else None)


def _number(value: float) -> str:
    return f"{value:+.2f}" if math.isfinite(value) else "–"


def _text(text: str) -> str:
    """A text as HTML, without control characters."""
    return html.escape(printable(text, lines=True))
