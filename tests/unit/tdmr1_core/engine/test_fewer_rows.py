"""Rows that are not evaluated, or are evaluated earlier, change no update."""

import pytest
import torch
from support.product import ADVANTAGES, make_engine, random_trajectory
from support.role_updates import SECTIONS

from tdmr1_core.models.roles import FAKE, REFERENCE, SURROGATE, TEACHER
from tdmr1_core.records import Advantages

pytestmark = pytest.mark.unit

FIRST_GROUP_ONLY = Advantages(torch.tensor([1.0, -1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64), 0.5)
OTHER_RANK_ONLY = Advantages(torch.zeros(6, dtype=torch.float64), 0.5, on_other_ranks=True)
PRECISE = {"timesteps": {"per_iteration": 1}}


def surrogate_engine(micro_batch=None, **surrogate):
    sections = {**SECTIONS, **PRECISE, "batch": {**SECTIONS["batch"], "micro_batch": micro_batch}}
    return make_engine({**sections, "surrogate": surrogate})


def trajectory_of(engine):
    return random_trajectory(engine, [prompt.text for prompt in engine.prompts[:2]], 3, stored_velocity=False)


def count_rows(engine):
    """Record the rows of every forward pass, by role."""
    rows = {}

    def count(network, positional, named):
        role = engine.roles._acting[engine.roles.backbone]
        rows[role] = rows.get(role, 0) + len(named["hidden_states"])

    engine.roles.backbone.network.register_forward_pre_hook(count, with_kwargs=True)
    return rows


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_groups_without_signal_are_not_evaluated(micro_batch):
    weights, rows = [], []
    for only_with_signal in (False, True):
        engine = surrogate_engine(micro_batch, only_with_signal=only_with_signal, reference_penalty=0.0)
        rows.append(count_rows(engine))
        engine.update_surrogate(trajectory_of(engine), FIRST_GROUP_ONLY)
        weights.append(engine.roles.weights(SURROGATE))
    assert {role: 2 * count for role, count in rows[1].items()} == rows[0]
    for name, wanted in weights[0].items():
        torch.testing.assert_close(weights[1][name], wanted, rtol=0, atol=1e-9)


def test_the_penalty_of_groups_without_signal_is_skipped_too():
    changes = []
    for only_with_signal in (False, True):
        engine = surrogate_engine(only_with_signal=only_with_signal, reference_penalty=5.0)
        stats = engine.update_surrogate(trajectory_of(engine), FIRST_GROUP_ONLY)
        changes.append(stats.metrics["loss/preference"])
    assert changes[0] > changes[1] > 0


def test_a_process_without_signal_adds_a_zero_gradient():
    engine = surrogate_engine(only_with_signal=True)
    gradients, role = [], engine.trained[SURROGATE]
    role.step = lambda scale: gradients.extend(weight.grad for weight in role.parameters.values()) or 0.0
    engine.update_surrogate(trajectory_of(engine), OTHER_RANK_ONLY)
    used = [gradient for gradient in gradients if gradient is not None]
    assert used
    assert all(not gradient.any() for gradient in used)


def test_micro_batches_below_a_group_evaluate_the_reference_once():
    engine = surrogate_engine(2, reference="frozen")
    rows = count_rows(engine)
    engine.update_surrogate(trajectory_of(engine), ADVANTAGES)
    assert rows[REFERENCE] == 6
    assert rows[SURROGATE] == 12


def test_a_teacher_without_weight_is_not_evaluated_for_the_fake_score():
    rows = []
    for weight in (0.02, 0.0):
        engine = make_engine({**SECTIONS, **PRECISE, "fake": {"teacher_weight": weight}})
        rows.append(count_rows(engine))
        engine.update_fake(trajectory_of(engine))
    assert rows[0] == {**rows[1], TEACHER: 6}
    assert rows[1][FAKE] == 6


def test_a_started_update_of_the_fake_score_ends_with_the_same_bits():
    results = []
    for started in (False, True):
        engine = make_engine(SECTIONS)
        trajectory = trajectory_of(engine)
        if started:
            before = engine.roles.weights(FAKE)
            engine.start_fake_update(trajectory)
            assert all(torch.equal(weight, before[name]) for name, weight in engine.roles.weights(FAKE).items())
        stats = [engine.update_fake(trajectory, step) for step in range(2)]
        results.append((engine.roles.weights(FAKE), [each.metrics for each in stats]))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(weight, results[0][0][name]) for name, weight in results[1][0].items())


def test_a_started_update_is_discarded_if_another_trajectory_follows():
    results = []
    for started in (False, True):
        engine = make_engine(SECTIONS)
        first, second = trajectory_of(engine), trajectory_of(engine)
        if started:
            engine.start_fake_update(first)  # its rewards failed
        for step in range(2):
            engine.update_fake(second, step)
        results.append(engine.roles.weights(FAKE))
    assert all(torch.equal(weight, results[0][name]) for name, weight in results[1].items())
