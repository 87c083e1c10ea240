"""Where a reward comes from: a registered name, a function in a file or a module, or a server.

    object_count                            registered by a plugin (`tdmr1 rewards list`)
    path/to/file.py:fn                      what a file holds: the file is run under a private module name
    package.module:fn                       what a module holds, importable as `python -m` would find it
    remote:http://host:port/object_count    a reward that `tdmr1 rewards serve` serves elsewhere; several: URL,URL

`fn` may be a RewardSpec, a Reward class (with a RewardOptions subclass as its only parameter, or none), a Reward, a
function of a RewardBatch, or what another toolkit would take (`signatures.py`).
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tdmr1_rewards.api import Reward, RewardSpec
from tdmr1_rewards.calling import import_file as loading
from tdmr1_rewards.calling import reference
from tdmr1_rewards.calling.reference import Reference, build, reference_of, resolve, validated_options
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.sources.foreign import adapt
from tdmr1_rewards.sources.signatures import recognise

if TYPE_CHECKING:
    from tdmr1_rewards.registry import Provenance, RegisteredReward, RewardRegistry

ATTRIBUTE = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
URL = r"https?://[^/,\s]+/[^:,\s]+"
REMOTE = f"remote:{URL}(?:,{URL})*"
FILE = rf".+\.py:{ATTRIBUTE}"
MODULE = rf"[A-Za-z_][\w.]*:{ATTRIBUTE}"
REGISTERED = r"[^:]+"
PATTERN = f"(?:{REMOTE}|{FILE}|{MODULE}|{REGISTERED})"
"""A source, as a part of a larger regular expression: a number after a further colon is no part of it."""

FORMS = (
    "a source is a name of `tdmr1 rewards list`, path/to/file.py:fn, package.module:fn or remote:http://host:port/NAME"
)
NO_PROMPTS = ""
"""The default prompts of what no plugin registered: the first prompt set that the model has."""

Kind = Literal["registered", "file", "module", "remote"]


@dataclass(frozen=True)
class Source:
    """A source taken apart: `place` is the name, the file, the module or the address, `attribute` what it holds."""

    kind: Kind
    place: str
    attribute: str = ""

    def __str__(self) -> str:
        if self.kind == "remote":
            return f"remote:{self.place}"
        return f"{self.place}:{self.attribute}" if self.attribute else self.place

    @property
    def name(self) -> str:
        """What its reward is called where nobody gives it a name, in snake case: the function, or the path's end."""
        if self.kind == "registered":
            return self.place
        return snake_case((self.attribute or self.place).rpartition("/")[2].rpartition(".")[2])

    def absolute(self) -> Source:
        """The same source, meant from any folder: a file's path is made absolute."""
        return replace(self, place=str(self.path.absolute())) if self.kind == "file" else self

    @property
    def path(self) -> Path:
        """The file of a source that is one."""
        return Path(self.place).expanduser()

    def load(self) -> Any:
        """What a file or a module holds. Raises Tdmr1Error if it cannot be had."""
        if self.kind == "file":
            return loading.load_from_file(self.path, self.attribute)
        return loading.load_from_module(self.place, self.attribute)


def parse(text: str) -> Source:
    """A source as it is written. Raises Tdmr1Error for one that is of no known form."""
    if re.fullmatch(REMOTE, text):
        return Source("remote", text.removeprefix("remote:"))
    if text.startswith("remote:"):
        raise Tdmr1Error(
            f"{text!r} is not the address of a reward", "write it like remote:http://127.0.0.1:8000/object_count"
        )
    if re.fullmatch(f"{FILE}|{MODULE}", text):
        place, _, attribute = text.rpartition(":")
        return Source("file" if place.endswith(".py") else "module", place, attribute)
    if text.partition(":")[0].endswith(".py"):
        raise Tdmr1Error(f"{text!r} names no function of the file", "write it like path/to/file.py:my_reward")
    if re.fullmatch(REGISTERED, text):
        return Source("registered", text)
    raise Tdmr1Error(f"{text!r} is not a reward's source", FORMS)


