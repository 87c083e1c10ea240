import hashlib
import os
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.errors import raises

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult, RewardSpec
from tdmr1_rewards.calling.import_file import private_name
from tdmr1_rewards.calling.reference import build
from tdmr1_rewards.registry import Provenance, RewardRegistry, load_plugins
from tdmr1_rewards.sources import source as sources
from tdmr1_rewards.sources.description import load_examples

pytestmark = pytest.mark.unit

HERE = Path(sys.executable)
"""This interpreter, used as if it belonged to another environment."""
MINE = """
    import sibling
    from tdmr1_rewards import RewardBatch, RewardOptions, RewardResult, RewardSpec


    class Options(RewardOptions):
        factor: float = 2.0


    class MyReward:
        '''Twice as good.

        More words.
        '''

        def __init__(self, options: Options) -> None:
            self.options = options

        def __call__(self, batch: RewardBatch) -> RewardResult:
            return RewardResult([self.options.factor] * len(batch))


    class Plain:
        def __call__(self, batch):
            return RewardResult([sibling.SCORE] * len(batch))


    def score(batch: RewardBatch) -> RewardResult:
        return RewardResult([1.0] * len(batch))


    def peers(images, prompts, metadata):
        return [float(image.sum()) for image in images], {}


    ready = Plain()
    SPEC = RewardSpec(
        name="special", summary="its own", factory="mine:MyReward", options="mine:Options", default_prompts="count"
    )
    number = 3
"""


@pytest.fixture
def registry():
    spec = RewardSpec(name="legible", summary="", factory="nowhere:Thing", default_prompts="count")
    return RewardRegistry([(spec, Provenance("p", "some-dist", "1.0", "some_mod"))])


@pytest.fixture
def mine(tmp_path):
    """A file with rewards and a module next to it. Their modules are removed from sys.modules afterwards."""
    path = tmp_path / "rewards" / "mine.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(MINE))
    (path.parent / "sibling.py").write_text("SCORE = 0.25\n")
    yield path
    for name in ("sibling", private_name(path)):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder; its modules can be imported during the test only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def batch_of(images):
    count = len(images)
    return RewardBatch(images, ["p"] * count, [{}] * count, [0] * count, list(range(count)), RewardContext(None, 0, 0))


def test_a_registered_name_is_found(registry):
    assert sources.find_reward(registry, "legible").provenance.distribution == "some-dist"
    with raises("reward-import", source="nowhere:Thing"):
        sources.create_reward(sources.find_reward(registry, "legible"), {})
    with raises("reward-unknown", reward="leggible") as caught:
        sources.find_reward(registry, "leggible")
    assert caught.value.hint == "did you mean 'legible'?"


def test_the_hint_for_a_file_or_module_without_a_function(registry):
    for text in ("package.module", "path/to/file"):
        with raises("reward-unknown", reward=text) as caught:
            sources.find_reward(registry, text)
        assert "path/to/file.py:fn" in caught.value.hint


def test_a_word_instead_of_a_weight_is_rejected(registry):
    with raises("reward-source", source="legible:heavy", weight="heavy") as caught:
        sources.find_reward(registry, "legible:heavy")
    assert "legible:0.5" in caught.value.hint


def test_a_class_in_a_file_gets_its_options(registry, mine):
    found = sources.find_reward(registry, f"{mine}:MyReward")
    assert (found.spec.name, found.spec.summary, found.spec.image_format) == ("my_reward", "Twice as good.", "pil")
    assert (found.provenance.distribution, found.spec.default_prompts) == (str(mine), sources.NO_PROMPTS)
    assert found.taken_as == "a tdmr1 reward with Options"
    assert sources.create_reward(sources.find_reward(registry, f"{mine}:MyReward"), {"factor": 3})(
        batch_of([0, 0])
    ).scores == [3.0, 3.0]
    with raises("reward-options", options=["facter"]):
        sources.create_reward(sources.find_reward(registry, f"{mine}:MyReward"), {"facter": 3})


