"""The hint for an exception of a foreign reward that probably wants its images in another form.

The hint names the form that the images had and the option that changes it. Nothing is changed by itself. Standard
library only.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tdmr1_rewards.calling.user_code import attach_hint

KINDS = {"pil": "PIL images", "array": "a numpy array", "tensor": "a torch tensor"}
CLASSES = {"pil": "PIL.Image:Image", "array": "numpy:ndarray", "tensor": "torch:Tensor"}
MENTIONED = {
    "pil": r"\bPIL\b|\bpic\b|\b\w*Image(File)?\b|__array_interface__|data type: \(",
    "array": r"\bndarray\b|\bnumpy\b",
    "tensor": r"\bTensor\b|\btorch\b",
}
"""What the messages of exceptions call images in each form."""
CONTAINERS = {
    "pil": r"'list' object|\blist (indices|must)|got \(list|must be \w+, not list|'list' and|and 'list'",
    "tensor": r"builtin_function_or_method|requested resize|invalid combination of arguments|argument 'axis'",
    "array": r"'int' object is not (callable|subscriptable)|non-iterable int|cannot resize|argument 'dim'",
}
"""What they say if one form is used like another: PIL images are in a list; `size` is a pair of integers for them, an
integer for an array, and a method of a tensor."""
IMAGE_LIBRARIES = {"PIL", "torchvision", "cv2", "skimage", "transformers"}


@contextmanager
def hinting_at_images(form: str, in_words: str) -> Iterator[None]:
    """Attach a hint to an exception in the context if the form of the images is probably its cause.

    `form` is that of the images (tensor, array or pil), and `in_words` its description.
    """
    try:
        yield
    except Exception as error:
        if _is_about_images(error, form):
            attach_hint(error, _hint(error, form, in_words))
        raise


def _is_about_images(error: Exception, form: str) -> bool:
    text = str(error)
    in_library = bool({_raised_by(error), type(error).__module__.partition(".")[0]} & IMAGE_LIBRARIES)
    names_a_form = any(_mentions(text, words) for words in MENTIONED.values())
    if isinstance(error, AttributeError):
        holders = error.obj if isinstance(error.obj, list) else [error.obj]
        return any(_form_of(holder) for holder in holders) or _mentions(text, MENTIONED["tensor"])
    if isinstance(error, TypeError):
        return in_library or names_a_form or _mentions(text, CONTAINERS[form])
    if isinstance(error, ValueError | RuntimeError) and _mentions(text, CONTAINERS[form]):
        return True
    return in_library and names_a_form


def _hint(error: Exception, form: str, in_words: str) -> str:
    wanted = _wanted(error, form)
    (third,) = KINDS.keys() - {form, wanted}
    return (
        f"the images were given as {in_words}; if the reward wants {KINDS[wanted]}, use "
        f"`--option image_format={wanted}` (tdmr1 rewards try, check, serve) or "
        f"`rewards.N.options.image_format: {wanted}` (in a config); "
        f"`{third}` means {KINDS[third]}"
    )


def _wanted(error: Exception, form: str) -> str:
    """The form that the code probably wants: the first other one that has the attribute or that the message names."""
    others = [other for other in ("pil", "array", "tensor") if other != form]
    if form == "pil":
        others.reverse()
    if isinstance(error, AttributeError) and error.name:
        having = [other for other in others if hasattr(_class(other), error.name)]
    else:
        having = [other for other in others if _mentions(str(error), MENTIONED[other])]
    return (having or others)[0]


def _form_of(value: Any) -> str | None:
    """The form that a value has as an image; None if it is none."""
    return next((form for form in CLASSES if (kind := _class(form)) is not None and isinstance(value, kind)), None)


def _class(form: str) -> type | None:
    """The class of images in this form; None if its module is not imported."""
    module, _, name = CLASSES[form].partition(":")
    return getattr(sys.modules.get(module), name, None)


def _mentions(text: str, words: str) -> bool:
    return re.search(words, text) is not None


def _raised_by(error: BaseException) -> str:
    """The top-level package of the innermost frame."""
    trace, package = error.__traceback__, ""
    while trace is not None:
        package, trace = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0], trace.tb_next
    return package
