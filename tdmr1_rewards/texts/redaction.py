"""Keeps secrets out of everything that is printed or written: passwords and tokens become `***`.

A secret is an option with a name such as `token` or `api_key`, an option that is declared as SecretStr, the user or
password and such query values of a URL, or a variable of the environment that is known to hold a token. Values that
were seen once are replaced in all later texts, also where they are percent-encoded or quoted. An option may name an
environment variable instead of holding a secret: `env:NAME`, `$NAME` or `${NAME}`; in a URL, `${NAME}`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus, unquote, unquote_plus

if TYPE_CHECKING:
    from pydantic import BaseModel

REDACTED = "***"
SECRET_WORDS = {"token", "password", "passwd", "passphrase", "pwd", "secret", "key", "apikey"}
SECRET_WORDS |= {"authorization", "auth", "credential", "credentials", "bearer", "cookie"}
"""The last word of a name that holds a secret, such as `api_key` and `accessToken`."""
IN_QUERY = {"sig", "signature", "pass", "pw"}
"""The last word of further names of secrets in the query of a URL, such as `X-Amz-Signature`."""
PUBLIC = {"sort", "metadata", "image", "prompt", "text", "label", "group", "column", "field", "index", "public"}
PUBLIC |= {"cache", "eos", "bos", "pad", "unk", "sep", "cls", "mask", "start", "end", "stop", "special"}
"""Words before `key` or `token` in names that hold no secret, such as `metadata_key` and `eos_token`."""
PLURALS = {"tokens", "passwords", "secrets", "apikeys"}
"""Names of several secrets, if they are texts: `max_tokens` is a number."""
TOKEN_VARIABLES = (
    "TDMR1_REWARD_TOKEN",
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN"),
    *("WANDB_API_KEY", "SWANLAB_API_KEY", "COMET_API_KEY", "TRACKIO_WRITE_TOKEN"),
    *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"),
)
SHORTEST = 4
"""Shorter secrets are redacted where their place shows that they are secrets, but not in other texts."""
REFERENCE = re.compile(r"env:([A-Za-z_]\w*)|\$([A-Za-z_]\w*)|\$\{([A-Za-z_]\w*)\}")
IN_URL = re.compile(r"\$\{([A-Za-z_]\w*)\}")
HIDDEN = re.compile(r"\*{3,}")
"""A secret that was replaced, also by pydantic."""
USER = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]{0,20}://)(?P<user>[^\s/?#\"'<>]*)@")
QUERY = re.compile(r"(?P<name>[?&;#][^\s=&;?#\"'<>]+=)(?P<value>[^\s&;#\"'<>]*)")
HEADER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)(?=\S*[0-9=])[\w.~+/=-]{8,}")

ASSIGNING = ("--set", "--option")
PAIR = re.compile(r"([\w.-]+)[\"']?\s*[:=]\s*[\"']?([^\s,\"'{}\[\]]+)")

_known: set[str] = set()
"""Every secret that was seen, in the forms in which texts may contain it."""
_declared: set[str] = set()
"""The values of options that are declared as SecretStr."""


def is_secret_name(name: str) -> bool:
    """Whether a name of an option, header or query value is that of a secret."""
    words = ["", *_words(name)]
    return words[-1] in SECRET_WORDS and words[-2] not in PUBLIC


def redact(text: str) -> str:
    """The text without secrets."""
    text = HEADER.sub(rf"\g<name>{REDACTED}", _redact_urls(text))
    for secret in sorted((*_known, *_variables()), key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, REDACTED)
    return text


def redact_texts(tree: Any) -> Any:
    """Plain data, whose texts and keys are redacted as by `redact`."""
    if isinstance(tree, Mapping):
        return {redact(key) if isinstance(key, str) else key: redact_texts(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [redact_texts(value) for value in tree]
    if isinstance(tree, tuple):
        return tuple(map(redact_texts, tree))
    return redact(tree) if isinstance(tree, str) else tree


def redact_tree(tree: Any, *, compared: bool = False) -> Any:
    """Settings or other plain data without secrets, by the names of their keys and by the URLs in their texts.

    Names of environment variables stay, unless the result is `compared`: then a secret and the variable that holds it
    are equal.
    """
    if isinstance(tree, Mapping):
        return {
            key: _hidden(value, compared) if _names_secret(key, value) else redact_tree(value, compared=compared)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [redact_tree(value, compared=compared) for value in tree]
    if not isinstance(tree, str):
        return tree
    if tree in _declared or (compared and REFERENCE.fullmatch(tree)):
        return REDACTED
    return _redact_urls(tree, compared=compared)


def remember(*secrets: Any) -> None:
    """Redact these values in all later texts. Names of environment variables and empty values are none."""
    for secret in secrets:
        text = str(secret)
        if secret is None or isinstance(secret, bool) or REFERENCE.fullmatch(text) or HIDDEN.fullmatch(text):
            continue
        plain, spaced = unquote(text), " ".join(text.split())
        forms = [text, plain, spaced, quote(plain), quote(plain, safe=""), quote_plus(plain), repr(text)[1:-1]]
        forms.append(json.dumps(text)[1:-1])
        _known.update(form for form in forms if len(form) >= SHORTEST)


def remember_tree(tree: Any) -> None:
    """Remember the secrets in settings: the values of keys that name one, and those in URLs."""
    for value in _secrets_in(tree):
        remember(value)


def remember_arguments(arguments: Sequence[str]) -> None:
    """Remember the secrets in a command line: in URLs, and in the assignments of --set and --option."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        remember_tree(argument)
        if before not in ASSIGNING and not argument.startswith(tuple(f"{option}=" for option in ASSIGNING)):
            continue
        for found in re.finditer("=", argument):
            if is_secret_name(argument[: found.start()]):
                remember(argument[found.end() :].strip("'\" "))
        for name, value in PAIR.findall(argument):
            if is_secret_name(name):
                remember(value)