@pytest.mark.parametrize(
    ("attribute", "score", "taken_as"),
    [
        ("Plain", 0.25, "a class that makes a tdmr1 reward, __call__(batch)"),
        ("ready", 0.25, "a tdmr1 reward, Plain(batch)"),
        ("score", 1.0, "a tdmr1 reward, score(batch)"),
        ("SPEC", 2.0, "a RewardSpec"),
    ],
)
def test_objects_in_a_file_can_be_rewards(registry, mine, attribute, score, taken_as):
    source = f"{mine}:{attribute}"
    assert sources.find_reward(registry, source).taken_as == taken_as
    assert sources.create_reward(sources.find_reward(registry, source), {})(batch_of([0])).scores == [score]
    if attribute != "SPEC":
        with raises("reward-options", options=["factor"]):
            sources.create_reward(sources.find_reward(registry, source), {"factor": 3})


@pytest.mark.parametrize(
    ("attribute", "loaded"), [("MyReward", "MyReward"), ("SPEC", "MyReward"), ("peers", "peers"), ("ready", "ready")]
)
def test_a_reference_names_the_file_and_the_object(registry, mine, attribute, loaded):
    reference = sources.reference_for(sources.find_reward(registry, f"{mine}:{attribute}"), {})
    assert reference.factory == {"file": str(mine), "attr": loaded}
    images = np.ones((2, 4, 4, 3), np.uint8)
    assert len(build(reference, "it")(batch_of(images)).scores) == 2
    elsewhere = sources.reference_for(sources.find_reward(registry, f"{mine}:{attribute}", HERE), {}, HERE)
    assert (elsewhere.factory, elsewhere.paths, elsewhere.modules) == (reference.factory, (), {})


def test_a_module_of_the_current_folder_can_be_imported_by_another_process(registry, folder):
    (folder / "own_module.py").write_text("def score(batch):\n    raise OSError\n")
    reference = sources.reference_for(sources.find_reward(registry, "own_module:score", HERE), {}, HERE)
    assert (reference.factory, reference.paths) == ("own_module:score", [str(folder)])
    assert "own_module" not in sys.modules


@pytest.mark.parametrize("attribute", ["MyReward", "SPEC", "peers", "ready"])
def test_an_object_for_another_environment_is_described_there(registry, mine, attribute):
    elsewhere = sources.find_reward(registry, f"{mine}:{attribute}", HERE)
    assert private_name(mine) not in sys.modules
    here = sources.find_reward(registry, f"{mine}:{attribute}")
    assert vars(elsewhere.spec) == vars(here.spec)
    assert (elsewhere.provenance, elsewhere.taken_as) == (here.provenance, here.taken_as)


def test_errors_in_another_environment_are_reported(registry, mine):
    with raises("reward-build") as caught:
        sources.find_reward(registry, f"{mine}:scroe", HERE)
    assert "'scroe'" in caught.value.message
    assert caught.value.hint == "did you mean 'score'?"
    with raises("reward-environment", python="/no/python"):
        sources.find_reward(registry, f"{mine}:score", Path("/no/python"))


FREEZING = """
    import os
    from tdmr1_rewards import RewardOptions, RewardSpec


    class Options(RewardOptions):
        engine: str = "auto"
        size: int = 1


    def freeze(options):
        return options.model_copy(update={"engine": f"process {os.getpid()}"})


    SPEC = RewardSpec(
        name="frozen", summary="", factory="freezing:Options", options="freezing:Options", freeze="freezing:freeze",
        default_prompts="count",
    )
"""


def test_options_are_frozen_in_the_other_environment(folder, monkeypatch):
    (folder / "freezing.py").write_text(textwrap.dedent(FREEZING))
    monkeypatch.syspath_prepend(folder)
    origin = Provenance("p", "some-dist", "1.0", "some_mod")
    places = {"factory": "freezing:Options", "options": "freezing:Options", "freeze": "freezing:freeze"}
    registry = RewardRegistry([(RewardSpec(name="chosen", summary="", default_prompts="", **places), origin)])
    for source in ("chosen", f"{folder}/freezing.py:SPEC"):
        here, elsewhere = (
            sources.freeze_options(sources.find_reward(registry, source, python), {"size": 2}, python)
            for python in (None, HERE)
        )
        assert here == {"size": 2, "engine": f"process {os.getpid()}"}
        assert elsewhere["size"] == 2
        assert re.fullmatch(r"process \d+", elsewhere["engine"])
        assert elsewhere != here
        with raises("reward-build") as caught:
            sources.freeze_options(sources.find_reward(registry, source, HERE), {"sise": 2}, HERE)
        assert "'sise'" in caught.value.message