def find(registry: RewardRegistry, source: str, python: Path | None = None) -> RegisteredReward:
    """What a source names, with its spec and where it comes from.

    A file or a module is loaded for it, in the environment of the interpreter `python` if there is one and not here;
    nothing is built, and a server is not asked. Raises Tdmr1Error for a source that cannot be understood or loaded, and
    for what cannot be taken as a reward.
    """
    parsed = parse(source)
    if parsed.kind == "registered":
        return _registered(registry, parsed)
    if parsed.kind == "remote":
        return _remote(parsed)
    _refuse_word_as_weight(registry, parsed)
    if python is not None:
        return _found_elsewhere(parsed.absolute(), python.absolute())
    return _describe(parsed, parsed.load())


def create(registry: RewardRegistry, source: str, options: Mapping[str, Any]) -> Reward:
    """Build what a source names; its options are checked first. Raises Tdmr1Error as `find` does, and for them."""
    parsed = parse(source)
    found = find(registry, source)
    if parsed.kind == "remote":
        return _create_remote(parsed, options, str(found))
    target = None if parsed.kind == "registered" else parsed.load()
    if target is None or isinstance(target, RewardSpec):
        return build(reference_of(found.spec, options), str(found))
    return adapt(target, options, owner=str(found))


def contents(registry: RewardRegistry, source: str, python: Path | None = None) -> str:
    """What tells whether a source still holds the same: its package's version, or the SHA-256 of its file.

    Of a server and of a module elsewhere no more is known than where they are. Raises Tdmr1Error as `find` does.
    """
    parsed, found = parse(source), find(registry, source, python)
    file: str | None = str(parsed.path) if parsed.kind == "file" else None
    if parsed.kind == "module" and python is None:
        file = getattr(sys.modules.get(parsed.place), "__file__", None)
    try:
        read = Path(file).read_bytes() if file else None
    except OSError:  # as of a module in an archive
        read = None
    if read is None:
        return str(found.provenance)
    return f"{parsed.attribute} of sha256 {hashlib.sha256(read).hexdigest()}"


def freeze_options(
    registry: RewardRegistry, source: str, options: Mapping[str, Any], python: Path | None = None
) -> dict[str, Any]:
    """The options, with those that mean "whatever is here" replaced by what that is (`freeze` of the spec).

    "Here" is the environment of `python`, if there is one. Raises Tdmr1Error as `find` does, for wrong options, and as
    the reward does.
    """
    found = find(registry, source, python)
    if found.spec.freeze is None:
        return dict(options)
    if python is not None:
        return _frozen_elsewhere(parse(source).absolute(), found, options, python.absolute())
    owner = str(found)
    given = validated_options(reference_of(found.spec, options), owner)
    before = given.model_dump(mode="json")
    after = resolve(found.spec.freeze, owner)(given).model_dump(mode="json")
    return {**options, **{name: value for name, value in after.items() if value != before[name]}}


def refer(registry: RewardRegistry, source: str, options: Mapping[str, Any], python: Path | None = None) -> Reference:
    """How a process of its own, in this interpreter or `python`, builds what a source names.

    Raises Tdmr1Error as `find` does, for wrong options where they can be validated here, and for a server, which runs
    elsewhere already.
    """
    parsed = parse(source)
    found = find(registry, source, python)
    if parsed.kind == "remote":
        raise Tdmr1Error(f"{found} runs on a server already", "leave `isolated` and `python` out")
    if parsed.kind == "registered":
        return reference.refer(found, options, python)
    module, _, attribute = found.spec.factory.partition(":")
    in_file = parsed.kind == "file" and module == loading.private_name(parsed.path)
    factory = _in_file(parsed, attribute) if in_file else found.spec.factory
    bare = Reference(factory=factory, options=options, adapter="tdmr1_rewards.sources.foreign:adapt")
    return _placed(bare, python)


def snake_case(name: str) -> str:
    """A name as a reward may have it: "MyReward" is my_reward, "ocr-match" is ocr_match."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})", "_", name)
    plain = re.sub(r"[^a-z0-9]+", "_", words.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"reward_{plain}".rstrip("_")


def _registered(registry: RewardRegistry, source: Source) -> RegisteredReward:
    try:
        return registry.get(source.place)
    except Tdmr1Error as error:
        if source.place in registry.names() or not re.search(r"[./]", source.place):
            raise
        raise Tdmr1Error(error.message, FORMS) from error


def _refuse_word_as_weight(registry: RewardRegistry, source: Source) -> None:
    """`object_count:heavy` is more likely a reward with a wrong weight than a module of a reward's name."""
    if source.kind == "module" and source.place in registry.names():
        raise Tdmr1Error(
            f"{str(source)!r}: {source.attribute!r} is not a number", f"a weight is written `{source.place}:0.5`"
        )


