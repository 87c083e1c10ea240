"""Random draws of an iteration: sharing, distinctness, probabilities and ranges."""

from __future__ import annotations

import pytest
import torch

from tdmr1_core.algorithm import seeds
from tdmr1_core.config import Sharing
from tdmr1_core.records import Conditioning, Groups, Prompt, Trajectory
from tdmr1_core.stages.draws import (
    draw_boundaries,
    draw_levels,
    draw_steps,
    latents_at,
    next_groups,
    noise_for,
    sharing_ids,
    upcoming_texts,
)

pytestmark = pytest.mark.unit


def make_groups(groups: int = 2, size: int = 3, iteration: int = 0) -> Groups:
    """Groups of one prompt each."""
    return Groups(iteration, tuple(Prompt(str(i), {}) for i in range(groups)), size)


def test_groups_are_laid_out_one_after_another() -> None:
    groups = make_groups()
    assert (len(groups), groups.images) == (2, 6)
    assert groups.group_of_image == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("sharing", "expected"), [("step", [0] * 6), ("group", [0, 0, 0, 1, 1, 1]), ("sample", [0, 1, 2, 3, 4, 5])]
)
def test_sharing_ids(sharing: Sharing, expected: list[int]) -> None:
    assert sharing_ids(make_groups(), sharing) == expected


@pytest.mark.parametrize(
    ("sharing", "expected"),
    [(1, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]), (2, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]), (4, [0] * 8 + [1] * 2), (9, [0] * 10)],
)
def test_a_number_of_groups_shares_a_draw(sharing: int, expected: list[int]) -> None:
    assert sharing_ids(make_groups(5, 2), sharing) == expected


@pytest.mark.parametrize("sharing", ["step", "group", "sample"])
def test_steps_are_distinct_and_shared(sharing: Sharing) -> None:
    groups = make_groups(5, 4)
    steps = draw_steps(0, groups, 4, 3, sharing)
    assert steps.shape == (3, 20)
    assert steps.dtype == torch.int64
    assert all(len(set(column.tolist())) == 3 for column in steps.T)
    assert (int(steps.min()), int(steps.max())) == (0, 3) or sharing == "step"
    ids = sharing_ids(groups, sharing)
    for image in range(20):
        assert torch.equal(steps[:, image], steps[:, ids.index(ids[image])])
    different = {tuple(column.tolist()) for column in steps.T}
    assert len(different) == 1 if sharing == "step" else 1 < len(different) <= len(set(ids))
    assert sorted(draw_steps(0, groups, 4, 4, sharing)[:, 0].tolist()) == [0, 1, 2, 3]


def test_steps_are_uniform_and_change_with_seed_and_iteration() -> None:
    steps = draw_steps(0, make_groups(1, 4000), 4, 2, "sample")
    for row in steps:
        counts = torch.bincount(row, minlength=4).double()
        assert ((counts - 1000) ** 2 / 1000).sum().item() < 16.3  # chi-squared, 3 degrees, p = 0.001
    few = make_groups(1, 40)
    first = draw_steps(0, few, 4, 2, "sample")
    assert torch.equal(first, steps[:, :40])
    assert not torch.equal(first, draw_steps(1, few, 4, 2, "sample"))
    assert not torch.equal(first, draw_steps(0, make_groups(1, 40, iteration=1), 4, 2, "sample"))


def test_boundary_probabilities() -> None:
    """Of K = 4: 0.1, 0.2, 0.3, 0.4."""
    drawn = draw_boundaries(0, make_groups(1, 4000), 4, (0, 0), "sample", True)
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn, minlength=4).double()
    assert len(counts) == 4
    expected = torch.tensor([400.0, 800, 1200, 1600], dtype=torch.float64)
    assert ((counts - expected) ** 2 / expected).sum().item() < 16.3  # chi-squared, 3 degrees, p = 0.001


@pytest.mark.parametrize(
    ("uniform", "boundary"), [(0.0, 0), (0.0999, 0), (0.1, 1), (0.2999, 1), (0.31, 2), (0.61, 3), (1 - 1e-16, 3)]
)
def test_boundary_by_hand(monkeypatch: pytest.MonkeyPatch, uniform: float, boundary: int) -> None:
    number = torch.full((6,), uniform, dtype=torch.float64)
    monkeypatch.setattr("tdmr1_core.stages.draws.seeds.uniform", lambda *_: number)
    assert draw_boundaries(0, make_groups(), 4, (0, 0), "sample", True).tolist() == [boundary] * 6


def test_boundary_last_and_shared() -> None:
    groups = make_groups(8, 3)
    assert draw_boundaries(0, groups, 4, (0, 0), "sample", False).tolist() == [3] * 24
    assert len(set(draw_boundaries(0, groups, 4, (0, 0), "step", True).tolist())) == 1
    by_group = draw_boundaries(0, groups, 4, (0, 0), "group", True).view(8, 3)
    assert bool((by_group == by_group[:, :1]).all())
    assert len(set(by_group[:, 0].tolist())) > 1
    draws = [draw_boundaries(0, groups, 4, counters, "sample", True) for counters in ((0, 0), (0, 1), (1, 0))]
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("sharing", ["step", "group", "sample"])
def test_levels_are_above_their_lower_bound(sharing: Sharing) -> None:
    groups = make_groups(40, 3)
    lower = torch.tensor([0.0, 0.5, 0.9], dtype=torch.float64).repeat(40)
    levels = draw_levels(0, "tau", groups, (1,), sharing, lower, 3.0)
    assert levels.dtype == torch.float64
    assert bool((levels > lower).all())
    assert bool((levels <= 1).all())
    # In unshifted time, the fraction of the way from the start to 1 is the uniform number.
    unshifted, start = levels / (3 - 2 * levels), lower / (3 - 2 * lower) + 0.02
    fraction = ((unshifted - start) / (1 - start)).view(40, 3)
    spread = (fraction - fraction[:, :1]).abs().max().item()
    assert (spread < 1e-9) is (sharing != "sample")
    if sharing == "step":
        assert fraction.max().item() - fraction.min().item() < 1e-9


