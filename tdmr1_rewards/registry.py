"""Loads plugins and registers their rewards by name. The code of a reward is not imported here.

Plugins are loaded, and their hooks called, one at a time: with pluggy's own functions, one broken plugin would prevent
all others from loading. What is wrong with a plugin is kept in its `PluginRecord`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import pluggy

from tdmr1_rewards import hookspecs
from tdmr1_rewards.api import RewardSpec
from tdmr1_rewards.calling import session
from tdmr1_rewards.calling.process_state import guarded_import
from tdmr1_rewards.calling.user_code import describe_raised
from tdmr1_rewards.errors import Tdmr1Error, close_match_hint
from tdmr1_rewards.sources.parsing import Source
from tdmr1_rewards.texts.redaction import redact

ENTRY_POINT_GROUP = "tdmr1"
DISABLE_VARIABLE = "TDMR1_DISABLE_PLUGINS"
BUILTIN = "builtin"
"""The plugin name of everything that is part of tdmr1."""

OWN_SPEC = "a RewardSpec"
"""What a source that names a RewardSpec is taken as."""

Registered = TypeVar("Registered")


@dataclass(frozen=True)
class Provenance:
    """Where a plugin comes from: its entry-point name, its distribution with version, and its module."""

    plugin: str
    distribution: str
    version: str | None
    module: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}" if self.version else self.distribution


@dataclass
class PluginRecord:
    """A plugin. `error` is what is wrong with it; `disabled` is whether TDMR1_DISABLE_PLUGINS names it."""

    provenance: Provenance
    error: str | None = None
    disabled: bool = False

    def add_error(self, sentence: str) -> None:
        """Append a sentence to `error`."""
        self.error = f"{self.error}; {sentence}" if self.error else sentence


@dataclass(frozen=True)
class RegisteredReward:
    """The spec and the provenance of a reward.

    `rivals` are other plugins that register the same name. `taken_as` describes a reward that no plugin registered,
    such as "a flow_grpo-style function". `image_form` is the format in which such a function receives images: "tensor",
    "pil", "array", "tested" if it does not declare one, or None if it is not known before the reward is built. `source`
    is the source it was found by; None if it was not searched for.
    """

    spec: RewardSpec
    provenance: Provenance
    rivals: tuple[Provenance, ...] = ()
    taken_as: str | None = None
    image_form: str | None = None
    source: Source | None = None

    def __str__(self) -> str:
        return f"reward {self.spec.name!r} (from {self.provenance})"

    @property
    def has_own_spec(self) -> bool:
        """Whether the source names a RewardSpec, whose factory is imported only when the reward is built."""
        return self.taken_as == OWN_SPEC

    def fingerprint(self, python: Path | None = None) -> str:
        """A text that changes with the code of the reward: the version of its package, or the SHA-256 of its file.

        For an object of a Python program (`calling/session.py`), it is the SHA-256 of the code of this object. For a
        server, and for a module of another environment (`python`), it is only the address or the module's name.
        """
        source = self.source
        file: str | None = str(source.path) if source and source.kind == "file" else None
        if source and source.place == session.MODULE:
            return session.fingerprint(source.attribute)
        if source and source.kind == "module" and python is None:
            file = getattr(sys.modules.get(source.place), "__file__", None)
        try:
            content = Path(file).read_bytes() if file else None
        except OSError:  # for example a module in an archive
            content = None
        if source is None or content is None:
            return redact(str(self.provenance))
        return f"{source.attribute} of sha256 {hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class Availability:
    """The modules that are missing for a reward ("a or b" if one of two is enough), and the package that has them."""

    missing: tuple[str, ...] = ()
    install: str | None = None

    @property
    def usable(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing

    @property
    def remedy(self) -> str | None:
        """The command that installs what is missing; None if nothing is missing or the spec names no package."""
        return f"pip install '{self.install}'" if self.missing and self.install else None

    def __str__(self) -> str:
        if self.usable:
            return "yes"
        return f"no, needs {' and '.join(self.missing)}" + (f": {self.remedy}" if self.remedy else "")


def availability(spec: RewardSpec) -> Availability:
    """Look up the modules that a spec requires."""
    missing = tuple(
        " or ".join(alternatives)
        for requirement in spec.requires
        if not any(map(is_installed, alternatives := requirement.split("|")))
    )
    return Availability(missing, spec.install)


def is_installed(module: str) -> bool:
    """Whether a module is installed. Of a dotted name, only the top-level package is looked up."""
    try:
        return importlib.util.find_spec(module.strip().partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


class RewardRegistry:
    """Every registered reward by name. `records` are the plugins; the error for an unknown name lists broken ones."""

    def __init__(self, rewards: Iterable[tuple[RewardSpec, Provenance]], records: Sequence[PluginRecord] = ()) -> None:
        self._records = records
        self._claims: dict[str, list[RegisteredReward]] = {}
        for spec, provenance in rewards:
            self._claims.setdefault(spec.name, []).append(RegisteredReward(spec, provenance))

    def names(self) -> list[str]:
        """All names, sorted. A name that several plugins register is listed once."""
        return sorted(self._claims)

    def entries(self) -> list[RegisteredReward]:
        """All rewards, sorted by name. A name that two plugins register has two entries, each with `rivals`."""
        entries = []
        for name in self.names():
            claims = self._claims[name]
            for claim in claims:
                rivals = tuple(other.provenance for other in claims if other is not claim)
                entries.append(replace(claim, rivals=rivals))
        return entries

    def get(self, name: str) -> RegisteredReward:
        """The reward of this name. Raises Tdmr1Error for an unknown name, or one that several plugins register."""
        if name not in self._claims:
            raise self._unknown(name)
        claims = self._claims[name]
        if len(claims) > 1:
            claimants = " and ".join(f"{claim.provenance} ({claim.provenance.module})" for claim in claims)
            raise Tdmr1Error(
                f"the reward name {name!r} is registered by {claimants}",
                f"uninstall one, or disable it: {DISABLE_VARIABLE}={claims[-1].provenance.distribution}",
                code="reward-name-conflict",
                values={"reward": name, "plugins": [str(claim.provenance) for claim in claims]},
            )
        return claims[0]

    def _unknown(self, name: str) -> Tdmr1Error:
        broken = {str(record.provenance): record.error for record in self._records if record.error}
        failures = "".join(f"; the plugin {plugin} {error}" for plugin, error in broken.items())
        return Tdmr1Error(
            f"there is no reward {name!r}{failures}",
            close_match_hint(name, self._claims),
            code="reward-unknown",
            values={"reward": name, "broken_plugins": broken},
        )


@dataclass(frozen=True)
class Plugins:
    """All plugins, the pluggy manager that calls their hooks, and the rewards that they register.

    `unmatched` are the names in TDMR1_DISABLE_PLUGINS that belong to no plugin.
    """

    manager: pluggy.PluginManager
    records: tuple[PluginRecord, ...]
    rewards: RewardRegistry
    unmatched: tuple[str, ...]

    def record_of(self, provenance: Provenance) -> PluginRecord:
        """The record of a plugin. Raises StopIteration if there is none."""
        return next(record for record in self.records if record.provenance == provenance)

    def collect(self, hook: str, expected: type[Registered]) -> list[tuple[Registered, Provenance]]:
        """The objects that plugins register through `hook(register)`, in the order of `records`.

        If the hook of a plugin raises, or registers an object that is not an `expected`, its record gets an error and
        none of its objects are returned.
        """
        return _collect(self.manager, self.records, hook, expected)


def load_plugins(extra_hookspecs: Sequence[ModuleType] = (), builtin_modules: Sequence[str] = ()) -> Plugins:
    """Load every plugin: the built-in modules first, then the entry points of group `tdmr1`.

    `extra_hookspecs` are the modules with the hooks of the higher layers. Without them not all hooks are known, so
    unknown hook names are errors only with them. `builtin_modules` are further modules of tdmr1. A broken plugin raises
    nothing; its record gets an error.
    """
    manager = pluggy.PluginManager("tdmr1")
    for specs in (hookspecs, *extra_hookspecs):
        manager.add_hookspecs(specs)
    disabled = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",") if name.strip()}
    records = []
    for provenance, load in [*_builtins(("tdmr1_rewards.builtin", *builtin_modules)), *_installed()]:
        record = PluginRecord(provenance, disabled=not disabled.isdisjoint(_identifiers(provenance)))
        records.append(record)
        if not record.disabled:
            _register(manager, record, load)
    if extra_hookspecs:
        _check_hook_names(manager, records)
    return Plugins(
        manager=manager,
        records=tuple(records),
        rewards=RewardRegistry(_collect(manager, records, "tdmr1_register_rewards", RewardSpec), records),
        unmatched=tuple(sorted(disabled.difference(*(_identifiers(record.provenance) for record in records)))),
    )


def _builtins(modules: Iterable[str]) -> list[tuple[Provenance, Callable[[], Any]]]:
    try:
        version: str | None = importlib.metadata.version("tdmr1")
    except importlib.metadata.PackageNotFoundError:
        version = None
    return [
        (Provenance(BUILTIN, "tdmr1", version, module), partial(importlib.import_module, module)) for module in modules
    ]


def _installed() -> list[tuple[Provenance, Callable[[], Any]]]:
    found: list[tuple[Provenance, Callable[[], Any]]] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        distribution, version = (entry.dist.name, entry.dist.version) if entry.dist else ("unknown", None)
        found.append((Provenance(entry.name, distribution, version, entry.value), entry.load))
    # Entry points come in the order of sys.path; sorting makes the result independent of it.
    return sorted(found, key=lambda item: (item[0].distribution, item[0].plugin))


def _identifiers(provenance: Provenance) -> set[str]:
    return {provenance.plugin, provenance.distribution}


def _key(provenance: Provenance) -> str:
    """The name under which pluggy knows the plugin. Entry-point names alone are not unique."""
    return f"{provenance.distribution}:{provenance.plugin}:{provenance.module}"


def _register(manager: pluggy.PluginManager, record: PluginRecord, load: Callable[[], Any]) -> None:
    try:
        with _guarded(record.provenance):
            plugin = load()
        hash(plugin)  # pluggy keeps plugins in sets
        manager.register(plugin, name=_key(record.provenance))
    except (Exception, SystemExit) as error:
        # Older versions of pluggy leave a rejected plugin half registered.
        manager.unregister(name=_key(record.provenance))
        record.add_error(f"could not be loaded: {describe_raised(error)}")
        return
    if not manager.get_hookcallers(plugin):
        record.add_error("implements no hook (is its function marked @hookimpl?)")


def _guarded(provenance: Provenance) -> AbstractContextManager[None]:
    """A context that restores what an installed plugin changes in the process, with a warning."""
    return nullcontext() if provenance.plugin == BUILTIN else guarded_import(f"plugin {provenance.plugin}")


def _check_hook_names(manager: pluggy.PluginManager, records: Sequence[PluginRecord]) -> None:
    """Like pluggy's `check_pending`, which raises at the first unknown hook; here every plugin gets its error."""
    callers = {name: caller for name, caller in vars(manager.hook).items() if isinstance(caller, pluggy.HookCaller)}
    known = [name for name, caller in callers.items() if caller.has_spec()]
    records_by_key = {_key(record.provenance): record for record in records}
    for name in sorted(callers.keys() - set(known)):
        for implementation in callers[name].get_hookimpls():
            if not implementation.optionalhook:
                record = records_by_key[implementation.plugin_name]
                record.add_error(f"implements the unknown hook {name!r} ({close_match_hint(name, known)})")


def _collect(
    manager: pluggy.PluginManager, records: Sequence[PluginRecord], hook: str, expected: type[Registered]
) -> list[tuple[Registered, Provenance]]:
    plugins = [manager.get_plugin(_key(record.provenance)) for record in records]
    collected: list[tuple[Registered, Provenance]] = []
    for record, plugin in zip(records, plugins, strict=True):
        if plugin is None:
            continue
        call = manager.subset_hook_caller(hook, [other for other in plugins if other not in (plugin, None)])
        registered: list[Registered] = []
        try:
            with _guarded(record.provenance):
                call(register=registered.append)
        except (Exception, SystemExit) as error:
            record.add_error(f"{hook} raised {describe_raised(error)}")
            continue
        wrong = [type(item).__name__ for item in registered if not isinstance(item, expected)]
        if wrong:
            record.add_error(f"{hook} registered a {wrong[0]}, but must register a {expected.__name__}")
            continue
        collected += [(item, record.provenance) for item in registered]
    return collected