def test_a_server_cannot_be_isolated(registry):
    with raises("setting-conflict", reward="object_count"):
        sources.reference_for(sources.find_reward(registry, "remote:http://127.0.0.1:8000/object_count"), {})


def test_options_with_the_value_auto_are_frozen(registry, mine, monkeypatch):
    assert sources.freeze_options(sources.find_reward(registry, f"{mine}:score"), {}) == {}
    installed = load_plugins().rewards
    monkeypatch.setattr(
        "tdmr1_rewards.builtin.ocr_match.open_engine", lambda options, device: SimpleNamespace(name="rapidocr")
    )
    assert sources.freeze_options(sources.find_reward(installed, "ocr_match"), {"upscale": 2}) == {
        "upscale": 2,
        "engine": "rapidocr",
    }
    assert sources.freeze_options(sources.find_reward(installed, "ocr_match"), {"engine": "easyocr"}) == {
        "engine": "easyocr"
    }


def test_a_spec_in_a_file_keeps_its_name_and_prompts(registry, mine):
    spec = sources.find_reward(registry, f"{mine}:SPEC").spec
    assert (spec.name, spec.default_prompts) == ("special", "count")


def test_a_function_of_flow_grpo_gets_arrays(registry, mine):
    found = sources.find_reward(registry, f"{mine}:peers")
    assert found.spec.image_format == "array"
    assert found.taken_as == "a flow_grpo-style function, peers(images, prompts, metadata)"


def test_a_file_leaves_sys_path_as_it_was(registry, mine):
    before = list(sys.path)
    sources.find_reward(registry, f"{mine}:score")
    assert sys.path == before
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("attribute", "code", "values", "hint"),
    [
        ("scroe", "reward-import", {"attribute": "scroe"}, "did you mean 'score'?"),
        ("number", "reward-signature", {}, "fn(batch: RewardBatch)"),
        ("Plain.nothing", "reward-import", {"attribute": "nothing"}, ""),
    ],
)
def test_an_object_that_is_missing_or_no_reward_is_rejected(registry, mine, attribute, code, values, hint):
    with raises(code, **values) as caught:
        sources.find_reward(registry, f"{mine}:{attribute}")
    assert hint in caught.value.hint


def test_the_hint_for_a_missing_file_is_a_file_next_to_it(registry, mine):
    with raises("reward-import", file=f"{mine.parent}/mien.py") as caught:
        sources.find_reward(registry, f"{mine.parent}/mien.py:score")
    assert caught.value.hint == "did you mean 'mine.py'?"


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise RuntimeError('a\\nb')", "RuntimeError: a b"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "broken.py cannot be imported: SyntaxError: invalid syntax ("),
    ],
)
def test_the_error_of_a_file_that_cannot_be_imported_is_one_sentence(registry, tmp_path, text, quoted):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with raises("reward-import") as caught:
        sources.find_reward(registry, f"{path}:fn")
    assert quoted in caught.value.message
    assert "\n" not in caught.value.message
    assert private_name(path) not in sys.modules


def test_a_module_of_the_current_folder_is_found(registry, folder):
    (folder / "my_pack_17").mkdir()
    (folder / "my_pack_17" / "__init__.py").write_text("")
    (folder / "my_pack_17" / "judge.py").write_text("def score(batch):\n    return 1\n")
    found = sources.find_reward(registry, "my_pack_17.judge:score")
    assert found.provenance.distribution == "my_pack_17.judge"
    with raises("reward-import", module="my_pack_17.jugde"):
        sources.find_reward(registry, "my_pack_17.jugde:score")
    with raises("reward-import", source="the module my_pack_17.judge", attribute="scroe"):
        sources.find_reward(registry, "my_pack_17.judge:scroe")


def test_a_failed_import_inside_a_module_is_not_a_missing_module(registry, folder):
    (folder / "importer_18.py").write_text("import no_such_thing")
    error = "ModuleNotFoundError: No module named 'no_such_thing'"
    with raises("reward-import", source="the module importer_18", error=error):
        sources.find_reward(registry, "importer_18:score")


def test_a_server_is_described_without_a_request(registry):
    found = sources.find_reward(registry, "remote:http://127.0.0.1:9/ocr_match")
    assert (found.spec.name, found.provenance.distribution) == ("ocr_match", "http://127.0.0.1:9/ocr_match")


