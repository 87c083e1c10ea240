"""All mistakes in a tree of settings as one error: what is expected in plain words, and what a wrong name may mean."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tdmr1_core.config import NOT_IN_NAMES, RunConfig, annotations_in
from tdmr1_core.errors import Tdmr1Error, close_match, join_hints
from tdmr1_rewards.errors import shorten

LEARNING_RATES = ("generator.learning_rate", "fake.learning_rate", "surrogate.learning_rate")
SYNONYMS: dict[str, tuple[str, ...]] = {
    "lr": LEARNING_RATES,
    "batch_size": ("batch.groups", "batch.group_size"),
    "bs": ("batch.groups", "batch.group_size"),
    "gs": ("batch.group_size",),
    "num_images_per_prompt": ("batch.group_size",),
    "num_generations": ("batch.group_size",),
    "steps": ("rollout.steps", "iterations"),
    "num_steps": ("rollout.steps", "iterations"),
    "num_inference_steps": ("rollout.steps",),
    "max_steps": ("iterations",),
    "max_train_steps": ("iterations",),
    "epochs": ("iterations",),
    "num_epochs": ("iterations",),
    "n_iter": ("iterations",),
    "wd": ("optimizer.weight_decay",),
    "grad_clip": ("optimizer.max_grad_norm",),
    "dtype": ("model.precision",),
    "lora_rank": ("model.rank",),
    "lora_alpha": ("model.alpha",),
    "cfg": ("generator.guidance_scale",),
    "guidance": ("generator.guidance_scale",),
    "resolution": ("model.height", "model.width"),
    "image_size": ("model.height", "model.width"),
    "attention_backend": ("memory.attention",),
    "attn_implementation": ("memory.attention",),
}
"""Names that other programs use, and the settings that they may mean here."""
WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", Path: "a path", NoneType: "null"}
"""The types of settings in plain words."""
STAND_IN_ITEM = "object_count"
"""The name in the example of a reward, if none was given."""
UNKNOWN = ("extra_forbidden", "invalid_key")
"""The errors of pydantic for a key that is not a setting."""
TYPING_ERROR = 0.8
"""The similarity (difflib) from which a name of another section counts as meant."""
ALL_SETTINGS = "run `tdmr1 config show` for all settings and their meaning"
"""The hint without a better one."""
BOUNDS = ((Ge, "ge", "of at least"), (Gt, "gt", "above"), (Le, "le", "at most"), (Lt, "lt", "below"))
"""The bounds of numbers, with their attribute, in plain words."""
MOST_SUGGESTED = 3
"""Settings in a wrong section that a hint names one by one."""
MOST_SHOWN = 60
"""Characters of a wrong value that a message shows."""


def as_error(error: ValidationError) -> Tdmr1Error:
    """All mistakes of a validation as one error: one sentence for each setting, and hints for unknown names."""
    found = error.errors(include_url=False)
    mistakes: dict[str, _Mistake] = {}
    for mistake in map(_mistake, found):  # a setting has one mistake, however many members of a union were tried
        mistakes.setdefault(mistake.name or mistake.problem, mistake)
    problems = [mistake.problem for mistake in mistakes.values()]
    hint = join_hints(*(mistake.hint for mistake in mistakes.values())) or ALL_SETTINGS
    start = "" if len(problems) == 1 else f"{len(problems)} settings are wrong: "
    code = "setting-unknown" if all(item["type"] in UNKNOWN for item in found) else "setting-invalid"
    names = list(dict.fromkeys(mistake.name for mistake in mistakes.values()))
    return Tdmr1Error(start + "; ".join(problems), hint, code=code, values={"settings": names, "problems": problems})


@dataclass(frozen=True)
class _Mistake:
    """A wrong setting. The name is empty if settings contradict each other."""

    name: str
    problem: str
    hint: str | None = None


def _mistake(item: ErrorDetails) -> _Mistake:
    location, value = item["loc"], item["input"]
    if item["type"] in UNKNOWN:
        *parents, last = location
        name = _dotted(location)
        return _Mistake(name, f"{name} is not a setting", _unknown_hint(parents, str(last), value))
    place = _find(location)
    if item["type"] == "value_error":
        return _Mistake(place.name, str(item["ctx"]["error"]))
    if item["type"] == "missing":
        return _Mistake(place.name, f"{place.name} is missing")
    return _Mistake(place.name, f"{place.name} must be {place.form(value)}; found {_shown(value)}", place.hint(value))


@dataclass(frozen=True)
class _Place:
    """A setting, a section, or an item of a list of tables."""

    name: str
    field: FieldInfo | None
    """None for the whole tree and for the item of a list."""
    section: type[BaseModel] | None
    """The fields of the section, or of the items of a list; None for a single setting."""
    is_list: bool = False

    def form(self, value: Any) -> str:
        """What is expected, with an example made of the wrong value if that is a name."""
        if self.section is None:
            assert self.field is not None
            return accepted_values(self.field)
        example = _example(self.section, value)
        key = f"{self.name.rpartition('.')[2]}: " if self.field is not None else ""
        if not self.is_list:
            return f"a table of settings, such as {key}{example}"
        return f"a list of tables, such as {key}[{example}]"

    def hint(self, value: Any) -> str | None:
        """How to write what was probably meant; None if that is unclear."""
        wanted = set(annotations_in(self.field.annotation)) if self.field is not None else set()
        if isinstance(value, str) and wanted & {int, float} and re.fullmatch(r"[-+]?[0-9][0-9_:.xob]*", value):
            return f"write {self.name} in decimal digits, without quotes, leading zeros, _ and :"
        if isinstance(value, str) and (character := NOT_IN_NAMES.search(value)):
            return f"remove the character U+{ord(character[0]):04X} from {self.name}"
        if isinstance(value, bool) and bool not in wanted and self.section is None:
            return "YAML reads yes, no, on and off as true and false"
        if isinstance(value, int | float) and wanted & {str, Path} and dict[str, Any] not in wanted:
            return f"put the text of {self.name} in quotes"
        return None


def _find(location: Sequence[int | str]) -> _Place:
    """The setting, section or item that a location of pydantic leads to. It may end with a member of a union."""
    parts: list[int | str] = []
    inside: type[BaseModel] | None = RunConfig
    found = _Place("", None, inside)
    for part in location:
        if found.is_list and isinstance(part, int):
            inside = found.section
            parts.append(part)
            found = _Place(_dotted(parts), None, inside)
        elif inside is not None and part in inside.model_fields:
            field = inside.model_fields[str(part)]
            parts.append(part)
            section = _section_in(field.annotation)
            is_list = section is not None and field.annotation is not section
            inside = None if is_list else section
            found = _Place(_dotted(parts), field, section, is_list)
        else:
            break
    return found


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation contains: RewardConfig for `tuple[RewardConfig, ...] | None`."""
    kinds = (kind for kind in annotations_in(annotation) if isinstance(kind, type))
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _dotted(parts: Iterable[int | str]) -> str:
    return ".".join(map(str, parts))


