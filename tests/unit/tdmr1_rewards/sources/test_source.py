import os
import re
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult, RewardSpec
from tdmr1_rewards.calling.import_file import private_name
from tdmr1_rewards.calling.reference import build
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance, RewardRegistry, load_plugins
from tdmr1_rewards.sources import source as sources

pytestmark = pytest.mark.unit

HERE = Path(sys.executable)
"""An interpreter to name as another: its processes are."""
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
    """A file of rewards with a module beside it; what it loads is forgotten afterwards."""
    path = tmp_path / "rewards" / "mine.py"
    path.parent.mkdir()
    path.write_text(textwrap.dedent(MINE))
    (path.parent / "sibling.py").write_text("SCORE = 0.25\n")
    yield path
    for name in ("sibling", private_name(path)):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, which is importable only as long as a test lasts."""
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


@pytest.mark.parametrize(
    ("text", "kind", "place", "attribute", "name"),
    [
        ("object_count", "registered", "object_count", "", "object_count"),
        ("file.py:fn", "file", "file.py", "fn", "fn"),
        ("a/b c/file-2.py:MyReward", "file", "a/b c/file-2.py", "MyReward", "my_reward"),
        ("/a=b/file.py:fn", "file", "/a=b/file.py", "fn", "fn"),
        ("a:b/file.py:fn", "file", "a:b/file.py", "fn", "fn"),
        ("file.py:Holder.fn", "file", "file.py", "Holder.fn", "fn"),
        ("module:fn", "module", "module", "fn", "fn"),
        ("package.sub.module:HPSv2", "module", "package.sub.module", "HPSv2", "hpsv2"),
        ("remote:http://127.0.0.1:8000/ocr", "remote", "http://127.0.0.1:8000/ocr", "", "ocr"),
        ("remote:https://host/a/my-ocr", "remote", "https://host/a/my-ocr", "", "my_ocr"),
        ("remote:http://[::1]:8000/ocr", "remote", "http://[::1]:8000/ocr", "", "ocr"),
        ("remote:http://a:1/ocr,http://b:2/ocr", "remote", "http://a:1/ocr,http://b:2/ocr", "", "ocr"),
    ],
)
def test_sources_are_taken_apart_and_written_again(text, kind, place, attribute, name):
    source = sources.parse_source(text)
    assert (source.kind, source.place, source.attribute, source.name) == (kind, place, attribute, name)
    assert str(source) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("remote:http://127.0.0.1:8000", "is not the address of a reward"),
        ("remote:ftp://host/x", "is not the address of a reward"),
        ("remote:host:8000/x", "is not the address of a reward"),
        ("file.py:", "does not name a function in the file"),
        ("file.py:0.5", "does not name a function in the file"),
        ("a:b:c", "is not the source of a reward"),
        ("", "is not the source of a reward"),
    ],
)
def test_what_is_no_source_is_told(text, message):
    with pytest.raises(Tdmr1Error, match=message):
        sources.parse_source(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MyReward", "my_reward"),
        ("ocr-match", "ocr_match"),
        ("HPSReward", "hps_reward"),
        ("_x", "x"),
        ("2d", "reward_2d"),
    ],
)
def test_names_become_snake_case(name, expected):
    assert sources.snake_case(name) == expected


def test_a_path_is_made_absolute_and_nothing_else(folder):
    assert str(sources.parse_source("r/mine.py:fn").absolute()) == f"{folder}/r/mine.py:fn"
    assert str(sources.parse_source("some.module:fn").absolute()) == "some.module:fn"


def test_a_registered_name_is_looked_up(registry):
    assert sources.find_reward(registry, "legible").provenance.distribution == "some-dist"
    with pytest.raises(Tdmr1Error, match="could not be imported"):
        sources.create_reward(sources.find_reward(registry, "legible"), {})
    with pytest.raises(Tdmr1Error, match="there is no reward 'leggible'") as caught:
        sources.find_reward(registry, "leggible")
    assert caught.value.hint == "did you mean 'legible'?"


def test_a_forgotten_function_is_hinted_at(registry):
    for text in ("package.module", "path/to/file"):
        with pytest.raises(Tdmr1Error, match="there is no reward") as caught:
            sources.find_reward(registry, text)
        assert "path/to/file.py:fn" in caught.value.hint


def test_a_word_for_a_weight_is_told(registry):
    with pytest.raises(Tdmr1Error, match="'heavy' is not a number") as caught:
        sources.find_reward(registry, "legible:heavy")
    assert "legible:0.5" in caught.value.hint


def test_a_class_of_a_file_gets_its_options(registry, mine):
    found = sources.find_reward(registry, f"{mine}:MyReward")
    assert (found.spec.name, found.spec.summary, found.spec.image_format) == ("my_reward", "Twice as good.", "pil")
    assert (found.provenance.distribution, found.spec.default_prompts) == (str(mine), sources.NO_PROMPTS)
    assert found.taken_as == "a tdmr1 reward with Options"
    assert sources.create_reward(sources.find_reward(registry, f"{mine}:MyReward"), {"factor": 3})(
        batch_of([0, 0])
    ).scores == [3.0, 3.0]
    with pytest.raises(Tdmr1Error, match="unknown option 'facter'"):
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
def test_what_a_file_may_hold(registry, mine, attribute, score, taken_as):
    source = f"{mine}:{attribute}"
    assert sources.find_reward(registry, source).taken_as == taken_as
    assert sources.create_reward(sources.find_reward(registry, source), {})(batch_of([0])).scores == [score]
    if attribute != "SPEC":
        with pytest.raises(Tdmr1Error, match="option"):
            sources.create_reward(sources.find_reward(registry, source), {"factor": 3})


@pytest.mark.parametrize(
    ("attribute", "loaded"), [("MyReward", "MyReward"), ("SPEC", "MyReward"), ("peers", "peers"), ("ready", "ready")]
)
def test_another_process_is_told_where_things_lie(registry, mine, attribute, loaded):
    reference = sources.reference_for(sources.find_reward(registry, f"{mine}:{attribute}"), {})
    assert reference.factory == {"file": str(mine), "attr": loaded}
    images = np.ones((2, 4, 4, 3), np.uint8)
    assert len(build(reference, "it")(batch_of(images)).scores) == 2
    elsewhere = sources.reference_for(sources.find_reward(registry, f"{mine}:{attribute}", HERE), {}, HERE)
    assert (elsewhere.factory, elsewhere.paths, elsewhere.modules) == (reference.factory, (), {})


def test_a_module_is_found_by_another_process(registry, folder):
    (folder / "own_module.py").write_text("def score(batch):\n    raise OSError\n")
    reference = sources.reference_for(sources.find_reward(registry, "own_module:score", HERE), {}, HERE)
    assert (reference.factory, reference.paths) == ("own_module:score", [str(folder)])
    assert "own_module" not in sys.modules


@pytest.mark.parametrize("attribute", ["MyReward", "SPEC", "peers", "ready"])
def test_what_a_file_holds_for_another_environment_is_seen_there(registry, mine, attribute):
    elsewhere = sources.find_reward(registry, f"{mine}:{attribute}", HERE)
    assert private_name(mine) not in sys.modules
    here = sources.find_reward(registry, f"{mine}:{attribute}")
    assert vars(elsewhere.spec) == vars(here.spec)
    assert (elsewhere.provenance, elsewhere.taken_as) == (here.provenance, here.taken_as)


def test_what_cannot_be_seen_there_is_told(registry, mine):
    with pytest.raises(Tdmr1Error, match="has no 'scroe'") as caught:
        sources.find_reward(registry, f"{mine}:scroe", HERE)
    assert caught.value.hint == "did you mean 'score'?"
    with pytest.raises(Tdmr1Error, match="could not be started with /no/python"):
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


def test_what_auto_stands_for_in_another_environment_is_asked_there(folder, monkeypatch):
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
        with pytest.raises(Tdmr1Error, match="unknown option 'sise'"):
            sources.freeze_options(sources.find_reward(registry, source, HERE), {"sise": 2}, HERE)


def test_a_server_is_no_other_process(registry):
    with pytest.raises(Tdmr1Error, match="already runs on a server"):
        sources.reference_for(sources.find_reward(registry, "remote:http://127.0.0.1:8000/object_count"), {})


def test_what_auto_stands_for_is_frozen(registry, mine, monkeypatch):
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


def test_a_spec_keeps_its_own_name_and_prompts(registry, mine):
    spec = sources.find_reward(registry, f"{mine}:SPEC").spec
    assert (spec.name, spec.default_prompts) == ("special", "count")


def test_a_peers_function_gets_arrays(registry, mine):
    found = sources.find_reward(registry, f"{mine}:peers")
    assert found.spec.image_format == "array"
    assert found.taken_as == "a flow_grpo-style function, peers(images, prompts, metadata)"


def test_a_file_leaves_sys_path_as_it_was(registry, mine):
    before = list(sys.path)
    sources.find_reward(registry, f"{mine}:score")
    assert sys.path == before
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("attribute", "message", "hint"),
    [
        ("scroe", "has no 'scroe'", "did you mean 'score'?"),
        ("number", "is a int, which cannot be called", "known are"),
        ("Plain.nothing", "has no 'nothing'", ""),
    ],
)
def test_what_a_file_does_not_hold(registry, mine, attribute, message, hint):
    with pytest.raises(Tdmr1Error, match=message) as caught:
        sources.find_reward(registry, f"{mine}:{attribute}")
    assert hint in caught.value.hint


def test_a_missing_file_names_its_neighbour(registry, mine):
    with pytest.raises(Tdmr1Error, match="there is no file") as caught:
        sources.find_reward(registry, f"{mine.parent}/mien.py:score")
    assert caught.value.hint == "did you mean 'mine.py'?"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_thing", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("raise RuntimeError('a\\nb')", "RuntimeError: a b"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("def f(:", "line 1, could not be run: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_sentence(registry, tmp_path, text, said):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(Tdmr1Error) as caught:
        sources.find_reward(registry, f"{path}:fn")
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert private_name(path) not in sys.modules


def test_a_module_of_the_current_folder(registry, folder):
    (folder / "my_pack_17").mkdir()
    (folder / "my_pack_17" / "__init__.py").write_text("")
    (folder / "my_pack_17" / "judge.py").write_text("def score(batch):\n    return 1\n")
    found = sources.find_reward(registry, "my_pack_17.judge:score")
    assert found.provenance.distribution == "my_pack_17.judge"
    with pytest.raises(Tdmr1Error, match=r"there is no module .my_pack_17\.jugde"):
        sources.find_reward(registry, "my_pack_17.jugde:score")
    with pytest.raises(Tdmr1Error, match=r"the module my_pack_17\.judge has no 'scroe'"):
        sources.find_reward(registry, "my_pack_17.judge:scroe")


def test_what_a_module_cannot_import_is_not_taken_for_the_module(registry, folder):
    (folder / "importer_18.py").write_text("import no_such_thing")
    with pytest.raises(Tdmr1Error, match="the module importer_18 could not be imported: ModuleNotFoundError"):
        sources.find_reward(registry, "importer_18:score")


def test_a_server_is_described_without_asking_it(registry):
    found = sources.find_reward(registry, "remote:http://127.0.0.1:9/ocr_match")
    assert (found.spec.name, found.provenance.distribution) == ("ocr_match", "http://127.0.0.1:9/ocr_match")


def test_scores_of_a_native_function_are_its_own(registry, mine):
    assert isinstance(
        sources.create_reward(sources.find_reward(registry, f"{mine}:score"), {})(batch_of([0])), RewardResult
    )
