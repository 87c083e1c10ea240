import os
import subprocess
import sys
import types
from functools import partial

import pluggy
import pytest
from support.errors import raises
from support.paths import ROOT
from support.plugin_folder import registering, write_plugin
from support.reward_batches import active, make_batch

from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling.process import ProcessHost
from tdmr1_rewards.calling.reference import check_options
from tdmr1_rewards.registry import availability, load_plugins
from tdmr1_rewards.scoring.runner import RewardRunner
from tdmr1_rewards.sources.source import create_reward, find_reward, reference_for

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder on sys.path. Its modules are removed from sys.modules afterwards."""
    monkeypatch.delenv("TDMR1_DISABLE_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in sys.modules[name].__file__:
            del sys.modules[name]


@pytest.fixture
def engine_hooks():
    """The hooks of a higher layer, as in tdmr1_core."""
    hookspec = pluggy.HookspecMarker("tdmr1")
    module = types.ModuleType("engine_hooks")

    @hookspec
    def tdmr1_after_rollout(trajectory):
        """Observe."""

    @hookspec
    def tdmr1_register_models(register):
        """Register."""

    module.tdmr1_after_rollout = tdmr1_after_rollout
    module.tdmr1_register_models = tdmr1_register_models
    return module


def record_of(plugins, name):
    (record,) = [record for record in plugins.records if record.provenance.plugin == name]
    return record


def test_built_in_rewards_are_registered_through_the_hook():
    plugins = load_plugins()
    registered = plugins.rewards.get("object_count")
    assert isinstance(registered.spec, RewardSpec)
    assert registered.provenance.plugin == "builtin"
    assert registered.provenance.distribution == "tdmr1"
    assert record_of(plugins, "builtin").error is None


def test_a_plugin_is_loaded_from_its_entry_point(folder):
    write_plugin(folder, "foo", "foo_mod", registering("foo_reward"), entry_point="foo_plugin")
    plugins = load_plugins()
    assert "foo_reward" in plugins.rewards.names()
    provenance = plugins.rewards.get("foo_reward").provenance
    assert (provenance.plugin, provenance.distribution, provenance.version) == ("foo_plugin", "foo", "1.0")
    assert provenance.module == "foo_mod"
    assert str(provenance) == "foo 1.0"


def test_listing_imports_nothing_heavy_even_with_a_plugin(tmp_path):
    write_plugin(tmp_path, "foo", "foo_mod", registering("foo_reward"))
    program = """