def test_levels_depend_on_name_and_counters() -> None:
    groups, lower = make_groups(), torch.zeros(6, dtype=torch.float64)
    draws = [
        draw_levels(0, "tau", groups, (1,), "sample", lower, 3.0),
        draw_levels(0, "tau", groups, (2,), "sample", lower, 3.0),
        draw_levels(0, "other", groups, (1,), "sample", lower, 3.0),
        draw_levels(0, "tau", make_groups(iteration=1), (1,), "sample", lower, 3.0),
    ]
    assert len({tuple(draw.tolist()) for draw in draws}) == 4
    assert not torch.equal(draws[0], draw_levels(0, "tau", groups, (1,), "sample", lower, 1.0))


def test_noise_is_shared_within_the_group_and_independent_of_micro_batches() -> None:
    groups, like = make_groups(), torch.zeros(4, 2, 3, 3, dtype=torch.float64)
    rows = torch.arange(6)
    shared = noise_for(0, "n", groups, (1,), rows, "group", like)
    assert shared.shape == (6, 2, 3, 3)
    assert shared.dtype == torch.float64
    assert torch.equal(shared[0], shared[2])
    assert torch.equal(shared[3], shared[5])
    assert not torch.equal(shared[2], shared[3])
    separate = noise_for(0, "n", groups, (1,), rows, "sample", like)
    assert len({tuple(row.flatten().tolist()) for row in separate}) == 6
    for whole, sharing in ((shared, "group"), (separate, "sample")):
        parts = [noise_for(0, "n", groups, (1,), part, sharing, like) for part in rows.split(4)]  # type: ignore[arg-type]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(separate, noise_for(0, "n", make_groups(iteration=1), (1,), rows, "sample", like))


def test_latents_at() -> None:
    """Entry (k, i) of the latents is 10 k + i."""
    latents = (10 * torch.arange(3)[:, None] + torch.arange(6)).double().view(3, 6, 1, 1, 1)
    groups = make_groups()
    conditioning = Conditioning(torch.zeros(2, 1, 1), torch.zeros(2, 1))
    trajectory = Trajectory(groups, latents, torch.tensor([1.0, 0.5, 0.0]), conditioning, None, True, 0)
    assert trajectory.steps == 2
    steps, rows = torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([1, 3, 5])
    found = latents_at(trajectory, steps, rows, torch.device("cpu"))
    assert found.flatten().tolist() == [11, 23, 5]


def test_conditioning_for_images_is_that_of_their_group() -> None:
    conditioning = Conditioning(torch.tensor([[[1.0]], [[2.0]]]), torch.tensor([[1.0], [2.0]]))
    trajectory = Trajectory(make_groups(), torch.zeros(1), torch.zeros(1), conditioning, None, True, 0)
    assert trajectory.conditioning_for(torch.tensor([5, 0, 2, 3])).pooled.flatten().tolist() == [2, 1, 1, 2]


def test_conditioning_rows() -> None:
    rows = Conditioning(torch.arange(3.0).view(3, 1, 1), torch.arange(3.0).view(3, 1))
    assert len(rows) == 3
    assert rows.select([2, 0, 2]).embeddings.flatten().tolist() == [2, 0, 2]
    assert rows.select(torch.tensor([1])).pooled.flatten().tolist() == [1]
    assert rows.select([1]).expand(4).pooled.flatten().tolist() == [1] * 4
    assert rows.select([1]).expand(4).embeddings.shape == (4, 1, 1)
    assert Conditioning.cat([rows, rows.select([1])]).pooled.flatten().tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("iterations", [3, 20])
def test_upcoming_texts_are_those_of_the_next_iterations_in_the_order_of_their_first_use(iterations: int) -> None:
    prompts = [Prompt(str(i % 7), {}) for i in range(10)]
    drawn: list[int] = []

    def draw(iteration: int) -> Groups:
        drawn.append(iteration)
        return next_groups(prompts, iteration, 4, 2, seed=5)

    found = list(upcoming_texts(prompts, range(1, iterations), draw))
    texts = [prompt.text for number in range(1, iterations) for prompt in next_groups(prompts, number, 4, 2, 5).prompts]
    assert found == list(dict.fromkeys(texts))
    assert len(drawn) < 10, "the draws end with the last new text"


def test_prompts_of_an_iteration_that_spans_several_epochs() -> None:
    prompts = [Prompt(str(i), {}) for i in range(3)]
    groups = [prompt.text for number in range(3) for prompt in next_groups(prompts, number, 7, 2, seed=1).prompts]
    orders = [torch.randperm(3, generator=seeds.stream(1, "prompts", epoch)).tolist() for epoch in range(7)]
    assert groups == [str(place) for order in orders for place in order]
