"""Reads the annotations of a reward's parameters: which image format they name, and whether they name a list.

Annotations are compared by their text, so that no package has to be imported: `Image.Image` of Pillow, `Tensor` of
torch, `ndarray` of numpy.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import dataclass

from tdmr1_rewards.sources.image_formats import ImageForm

FORMS: dict[str, ImageForm] = {
    r"\w*Tensor|tv_tensors|torch": "tensor",
    r"PIL\w*|\w*Image": "pil",
    r"ndarray|NDArray|ArrayLike|np|numpy": "array",
}
"""Words of an annotation and the image format that they name. The first row that matches decides."""
CONTAINERS = r"(list|List|Sequence|Iterable|Collection|tuple|Tuple)\b"
FILES = r"str|bytes|Path|PathLike|BytesIO|BinaryIO"
"""Words of an annotation for image files, which no reward receives."""
TEXTS = r"str|Text"


@dataclass(frozen=True)
class Annotation:
    """What the annotation of a parameter says; nothing if it has none. `text` is the annotation as a text.

    `forms` are the image formats that it names, in order. `many` is True for a list, False for a single value, and None
    if it does not say. `is_file` is whether it names image files only.
    """

    text: str = ""
    forms: tuple[ImageForm, ...] = ()
    many: bool | None = None
    is_file: bool = False


def read_annotations(function: Callable[..., object]) -> dict[str, Annotation]:
    """The annotation of each parameter that has one."""
    return {name: read_annotation(text) for name, text in annotation_texts(function).items() if name != "return"}


def read_annotation(text: str) -> Annotation:
    """What the text of an annotation says, such as "list[PIL.Image.Image] | None"."""
    members = [member for member in _members(text) if member not in ("None", "NoneType")]
    forms = list(dict.fromkeys(form for member in members if (form := _form(member)) is not None))
    lists = [re.match(CONTAINERS, _without_module(member)) is not None for member in members]
    single = [_form(member) == "pil" or _is_word(TEXTS, member) or _is_mapping(member) for member in members]
    many = True if members and all(lists) else False if members and all(single) and not any(lists) else None
    if not forms and many and not any(_is_word(FILES, member) for member in members):
        forms = ["pil"] if any(_is_bare(member) for member in members) else []
    is_file = not forms and bool(members) and all(_is_word(FILES, member) for member in members)
    return Annotation(text, tuple(forms), many, is_file)


def annotation_texts(function: Callable[..., object]) -> dict[str, str]:
    """The text of each annotation, as the source has it where its names cannot be looked up."""
    while isinstance(function, functools.partial):
        function = function.func
    if not (inspect.isroutine(function) or inspect.isclass(function)):
        function = type(function).__call__
    raw = getattr(inspect.unwrap(function), "__annotations__", {})
    try:
        resolved = typing.get_type_hints(function, include_extras=False)
    except Exception:  # a name of `if TYPE_CHECKING`, or an expression that this version of Python cannot evaluate
        resolved = raw
    return {
        name: value if isinstance(value, str) else inspect.formatannotation(value) for name, value in resolved.items()
    }


def _members(text: str) -> list[str]:
    """The members of a union: "Union[a, b[c, d]]", "Optional[a]" and "a | b" are split, also inside one another."""
    text = re.sub(r" from '[^']*'", "", text).strip().strip("'\"")  # a module, such as PIL.Image, shows its file
    inner = re.fullmatch(r"(?:\w+\.)*(?:Union|Optional)\[(.*)\]", text, re.DOTALL)
    parts = _split(inner.group(1), ",") if inner else _split(text, "|")
    if inner is None and len(parts) == 1:
        return [text] if text else []
    return [member for part in parts for member in _members(part)]


def _split(text: str, separator: str) -> list[str]:
    """Split at a separator outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[(") - (letter in "])")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _form(text: str) -> ImageForm | None:
    return next((form for words, form in FORMS.items() if _is_word(words, text)), None)


def _is_word(words: str, text: str) -> bool:
    return re.search(rf"(?<![\w.])(?:\w+\.)*(?:{words})\b", text) is not None


def _is_mapping(text: str) -> bool:
    return re.match(r"(dict|Dict|Mapping)\b", _without_module(text)) is not None


def _is_bare(text: str) -> bool:
    """Whether a list has no type of its entries, or any."""
    return "[" not in text or re.search(r"\[\s*(?:\w+\.)*(Any|object)\s*(,\s*\.\.\.)?\]", text) is not None


def _without_module(text: str) -> str:
    return re.sub(r"^(?:\w+\.)+", "", text)
