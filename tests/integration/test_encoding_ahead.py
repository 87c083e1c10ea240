"""Runs with memory.text_encoders auto, on a CPU that is treated as a GPU: the same files as with encoders that stay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from support.errors import raises
from support.runs import Silent, files, small_config

from tdmr1_core.build import parts
from tdmr1_core.config import ModelConfig
from tdmr1_core.conformance.tiny_pipelines import MAKERS, make_tiny_pipeline
from tdmr1_core.distributed import Processes
from tdmr1_core.engine import Engine
from tdmr1_core.models import offloaded_encoders
from tdmr1_core.models.loading import fetch_model, load_backbones, load_encoders
from tdmr1_core.models.offloaded_encoders import OffloadedEncoders
from tdmr1_core.models.sd3 import SD3Backbone
from tdmr1_core.plugins import discover
from tdmr1_core.runs.load_run import load_trained
from tdmr1_core.runs.run import Run

pytestmark = pytest.mark.integration

SETTINGS = (
    "saving.samples_every=2",
    "saving.tensorboard=false",
    "timesteps.per_iteration=1",
    "batch.group_size=2",
    "evaluation.every=2",
    "evaluation.images=4",
)
SMALL_BUDGET = 1e-5
"""In 10^9 bytes: three prompts of the embedded model."""


@dataclass
class Watched:
    """What the encoders of the runs in a test did."""

    encoded: list[str] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    @property
    def swaps(self) -> int:
        """How often the encoders were on the device instead of the denoisers."""
        return len(self.moves) // 4


@pytest.fixture
def watched(monkeypatch) -> Watched:
    """Treat the CPU as a GPU, whose encoders are offloaded unless they stay on the device."""
    found, encode = Watched(), SD3Backbone.encode

    def recording(backbone, prompts):
        found.encoded += prompts
        return encode(backbone, prompts)

    def load(*arguments):
        found.loads.append("encoders")
        return load_encoders(*arguments)

    monkeypatch.setattr(SD3Backbone, "encode", recording)
    monkeypatch.setattr(offloaded_encoders, "_move", lambda networks, where: found.moves.append(str(where)))
    monkeypatch.setattr(parts, "load_encoders", load)
    monkeypatch.setattr(parts, "offloads_encoders", lambda config, _: config.memory.text_encoders != "device")
    return found


def execute(folder: Path, *settings: str, observer: Silent | None = None) -> dict[str, object]:
    """A run's files, except the settings that differ."""
    run = Run.create(small_config(*SETTINGS, *settings), folder)
    run.execute(observer or Silent())
    return comparable(folder)


def comparable(folder: Path) -> dict[str, object]:
    """The results of a run: weights, optimizers, metrics, evaluations and images."""
    found = files(folder)
    return {name: content for name, content in found.items() if Path(name).suffix in (".safetensors", ".jsonl", ".png")}


@pytest.fixture(scope="module")
def usual(tmp_path_factory) -> dict[str, object]:
    """The files of the same run with encoders that stay on the device."""
    return execute(tmp_path_factory.mktemp("runs") / "usual", "memory.text_encoders=device")


def test_all_prompts_of_a_run_are_encoded_once_before_its_first_image(usual, watched, tmp_path):
    counts: list[int] = []

    class Counting(Silent):
        def evaluated(self, step, evaluation):
            counts.append(len(watched.encoded))

    assert execute(tmp_path / "run", observer=Counting()) == usual
    assert len(usual) > 5
    assert sorted(set(watched.encoded)) == sorted(watched.encoded), "no text is encoded twice"
    assert set(counts) == {len(watched.encoded)}, "nothing is encoded after the first evaluation"
    assert watched.swaps == 1
    assert not watched.loads


def test_teaching_prompts_are_all_encoded_before_the_first_image(watched, tmp_path):
    """The next draws are not known, so every training prompt may come."""
    teaching = ("batch.prompts=teaching", "iterations=2")
    expected = execute(tmp_path / "usual", *teaching, "memory.text_encoders=device")
    watched.encoded.clear()
    assert execute(tmp_path / "run", *teaching) == expected
    texts = {prompt.text for prompt in Engine.from_config(small_config()).prompts}
    assert texts <= set(watched.encoded)
    assert len(set(watched.encoded)) == len(watched.encoded), "no text is encoded twice"
    assert watched.swaps == 1


