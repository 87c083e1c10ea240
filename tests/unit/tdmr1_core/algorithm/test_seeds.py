"""Named random streams: a draw depends only on seed, name and counters."""

from __future__ import annotations

import pytest
import torch

from tdmr1_core.algorithm import seeds

pytestmark = pytest.mark.unit

SHAPE = (2, 3, 3)


def test_a_stream_is_repeatable_and_named() -> None:
    def first(*name: str | int, seed: int = 0) -> float:
        return torch.rand((), generator=seeds.stream(seed, *name), dtype=torch.float64).item()

    names: list[tuple[str | int, ...]] = [("a",), ("b",), ("a", 0), ("a", 1), ("a", 0, 1), ("a", 1, 0), ("a", 10)]
    values = [first(*name) for name in names] + [first("a", seed=1)]
    assert values == [first(*name) for name in names] + [first("a", seed=1)]
    assert len(set(values)) == len(values)


def test_draws_never_change_between_versions() -> None:
    """A resumed run must draw the same numbers; change this only together with the checkpoint format."""
    assert seeds.stream(3, "tau", 1, 2).initial_seed() == 5937449397259641045
    assert seeds.uniform(3, "tau", (1,), [2]).item() == 0.4750153296219286


def test_noise_rows_do_not_depend_on_the_batch() -> None:
    whole = seeds.noise(0, "x", (4, 1), range(6), SHAPE)
    assert whole.shape == (6, *SHAPE)
    assert whole.dtype == torch.float32
    backwards = seeds.noise(0, "x", (4, 1), [5, 4, 3, 2, 1, 0], SHAPE)
    assert torch.equal(backwards.flip(0), whole)
    for size in (1, 2, 4):
        parts = [seeds.noise(0, "x", (4, 1), range(6)[start : start + size], SHAPE) for start in range(0, 6, size)]
        assert torch.equal(torch.cat(parts), whole)


def test_equal_ids_get_equal_noise() -> None:
    drawn = seeds.noise(0, "x", (), [7, 7, 2, 7], SHAPE)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])
    uniform = seeds.uniform(0, "x", (), [7, 7, 2])
    assert uniform[0] == uniform[1] != uniform[2]


@pytest.mark.parametrize(
    "other", [(1, "x", (4, 1)), (0, "y", (4, 1)), (0, "x", (4, 2)), (0, "x", (1, 4)), (0, "x", (4,)), (0, "x", (41,))]
)
def test_other_names_seeds_and_counters_differ(other: tuple[int, str, tuple[int, ...]]) -> None:
    assert not torch.equal(seeds.noise(0, "x", (4, 1), [0], SHAPE), seeds.noise(*other, [0], SHAPE))
    assert not torch.equal(seeds.uniform(0, "x", (4, 1), [0]), seeds.uniform(*other, [0]))


def test_global_generator_is_not_used() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = seeds.noise(0, "x", (), [0], SHAPE)
    seeds.uniform(0, "x", (), [0])
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert torch.equal(seeds.noise(0, "x", (), [0], SHAPE), first)


def test_uniforms_are_float64_and_uniform() -> None:
    drawn = seeds.uniform(0, "u", (1,), range(4000))
    assert drawn.dtype == torch.float64
    assert 0 <= drawn.min() < drawn.max() < 1
    assert bool((drawn != drawn.float().double()).any())
    counts = torch.histc(drawn.float(), bins=10, min=0, max=1)
    assert ((counts - 400) ** 2 / 400).sum().item() < 27.9  # chi-squared, 9 degrees, p = 0.001


def test_noise_is_standard_normal() -> None:
    drawn = seeds.noise(1, "n", (), range(200), (4, 8, 8))
    assert drawn.mean().item() == pytest.approx(0, abs=0.02)
    assert drawn.std().item() == pytest.approx(1, abs=0.02)
    neighbours = (drawn[:-1] * drawn[1:]).mean().item()
    assert neighbours == pytest.approx(0, abs=0.02)