def _example(section: type[BaseModel], value: Any) -> str:
    """The first setting of a section with the value that was given for the section, or with its default."""
    name, field = next(iter(section.model_fields.items()))
    named = next(iter(value), None) if isinstance(value, list | dict) else value
    if str in annotations_in(field.annotation) and isinstance(named, str) and re.fullmatch(r"[\w./-]{1,40}", named):
        return f"{{{name}: {named}}}"
    default = STAND_IN_ITEM if field.is_required() else field.default
    return f"{{{name}: {_plain_value(default)}}}"


def _plain_value(value: Any) -> str:
    return "…" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def accepted_values(field: FieldInfo) -> str:
    """The values of a setting in plain words: "an integer of at least 1, auto or null"."""
    words = list(_words(field.annotation, field.metadata))
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _words(annotation: Any, bounds: Sequence[Any]) -> Iterator[str]:
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for member in get_args(annotation):
            yield from _words(member, bounds)
    elif origin is Annotated:
        inner, *extras = get_args(annotation)
        yield from _words(inner, [*bounds, *(bound for extra in extras for bound in getattr(extra, "metadata", ()))])
    elif origin is Literal:
        yield from map(str, get_args(annotation))
    elif origin is tuple:
        yield f"a list, each item {' or '.join(_words(get_args(annotation)[0], bounds))}"
    elif origin is dict:
        yield "a table whose keys are texts"
    elif _section_in(annotation) is not None:
        yield "a table of settings"
    else:
        yield WORDS[annotation] + (_range(bounds) if annotation in (int, float) else "")