def test_prompts_beyond_the_budget_are_encoded_in_blocks(usual, watched, tmp_path):
    in_turn = tmp_path / "in-turn"
    assert execute(in_turn, "memory.text_encoders=cpu", f"memory.prompt_cache_gb={SMALL_BUDGET}") == usual
    swaps_in_turn = watched.swaps
    watched.moves.clear()
    assert execute(tmp_path / "blocks", f"memory.prompt_cache_gb={SMALL_BUDGET}") == usual
    assert 1 < watched.swaps <= swaps_in_turn
    assert not watched.loads


def test_a_resume_encodes_the_remaining_prompts_and_ends_with_the_same_bits(usual, watched, tmp_path):
    class StopAfterOne(Silent):
        def iteration(self, report):
            run._stop = True

    run = Run.create(small_config(*SETTINGS), tmp_path / "run")
    assert not run.execute(StopAfterOne()).finished
    before = set(watched.encoded)
    watched.encoded.clear()
    Run.resume(tmp_path / "run").execute(Silent())
    found = comparable(tmp_path / "run")
    assert {name: found.get(name) for name in usual} == usual
    assert set(watched.encoded) < before, "not the prompts of the first iteration"


def test_an_engine_that_only_samples_encodes_nothing_ahead(watched, tmp_path):
    execute(tmp_path / "run", "iterations=1")
    watched.encoded.clear()
    engine = load_trained(tmp_path / "run")
    assert engine.config.memory.text_encoders == "auto"
    engine.conditioning(engine.prompts[:2])
    assert len(watched.encoded) == 3, "and the empty prompt"
    assert engine.roles.backbone.text_encoders()


def test_an_engine_of_a_loop_of_its_own_loads_released_encoders_again(watched):
    engine = Engine.from_config(small_config("model.device=cpu", *SETTINGS))
    expected = engine.conditioning(engine.prompts[:1])
    next(engine.iterations())
    assert engine.roles.backbone.text_encoders() == []
    assert not watched.loads
    found = engine.conditioning([replace(engine.prompts[0], text="a text that no run samples"), engine.prompts[0]])
    assert watched.loads == ["encoders"]
    assert torch.equal(found.embeddings[1:], expected.embeddings)
    fresh = Engine.from_config(small_config("memory.text_encoders=device"))
    text = replace(engine.prompts[0], text="a text that no run samples")
    assert torch.equal(found.embeddings[:1], fresh.conditioning([text]).embeddings)


def test_each_process_encodes_its_own_groups_ahead():
    engine = Engine.from_config(small_config("batch.groups=4", "iterations=2"))
    engine.encode_ahead(engine.prompts[:1])
    texts = []
    for rank in range(2):
        engine.processes = Processes(rank, 2)
        texts.append(list(engine._encoder.upcoming()))
    drawn = [[prompt.text for prompt in engine._draw_groups(number).prompts] for number in range(2)]
    assert texts[1] == [*dict.fromkeys(drawn[0] + drawn[1]), engine.prompts[0].text]
    assert len(texts[0]) <= 5
    assert texts[0] != texts[1]


def kind_and_dtypes(encoder):
    """The class of an encoder, and the dtypes of its weights and buffers."""
    named = [*encoder.named_parameters(), *encoder.named_buffers()]
    return type(encoder), {name: tensor.dtype for name, tensor in named}


@pytest.mark.parametrize("family", MAKERS)
def test_loaded_encoders_equal_those_of_the_pipeline(family, tmp_path):
    folder = make_tiny_pipeline(family, tmp_path / family)
    files = fetch_model(discover().entry(ModelConfig(name=str(folder))), training=False)
    base, _ = load_backbones(files, torch.device("cpu"), torch.bfloat16)
    expected, encoders = base.encode(["two red circles"]), OffloadedEncoders([base], lambda: loaded)
    loaded = load_encoders(files, torch.bfloat16)
    known = base.text_encoders()
    encoders.release()
    assert base.text_encoders() == []
    with encoders.on_device():
        found = base.encode(["two red circles"])
    assert [kind_and_dtypes(each) for each in base.text_encoders()] == [kind_and_dtypes(each) for each in known]
    for name, value in vars(expected).items():
        other = vars(found)[name]
        assert value is other is None or torch.equal(value, other), name
    assert len(base.text_encoders()) == len(loaded), "no other part is loaded"
    for encoder in loaded.values():
        assert not encoder.training
        assert not any(weight.requires_grad for weight in encoder.parameters())


def test_a_model_directory_that_was_moved_is_named():
    engine = Engine.from_config(small_config())
    assert engine.model_files is not None
    moved = replace(engine.model_files, folder=Path("moved"))
    with raises("model-invalid", folder="moved"):
        load_encoders(moved, torch.float32)