def test_a_native_function_is_not_wrapped(registry, mine):
    assert isinstance(
        sources.create_reward(sources.find_reward(registry, f"{mine}:score"), {})(batch_of([0])), RewardResult
    )


@pytest.mark.parametrize("text", ["legible", "remote:http://127.0.0.1:9/ocr_match"])
def test_a_parsed_source_is_kept_and_accepted(registry, text):
    source = sources.parse_source(text)
    found = sources.find_reward(registry, source)
    assert found.source == source
    assert found == sources.find_reward(registry, text)


def test_a_found_reward_is_not_looked_up_again(registry, mine, monkeypatch):
    found = [sources.find_reward(registry, source) for source in ("legible", f"{mine}:MyReward")]
    monkeypatch.setattr(sources, "parse_source", None)
    monkeypatch.setattr(RewardRegistry, "get", None)
    assert sources.create_reward(found[1], {"factor": 3})(batch_of([0])).scores == [3.0]
    assert sources.reference_for(found[1], {}, HERE).factory == {"file": str(mine), "attr": "MyReward"}
    assert found[0].fingerprint() == "some-dist 1.0"
    assert found[1].fingerprint() == (f"MyReward of sha256 {hashlib.sha256(mine.read_bytes()).hexdigest()}")
    assert [sources.freeze_options(one, options) for one, options in zip(found, ({}, {"factor": 2}), strict=True)] == [
        {},
        {"factor": 2},
    ]


HOOKS = """from tdmr1_rewards import RewardOptions, RewardResult, RewardSpec
from pydantic import field_validator

class Options(RewardOptions):
    size: int = 1

    @field_validator("size")
    @classmethod
    def check(cls, value):
        return [0, 1][value]

SPEC = RewardSpec(name="hooked", summary="", factory="hooks:build", options="hooks:Options",
                  freeze="hooks:freeze", preflight="hooks:preflight", examples="hooks:examples")

def build(options): return lambda batch: RewardResult([0.0] * len(batch))
def freeze(options): return {}["freeze"]
def preflight(preview): return {}["preflight"]
def examples(): raise SystemExit("examples")
"""


def test_an_exception_in_each_function_of_a_spec_has_the_file_and_line(registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hooks.py").write_text(HOOKS)
    found = sources.find_reward(registry, "hooks.py:SPEC")
    steps = {
        "freeze": lambda: sources.freeze_options(found, {}),
        "preflight": lambda: sources.preflight(found, {}, ["a"], [{}]),
        "examples": lambda: load_examples(found),
    }
    for name, step in steps.items():
        line = next(number for number, text in enumerate(HOOKS.split("\n"), 1) if text.startswith(f"def {name}"))
        with raises("reward-failed", file="hooks.py", line=line) as caught:
            step()
        assert f"(hooks.py:{line}, in {name})" in caught.value.message
        assert f"`{name}`" in caught.value.hint
    with raises("reward-options", file="hooks.py", line=10):
        sources.create_reward(found, {"size": 5})


def test_an_answer_of_freeze_that_is_no_options_is_refused(registry, tmp_path):
    (tmp_path / "hooks.py").write_text(HOOKS.replace('return {}["freeze"]', "return None"))
    found = sources.find_reward(registry, f"{tmp_path / 'hooks.py'}:SPEC")
    with raises("reward-spec", field="freeze", found="NoneType"):
        sources.freeze_options(found, {})


def test_an_attribute_that_raises_is_an_error_of_the_import(registry, tmp_path):
    path = tmp_path / "raising.py"
    path.write_text("def __getattr__(name):\n    raise ValueError(name)\n")
    with raises("reward-import", file=str(path), line=2):
        sources.find_reward(registry, f"{path}:fn")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "receives a float tensor (N, 3, H, W) in [0, 1]"),
        ({"image_format": "pil"}, "receives PIL images"),
        ({"image_format": "jpeg"}, "receives a float tensor (N, 3, H, W) in [0, 1]"),
        ({"image_format": ["pil"]}, "receives a float tensor (N, 3, H, W) in [0, 1]"),
    ],
)
def test_the_usage_of_a_function_has_its_image_format(registry, tmp_path, options, expected):
    """An invalid option is refused later, when the reward is built."""
    (tmp_path / "peers.py").write_text("def peers(images, prompts, metadata): ...\n")
    found = sources.find_reward(registry, f"{tmp_path}/peers.py:peers")
    assert sources.usage(found, options).endswith(expected)