def _range(bounds: Sequence[Any]) -> str:
    """Bounds in plain words, such as " of at least 0 and below 1"."""
    parts = []
    for kind, attribute, words in BOUNDS:
        limits = [getattr(bound, attribute) for bound in bounds if isinstance(bound, kind)]
        parts += [f"{words} {limit if isinstance(limit, int) else f'{limit:.12g}'}" for limit in limits]
    return f" {' and '.join(parts)}" if parts else ""


def _shown(value: Any) -> str:
    """A value as JSON, or its repr if it is not JSON, cut to `MOST_SHOWN` characters."""
    try:
        return shorten(json.dumps(value, default=str, ensure_ascii=False), MOST_SHOWN)
    except (ValueError, TypeError):
        return shorten(repr(value), MOST_SHOWN)


def _unknown_hint(parents: Sequence[int | str], name: str, value: Any) -> str:
    """The hint for an unknown setting: the settings that it may mean, or all settings of its section."""
    if "." in name:
        meant = suggest(parents, name.split("."))
        forms = " or ".join(_nested_form(setting) for setting in meant) or _nested_form(name)
        return f"names with dots are for --set; in YAML, write {forms}"
    paths = [[name, *path] for path in _paths(value)]
    paths = paths if 0 < len(paths) <= MOST_SUGGESTED else [[name]]
    meant = list(dict.fromkeys(setting for path in paths for setting in suggest(parents, path)))
    meant = meant or suggest(parents, [name])
    if meant:
        return f"did you mean {' or '.join(map(repr, meant))}?"
    return f"known: {', '.join(sorted(_fields_at(parents)))}"


def suggest(parents: Sequence[int | str], path: Sequence[str]) -> list[str]:
    """The settings that an unknown path may mean, which was found in the section `parents`.

    A name that other programs use comes first, then settings of the same name in other sections, then settings with a
    similar name. Of several, those in the section are preferred.
    """
    head, *rest = path
    fields = _fields_at(parents)
    if rest and head.isdecimal():
        return suggest([*parents, int(head)], rest)
    if rest:
        section = head if head in _sections(fields) else close_match(head, _sections(fields))
        return suggest([], rest) if section is None else suggest([*parents, section], rest)
    if head in fields:
        return [_dotted([*parents, head])]
    above, plain = "".join(f"{part}." for part in parents), _plain(head)
    near = close_match(head, fields)
    own = [above + near] if near is not None else []
    if any(isinstance(part, int) for part in parents):
        return own
    meant = next((list(names) for synonym, names in SYNONYMS.items() if _plain(synonym) == plain), [])
    inside = [name for name in meant if parents and name.startswith(above)]
    leaves = [name for name in setting_names() if "." in name]
    same = [name for name in leaves if _plain(name.rpartition(".")[2]) == plain]
    similar = difflib.get_close_matches(head, {name.rpartition(".")[2] for name in leaves}, n=1, cutoff=TYPING_ERROR)
    elsewhere = [name for name in leaves if name.rpartition(".")[2] in similar]
    return next(filter(None, (inside, meant, same, own, elsewhere)), [])


def _plain(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return "".join(re.findall(r"[^\W_]", name.lower()))


def _paths(value: Any) -> list[list[str]]:
    """The keys of nested tables, as one path for each value."""
    if not isinstance(value, Mapping):
        return []
    return [[str(key), *path] for key, inner in value.items() for path in (_paths(inner) or [[]])]


def _nested_form(setting: str) -> str:
    """A dotted name as YAML: `generator: {learning_rate: …}`."""
    *parents, last = setting.split(".")
    form = f"{last}: …"
    for parent in reversed(parents):
        form = f"[{{{form}}}]" if parent.isdecimal() else f"{parent}: {form if form[0] == '[' else f'{{{form}}}'}"
    return form


def setting_names(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """The dotted names of all settings, without those in lists."""
    names = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names += setting_names(inner, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _sections(fields: Mapping[str, FieldInfo]) -> list[str]:
    """The names of the fields that are sections or lists of sections."""
    return [name for name, field in fields.items() if _section_in(field.annotation) is not None]


def _fields_at(location: Sequence[int | str]) -> dict[str, FieldInfo]:
    """The fields of the section that a location in the tree leads to."""
    place = _find(location)
    assert place.section is not None
    return dict(place.section.model_fields)