import sys
from tdmr1_rewards.registry import availability, load_plugins
rewards = load_plugins().rewards
print(",".join(f"{e.spec.name} of {e.provenance}" for e in rewards.entries() if e.spec.name == "foo_reward"))
print(sorted({"numpy", "scipy", "torch", "PIL", "pydantic", "diffusers"} & set(sys.modules)))
from tdmr1_rewards import RewardOptions
print("pydantic" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["foo_reward of foo 1.0", "[]", "True"]


def test_a_broken_plugin_gets_an_error_and_the_others_load(folder):
    write_plugin(folder, "aaa", "aaa_mod", "import no_such_thing")
    write_plugin(folder, "bbb", "bbb_mod", "raise SystemExit('bye')")
    raising = registering("lost_reward") + "    raise RuntimeError('first line\\nsecond line')"
    write_plugin(folder, "ccc", "ccc_mod", raising)
    write_plugin(folder, "ddd", "ddd_mod", registering("Not-Snake"))
    write_plugin(
        folder,
        "eee",
        "eee_mod",
        """
        from tdmr1_rewards import hookimpl

        @hookimpl
        def tdmr1_register_rewards(register):
            register({"name": "x"})
        """,
    )
    write_plugin(folder, "fff", "fff_mod", "def tdmr1_register_rewards(register): pass")
    write_plugin(
        folder,
        "ggg",
        "ggg_mod",
        """
        from tdmr1_rewards import hookimpl

        @hookimpl
        def tdmr1_register_rewards(registry): pass
        """,
    )
    write_plugin(folder, "zzz", "zzz_mod", registering("last_reward"))
    plugins = load_plugins()

    def error(name):
        return record_of(plugins, name).error

    missing = "ModuleNotFoundError: No module named 'no_such_thing'"
    assert error("aaa_mod") == f"could not be loaded: {missing} ({folder / 'aaa_mod.py'}:1)"
    assert error("bbb_mod") == f"could not be loaded: SystemExit: bye ({folder / 'bbb_mod.py'}:1)"
    assert error("ccc_mod").startswith("tdmr1_register_rewards raised RuntimeError: first line second line (")
    assert error("ccc_mod").endswith(", in tdmr1_register_rewards)")
    assert "'Not-Snake' is not in snake case" in error("ddd_mod")
    assert error("eee_mod") == "tdmr1_register_rewards registered a dict, but must register a RewardSpec"
    assert error("fff_mod") == "implements no hook (is its function marked @hookimpl?)"
    assert "PluginValidationError" in error("ggg_mod")
    assert "\n" not in error("ggg_mod")
    assert error("zzz_mod") is None
    names = plugins.rewards.names()
    assert {"object_count", "last_reward"} <= set(names)
    assert "lost_reward" not in names


def test_an_unknown_hook_is_an_error_if_all_hooks_are_known(folder, engine_hooks):
    source = registering("foo_reward") + "\n@hookimpl\ndef tdmr1_after_rolout(trajectory): pass\n"
    write_plugin(folder, "foo", "foo_mod", source)
    optional = "\n@hookimpl(optionalhook=True)\ndef tdmr1_of_the_future(): pass\n"
    write_plugin(folder, "goo", "goo_mod", registering("goo_reward") + optional)
    assert record_of(load_plugins(), "foo_mod").error is None
    plugins = load_plugins([engine_hooks])
    expected = "implements the unknown hook 'tdmr1_after_rolout' (did you mean 'tdmr1_after_rollout'?)"
    assert record_of(plugins, "foo_mod").error == expected
    assert record_of(plugins, "goo_mod").error is None
    assert record_of(plugins, "builtin").error is None
    assert "foo_reward" in plugins.rewards.names()


def test_higher_layers_add_built_in_modules_and_hooks(folder, engine_hooks):
    models = "from tdmr1_rewards import hookimpl\n\n@hookimpl\ndef tdmr1_register_models(register): register('tiny')\n"
    (folder / "core_models.py").write_text(models)
    write_plugin(folder, "foo", "foo_mod", models.replace("register('tiny')", "register(1)"))
    plugins = load_plugins([engine_hooks], ["core_models"])
    collected = plugins.collect("tdmr1_register_models", str)
    assert [(model, provenance.module) for model, provenance in collected] == [("tiny", "core_models")]
    assert record_of(plugins, "foo_mod").error == "tdmr1_register_models registered a int, but must register a str"


def test_the_error_for_a_name_conflict_names_both_plugins(folder):
    # The same entry-point name in both distributions is no conflict by itself.
    write_plugin(folder, "foo", "foo_mod", registering("same_reward"), entry_point="rewards")
    write_plugin(folder, "goo", "goo_mod", registering("same_reward"), entry_point="rewards")
    rewards = load_plugins().rewards
    for look_up in (rewards.get, partial(find_reward, rewards)):
        with raises("reward-name-conflict", reward="same_reward", plugins=["foo 1.0", "goo 1.0"]) as caught:
            look_up("same_reward")
        assert "foo 1.0 (foo_mod) and goo 1.0 (goo_mod)" in caught.value.message
        assert "TDMR1_DISABLE_PLUGINS=goo" in caught.value.hint
    claims = [entry for entry in rewards.entries() if entry.spec.name == "same_reward"]
    assert [(str(c.provenance), *map(str, c.rivals)) for c in claims] == [
        ("foo 1.0", "goo 1.0"),
        ("goo 1.0", "foo 1.0"),
    ]
    assert rewards.names().count("same_reward") == 1
    assert all(not entry.rivals for entry in rewards.entries() if entry.spec.name == "object_count")


@pytest.mark.parametrize("value", ["foo_mod, nobody", "foo,nobody"])
def test_disabled_plugins_are_listed_but_never_imported(folder, monkeypatch, value):
    write_plugin(folder, "foo", "foo_mod", registering("foo_reward"))
    monkeypatch.setenv("TDMR1_DISABLE_PLUGINS", value)
    plugins = load_plugins()
    record = record_of(plugins, "foo_mod")
    assert record.disabled
    assert record.error is None
    assert "foo_mod" not in sys.modules
    assert "foo_reward" not in plugins.rewards.names()
    assert "object_count" in plugins.rewards.names()
    assert not record_of(plugins, "builtin").disabled
    assert plugins.unmatched == ("nobody",)


def test_the_built_ins_can_be_disabled(monkeypatch):
    monkeypatch.setenv("TDMR1_DISABLE_PLUGINS", "builtin")
    plugins = load_plugins()
    assert record_of(plugins, "builtin").disabled
    assert "object_count" not in plugins.rewards.names()


def test_an_unknown_name_gets_a_similar_name_as_hint():
    with raises("reward-unknown", reward="object_cuont") as caught:
        load_plugins().rewards.get("object_cuont")
    assert caught.value.hint == "did you mean 'object_count'?"


def test_options_are_validated_before_a_reward_is_built():
    from tdmr1_rewards.builtin.object_count import ObjectCount

    rewards = load_plugins().rewards
    assert isinstance(create_reward(find_reward(rewards, "object_count"), {"score": "exact"}), ObjectCount)
    with raises("reward-options", options=["min_area", "scor"]) as caught:
        create_reward(find_reward(rewards, "object_count"), {"scor": "exact", "min_area": 0})
    assert caught.value.values["reward"].startswith("reward 'object_count' (from tdmr1")


WORKSHOP = """
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.options import RewardOptions

class Options(RewardOptions):
    size: int = 1

class NotOptions:
    pass

def make(options=None):
    return lambda batch: options

def fails():
    raise OSError("no weights")

def fails_with_hint():
    raise Tdmr1Error("no weights", "download them", code="reward-weights", values={"file": "w.pt"})

def makes_nothing():
    return None
"""


@pytest.mark.parametrize(
    ("factory", "options_class", "options", "code", "values"),
    [
        ("workshop:make", None, {"size": 2}, "reward-options", {"options": ["size"]}),
        ("workshop:make", "workshop:NotOptions", {}, "reward-spec", {"found": "workshop:NotOptions"}),
        ("workshop:missing", None, {}, "reward-import", {"source": "workshop:missing"}),
        ("no_such_module:x", None, {}, "reward-import", {"source": "no_such_module:x"}),
        ("workshop:fails", None, {}, "reward-build", {"error": "OSError: no weights"}),
        ("workshop:fails_with_hint", None, {}, "reward-weights", {"file": "w.pt"}),
        ("workshop:makes_nothing", None, {}, "reward-build", {"type": "NoneType"}),
    ],
)
def test_errors_of_rewards_that_cannot_be_built(folder, factory, options_class, options, code, values):
    (folder / "workshop.py").write_text(WORKSHOP)
    write_plugin(folder, "foo", "foo_mod", registering("w", factory, options_class))
    owner = {} if code == "reward-weights" else {"reward": "reward 'w' (from foo 1.0)"}
    with raises(code, **values, **owner):
        create_reward(find_reward(load_plugins().rewards, "w"), options)


def test_a_factory_is_called_with_its_options_or_without_an_argument(folder):
    (folder / "workshop.py").write_text(WORKSHOP)
    write_plugin(folder, "foo", "foo_mod", registering("with_options", "workshop:make", "workshop:Options"))
    write_plugin(folder, "goo", "goo_mod", registering("without", "workshop:make"))
    rewards = load_plugins().rewards
    assert create_reward(find_reward(rewards, "with_options"), {"size": 3})(None).size == 3
    assert create_reward(find_reward(rewards, "without"), {})(None) is None


FACTORIES = """
from tdmr1_rewards import RewardOptions, RewardResult

class Options(RewardOptions):
    scale: float = 2.0

def plain(batch):
    return RewardResult([1.0] * len(batch))

def flow(images, prompts, metadata, scale=1.0):
    return [scale] * len(prompts), {}

def one(prompt, image):
    return 1.0

async def later(prompts, completions, **columns):
    return [1.0] * len(prompts)

class Scorer:
    def __init__(self, scale=1.0):
        self.scale = scale

    def score(self, pixels, prompts):
        return [self.scale] * len(prompts)

class Unusual:
    def __call__(self, *args):
        return RewardResult([1.0] * len(args[0]))

class WithModel:
    def __init__(self, options: Options):
        self.scale = options.scale

    def __call__(self, batch):
        return RewardResult([self.scale] * len(batch))

async def opened():
    return flow

def on_device(device):
    assert device == "cpu"
    return flow

def from_options(options):
    return Scorer(options.scale)

INSTANCE = Scorer(1.0)
"""


@pytest.mark.parametrize(
    ("attribute", "model", "options", "score"),
    [
        ("plain", None, {}, 1.0),
        ("flow", None, {}, 1.0),
        ("flow", None, {"scale": 3.0, "image_format": "array"}, 3.0),
        ("one", None, {}, 1.0),
        ("later", None, {}, 1.0),
        ("Scorer", None, {}, 1.0),
        ("Scorer", None, {"scale": 3.0, "image_format": "array"}, 3.0),
        ("INSTANCE", None, {}, 1.0),
        ("Unusual", None, {}, 1.0),
        ("WithModel", None, {}, 2.0),
        ("WithModel", "Options", {"scale": 3.0}, 3.0),
        ("opened", None, {}, 1.0),
        ("on_device", None, {}, 1.0),
        ("from_options", "Options", {}, 2.0),
    ],
)
def test_a_registered_factory_may_be_whatever_another_source_may_be(folder, attribute, model, options, score):
    (folder / "factories.py").write_text(FACTORIES)
    model = model and f"factories:{model}"
    write_plugin(folder, "foo", "foo_mod", registering("w", f"factories:{attribute}", model))
    found = find_reward(load_plugins().rewards, "w")
    check_options(found, options)
    with RewardRunner([active(create_reward(found, options))], "weighted_sum", 1) as runner:
        assert runner.score(make_batch("a", "b")).per_reward["x"] == [score, score]
    host = ProcessHost(reference_for(found, options), "w", "pil")
    host.start()
    try:
        host.setup("cpu")
        assert host.call(make_batch("a", "b")).scores == [score, score]
    finally:
        host.close()


@pytest.mark.parametrize("attribute", ["plain", "flow", "Scorer", "Unusual"])
def test_an_option_that_a_registered_factory_does_not_know_is_refused_early(folder, attribute):
    (folder / "factories.py").write_text(FACTORIES)
    write_plugin(folder, "foo", "foo_mod", registering("w", f"factories:{attribute}"))
    found = find_reward(load_plugins().rewards, "w")
    for refuse in (check_options, create_reward, reference_for):
        with raises("reward-options", options=["colour"], reward="reward 'w' (from foo 1.0)"):
            refuse(found, {"colour": "red"})


def test_the_default_prompts_are_optional():
    assert RewardSpec(name="x", summary="", factory="a:b").default_prompts == ""


def test_the_error_for_an_unknown_reward_names_the_plugins_that_failed(folder):
    write_plugin(folder, "broken", "broken_mod", "raise TypeError('it needs 1 argument')")
    write_plugin(folder, "fine", "fine_mod", registering("fine"))
    for source in ("warm", "some.warm"):
        with raises("reward-unknown", reward=source) as caught:
            find_reward(load_plugins().rewards, source)
        errors = caught.value.values["broken_plugins"]
        place = f"{folder / 'broken_mod.py'}:1"
        assert errors == {"broken 1.0": f"could not be loaded: TypeError: it needs 1 argument ({place})"}
        assert all(text in caught.value.message for item in errors.items() for text in item)


def needing(*requires, install=None):
    """A spec that requires these modules."""
    return RewardSpec(name="x", summary="", factory="a:b", default_prompts="count", requires=requires, install=install)


@pytest.mark.parametrize("requires", [(), ("json",), ("no_such_20|json",), ("json|no_such_20",), ("json.decoder",)])
def test_a_reward_is_usable_if_its_modules_are_installed(requires):
    found = availability(needing(*requires, install="tdmr1[x]"))
    assert found.usable
    assert str(found) == "yes"
    assert found.remedy is None


@pytest.mark.parametrize(
    ("requires", "install", "text"),
    [
        (("no_such_20",), None, "no, needs no_such_20"),
        (("no_such_20", "json"), "tdmr1[x]", "no, needs no_such_20: pip install 'tdmr1[x]'"),
        (("no_such_20|no_such_21", "no_such_22"), None, "no, needs no_such_20 or no_such_21 and no_such_22"),
        (("no_such_20.sub",), None, "no, needs no_such_20.sub"),
    ],
)
def test_the_text_of_an_unusable_reward_names_what_is_missing(requires, install, text):
    found = availability(needing(*requires, install=install))
    assert not found.usable
    assert str(found) == text


def test_availability_imports_nothing(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    assert availability(needing("this")).usable
    assert "this" not in sys.modules


def test_a_module_that_is_blocked_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "blocked_23", None)
    assert not availability(needing("blocked_23")).usable