def _remote(source: Source) -> RegisteredReward:
    from tdmr1_rewards.registry import Provenance, RegisteredReward

    spec = RewardSpec(
        name=source.name,
        summary=f"scored by the server at {source.place}",
        factory="tdmr1_rewards.sources.remote:RemoteReward",
        options="tdmr1_rewards.sources.remote:RemoteOptions",
        default_prompts=NO_PROMPTS,
    )
    return RegisteredReward(spec, Provenance("remote", source.place, None, "tdmr1_rewards.sources.remote"))


def _create_remote(source: Source, options: Mapping[str, Any], owner: str) -> Reward:
    from tdmr1_rewards.options import validate_options
    from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

    return RemoteReward(source.place, validate_options(RemoteOptions, options, owner))


@cache
def _found_elsewhere(source: Source, python: Path) -> RegisteredReward:
    """What a file or a module holds, as a process of another environment sees it."""
    from tdmr1_rewards.calling.process import ask_elsewhere
    from tdmr1_rewards.registry import RegisteredReward

    factory = _in_file(source, source.attribute) if source.kind == "file" else str(source)
    owner = f"reward {source.name!r} (from {source.place})"
    bare = _placed(Reference(factory=factory), python)
    told = ask_elsewhere("describe", bare, owner, python, source=str(source))
    spec = RewardSpec(**{**told["spec"], "requires": tuple(told["spec"]["requires"])})
    return RegisteredReward(spec, _provenance(source), taken_as=told["taken_as"])


def _frozen_elsewhere(
    source: Source, found: RegisteredReward, options: Mapping[str, Any], python: Path
) -> dict[str, Any]:
    from tdmr1_rewards.calling.process import ask_elsewhere

    bare = _placed(replace(reference_of(found.spec, options), options_model=None), python)
    known = {"spec": asdict(found.spec), "provenance": asdict(found.provenance)}
    registered = known if source.kind == "registered" else None
    told = ask_elsewhere("freeze", bare, str(found), python, source=str(source), registered=registered)
    return dict(told["options"])


def _in_file(source: Source, attribute: str) -> dict[str, str]:
    return {"file": str(source.path.absolute()), "attr": attribute}


def _placed(bare: Reference, python: Path | None) -> Reference:
    """The reference with where its module lies: in the current folder, if it is not found anywhere else."""
    placed = reference.portable(bare, python)
    if python is None or placed.paths or placed.modules or not isinstance(bare.factory, str):
        return placed
    return replace(placed, paths=[str(Path.cwd())])


def _provenance(source: Source) -> Provenance:
    from tdmr1_rewards.registry import Provenance

    module = loading.private_name(source.path) if source.kind == "file" else source.place
    return Provenance(source.kind, source.place, None, f"{module}:{source.attribute}")


def _describe(source: Source, target: Any) -> RegisteredReward:
    """The spec of what was found: its own if it is one, else what can be seen of it."""
    from tdmr1_rewards.registry import RegisteredReward

    provenance = _provenance(source)
    module = provenance.module.partition(":")[0]
    if isinstance(target, RewardSpec):
        return RegisteredReward(_within(target, source, module), provenance, taken_as="a RewardSpec")
    recognised = recognise(target, str(source))
    model = recognised.options_model
    spec = RewardSpec(
        name=source.name,
        summary=(inspect.getdoc(target) or "").partition("\n")[0],
        factory=f"{module}:{source.attribute}",
        options=f"{model.__module__}:{model.__qualname__}" if model else None,
        default_prompts=NO_PROMPTS,
        image_format="array" if recognised.roles else "pil",
    )
    return RegisteredReward(spec, provenance, taken_as=recognised.told)


def _within(spec: RewardSpec, source: Source, module: str) -> RewardSpec:
    """A file's own RewardSpec may call the file by its stem, which nothing else can import."""
    if source.kind != "file":
        return spec
    stem = source.path.stem
    moved: dict[str, Any] = {
        name: f"{module}:{reference.partition(':')[2]}"
        for name in ("factory", "options", "examples", "freeze")
        if (reference := getattr(spec, name)) and reference.partition(":")[0] == stem
    }
    return replace(spec, **moved)