def remember_declared(model: type[BaseModel], options: Mapping[str, Any]) -> None:
    """Remember the options that an options class, or a model inside it, declares as SecretStr or SecretBytes."""
    from pydantic import BaseModel, SecretBytes, SecretStr

    for name, field in model.model_fields.items():
        value = options.get(field.alias or name, options.get(name))
        kinds = [kind for kind in _annotations_in(field.annotation) if isinstance(kind, type)]
        if any(issubclass(kind, SecretStr | SecretBytes) for kind in kinds):
            for leaf in map(str, _leaves(value)):
                remember(leaf)
                if REFERENCE.fullmatch(leaf) is None:
                    _declared.add(leaf)
        for inner in (kind for kind in kinds if issubclass(kind, BaseModel)):
            for item in value if isinstance(value, list | tuple) else [value]:
                if isinstance(item, Mapping):
                    remember_declared(inner, item)


def redacted_places(tree: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Each text in which a secret was replaced, such as in the config.yaml of a run, with its dotted name."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from redacted_places(value, f"{prefix}.{key}")
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from redacted_places(value, f"{prefix}.{number}")
    elif isinstance(tree, str) and any(map(HIDDEN.fullmatch, (tree, *_secrets_in_url(tree)))):
        yield prefix, tree


def complete(text: str, secret: str) -> str:
    """A text in which a secret was replaced, with the secret again."""
    return HIDDEN.sub(lambda _: secret if HIDDEN.fullmatch(text) else quote(secret, safe="${}"), text)


def forget() -> None:
    """Forget all remembered secrets, for tests."""
    _known.clear()
    _declared.clear()


def _words(name: str) -> list[str]:
    """The words of a name in lower case: `accessToken`, `access-token` and `ACCESS_TOKEN` have two."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", unquote(name))
    return re.findall(r"[^\W_]+", spaced.lower())


def _names_secret(key: Any, value: Any) -> bool:
    words = _words(str(key))
    if words == ["key"] or (words and words[-1] in PLURALS):  # a number is an index or a count
        return any(isinstance(leaf, str) for leaf in _leaves(value))
    return is_secret_name(str(key))


def _hidden(value: Any, compared: bool) -> Any:
    """The value of a secret: REDACTED in place of every text and number."""
    if isinstance(value, Mapping):
        return {key: _hidden(item, compared) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item, compared) for item in value]
    if value is None or isinstance(value, bool) or value == "":
        return value
    return value if isinstance(value, str) and REFERENCE.fullmatch(value) and not compared else REDACTED


def _leaves(tree: Any) -> Iterator[Any]:
    """Every value in nested mappings and sequences, except None and booleans."""
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        for value in tree:
            yield from _leaves(value)
    elif tree is not None and not isinstance(tree, bool):
        yield tree


def _secrets_in(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value) if _names_secret(key, value) else _secrets_in(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _secrets_in(value)
    elif isinstance(tree, str):
        yield from _secrets_in_url(tree)


def _secrets_in_url(text: str) -> list[str]:
    """The users, passwords and secret query values of the URLs in a text."""
    found: list[str] = []

    def keep(value: str) -> str:
        found.append(value)
        return value

    _map_secrets_in_url(text, keep)
    return found


def _redact_urls(text: str, *, compared: bool = False) -> str:
    return _map_secrets_in_url(text, lambda value: value if IN_URL.fullmatch(value) and not compared else REDACTED)


def _map_secrets_in_url(text: str, change: Callable[[str], str]) -> str:
    """The text, in which `change` is applied to the secrets of URLs: passwords, users without one, and query values."""

    def user(found: re.Match[str]) -> str:
        name, colon, password = found["user"].partition(":")
        changed = f"{name}:{change(password)}" if colon and password else change(name) if name else ""
        return f"{found['scheme']}{changed}@"

    def query(found: re.Match[str]) -> str:
        words = _words(unquote_plus(found["name"]))
        secret = found["value"] and words and words[-1] in SECRET_WORDS | IN_QUERY
        return found["name"] + (change(found["value"]) if secret else found["value"])

    return QUERY.sub(query, USER.sub(user, text))


def _variables() -> Iterable[str]:
    """The tokens in the environment."""
    values = (os.environ.get(name, "") for name in TOKEN_VARIABLES)
    return [value for value in values if len(value) >= SHORTEST]


def _annotations_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _annotations_in(part)
