"""The error that is printed for users, its stable codes, and hints for names that are not known.

`docs/errors.md` is generated from `CODES`. Codes are stable: scripts may rely on them. Messages may change.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from tdmr1_rewards.texts.redaction import redact, redact_texts

CODES = {
    # Command line
    "usage": "The command line is not understood: an unknown command or option, or a wrong value.",
    "option-conflict": "Two options of the command line exclude each other.",
    "argument-invalid": "The value of an option or argument is not understood.",
    "target-unknown": "The argument is neither a run folder, nor a model, nor a pipeline directory.",
    "file-missing": "A file or folder that was named does not exist, or inputs of a run cannot be found.",
    "file-unreadable": "A file cannot be read, or its content is not of the expected format.",
    "file-exists": "The command does not overwrite this file or folder.",
    "not-writable": "A file or folder cannot be written: no permission, a full disk, or a file in the way.",
    "dependency-missing": "An optional package or program that this feature needs is not installed.",
    "interrupted": "The user stopped the command or the training.",
    "unexpected": "An internal error. Please report it.",
    "several-errors": "More than one error was found; `values.errors` lists them.",
    # Settings
    "config-unreadable": "A settings file cannot be read or is not valid YAML.",
    "config-incomplete": "The config.yaml of a run lacks settings or has a header that no run wrote.",
    "setting-unknown": "A setting with this name does not exist.",
    "setting-invalid": "A setting has a value of the wrong type or outside its range.",
    "setting-conflict": "Settings contradict each other, or make the run pointless.",
    "setting-ineffective": "Warning: a setting has no effect in this run.",
    "setting-renamed": "Warning: a value of a setting has a new name; the old one is still read.",
    "assignment-invalid": "`--set` needs the form name=value.",
    "preset-unknown": "A preset with this name does not exist.",
    "wrong-kind": "The settings are for a training and the command distills, or the other way round.",
    # Prompts
    "prompts-unknown": "Neither a prompt set nor a prompt file has this name.",
    "prompts-unreadable": "A prompt file cannot be read, or its content is not of the format that its suffix names.",
    "prompts-empty": "A prompt file contains no prompts.",
    "prompts-missing": "The run has no prompts, and its reward and model have no default.",
    "prompts-truncated": "Warning: prompts are longer than the text encoders of the model read.",
    "prompt-invalid": "An entry of a prompt file, or a prompt in the command line, is not a prompt.",
    "prompts-doubtful": "Warning: prompts occur more than once, or have blanks at the start or end.",
    # Models
    "model-unknown": "A model with this name is not registered.",
    "model-invalid": "A model entry or pipeline directory has parts that do not fit, or two plugins register its name.",
    "model-incomplete": "A pipeline directory lacks files.",
    "model-unsupported": "No family supports this pipeline, or the family does not support this use.",
    "model-license": "Warning: weights that a run needs are gated on the hub, or not for commercial use.",
    "teacher-mismatch": "The teacher does not have the text encoders or the decoder of the few-step model.",
    "hub-unavailable": "The hub cannot be reached and a file is not in the local cache, or an upload failed.",
    "hub-denied": "The hub refused access: the repository is gated, private or missing, or the token may not write.",
    "device-unavailable": "The device does not exist here, or the processes cannot share it.",
    "attention-unavailable": "torch does not have the kernel of memory.attention for this device, precision or model.",
    "out-of-memory": "The device is out of memory, even with the smallest micro-batch.",
    "micro-batch-halved": "Warning: the device ran out of memory; the micro-batch was halved.",
    "plan-unavailable": "Memory and time cannot be estimated for this model.",
    # LoRA files
    "lora-missing": "The model needs a few-step LoRA (an error or a warning), or the LoRA file does not exist.",
    "lora-unreadable": "A LoRA file cannot be read.",
    "lora-keys": "A LoRA file has keys that are not understood, or lacks keys.",
    "lora-mismatch": "A LoRA file does not fit the model: names, shapes or rank differ.",
    "lora-alpha": "A LoRA file does not contain its alpha, and none is set.",
    "lora-unsupported": "A LoRA file uses a variant that is not supported.",
    # Rewards
    "reward-unknown": "A reward with this name is not registered.",
    "reward-name-conflict": "The name of a reward is already used by another plugin, reward or module.",
    "reward-source": "The source of a reward is not of a known form.",
    "reward-spec": "The RewardSpec of a reward has an invalid field, or is for another version of the reward API.",
    "reward-import": "The module, file or function of a reward cannot be imported.",
    "reward-signature": "A function or class cannot be used as a reward.",
    "reward-build": "A reward cannot be built.",
    "reward-options": "The options of a reward are wrong.",
    "reward-environment": "The Python environment of a reward cannot be used.",
    "reward-weights": "The weights of a reward's network are missing or do not fit.",
    "reward-failed": "A reward raised an error, ended its process or exceeded its time limit.",
    "reward-format": "Note: the format in which a reward of another toolkit receives images, known after its set-up.",
    "reward-process-state": "Warning: a reward changes the process that it runs in.",
    "reward-skipped": "Warning: a reward failed, and its images have no score.",
    "reward-result": "A reward did not return one finite score or None for each image.",
    "reward-metadata": "A prompt or its metadata lacks what the reward needs.",
    "nothing-scored": "No image of the first iteration has a score, or no prompt of a set can be scored.",
    "images-unscored": "Warning: many images, or the images of many prompts, have no score.",
    "reward-state": "The state of a reward cannot be saved or restored.",
    "reward-images": "Images, or the examples of a reward, have a wrong type, shape or number.",
    "reward-combined": "The combined reward is not a finite number.",
    # Servers
    "address-invalid": "An address, host or port cannot be used.",
    "token-invalid": "A server token is missing or has characters that no header can carry.",
    "server-unreachable": "A server does not answer.",
    "server-refused": "A server refused the request.",
    "server-protocol": "A message of a server, worker process or client is invalid or has another protocol version.",
    # Feedback
    "feedback-store": "The store of human feedback cannot be used, or another program uses it.",
    "feedback-item": "An image or answer does not fit the feedback store.",
    "feedback-empty": "There are no images to judge, or no answers, or too few.",
    # Runs
    "run-folder-used": "The run folder already holds files.",
    "run-folder-locked": "Another process uses the run folder.",
    "run-folder-missing": "The folder is not a run folder.",
    "link-outside": "A link in a folder points outside it, or an entry is neither a file nor a folder.",
    "record-damaged": "Warning or error: lines of a log file cannot be read.",
    "checkpoint-missing": "The run has no intact checkpoint.",
    "checkpoint-damaged": "A checkpoint, or the file `latest` or `good`, is damaged.",
    "checkpoint-mismatch": "A checkpoint does not belong to this run or model.",
    "resume-settings": "Settings changed that a resumed run must keep.",
    "resume-inputs": "Inputs of a run changed since it began, or its rewards exist only in a Python program.",
    "evaluation-cut-off": "Warning: an evaluation was interrupted and is repeated by a resume.",
    "nothing-learned": "The run is complete, but its generator was never updated.",
    "update-not-finite": "A loss, gradient or weight is not finite.",
    "distillation-no-rewards": "A distillation has no rewards.",
    "tracker-failed": "Warning: a tracker failed or is too slow, and lacks some values of the run.",
    "guard-alarm": "Warning: the guard raised an alarm.",
    "guard-stopped": "The guard stopped the run.",
    "guard-limited": "Warning: the guard cannot compare some metrics.",
    "export-mismatch": "The exported LoRA does not reproduce the images of the run.",
    # Processes and plugins
    "processes-count": "The number of processes does not fit the groups, the reward or the launcher.",
    "process-failed": "A process of a run was killed or makes no progress, or the connection of the processes broke.",
    "plugin-failed": "A hook of a plugin raised an error.",
}
"""Every code with its meaning. A plugin may use codes of its own."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""The characters that `printable` escapes."""
UNSPECIFIED = "unspecified"
"""The code of an error whose author gave none, as in rewards written before codes existed."""


class Tdmr1Error(Exception):
    """An error that the user can correct.

    `message` is one sentence: what is wrong, where, what was found and what is expected. `hint` is the fix.
    `code` is one of `CODES` or a plugin's own. `values` are the names and numbers in the message, as plain JSON data.
    Secrets in all of them are redacted.
    """

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        *,
        code: str = UNSPECIFIED,
        values: Mapping[str, Any] | None = None,
    ) -> None:
        self.message = redact(message)
        super().__init__(self.message)
        self.hint = None if hint is None else redact(hint)
        self.code = code
        self.values: dict[str, Any] = redact_texts(dict(values or {}))

    def document(self) -> dict[str, Any]:
        """The error as plain data: code, message, hint and values."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "values": self.values}


class RewardWarning(UserWarning):
    """Something is wrong with a reward, and the run continues, such as a failed call whose images have no score."""

    def __init__(self, message: str, *, code: str = "reward-skipped", values: Mapping[str, Any] | None = None) -> None:
        super().__init__(redact(message))
        self.code = code
        self.values: dict[str, Any] = redact_texts(dict(values or {}))


class RewardNote(RewardWarning):
    """How a reward is used, as far as that is known only after its set-up."""

    def __init__(self, message: str, *, code: str = "reward-format", values: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, code=code, values=values)


def close_match_hint(name: str, known: Iterable[str]) -> str:
    """The hint for an unknown name: the most similar known name, or all known names."""
    names = sorted(set(known))
    match = close_match(name, names)
    if match is not None:
        return f"did you mean {match!r}?"
    return f"known: {', '.join(names)}" if names else "none is known"


def close_match(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely meant to be: misspelled, abbreviated or a part of it; None if unclear.

    Tried in this order: another spelling ("Group-Size"), a typing error ("object_cuont"), the initials ("lr"), the
    start ("learn"), a whole word ("rate"), and some letters of the name in order ("lrate"). From the initials on, a
    match counts only if no second name matches in the same way.
    """
    names = sorted(set(known))
    plain = _plain(name)
    if not plain:
        return None
    if same := [each for each in names if _plain(each) == plain]:
        return same[0]
    if similar := difflib.get_close_matches(name, names, n=1):
        return similar[0]
    for matches in (_are_initials, _is_start, _is_word, _are_letters):
        found = [each for each in names if matches(plain, each)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def _plain(name: str) -> str:
    """The letters and digits of a name, in lower case."""
    return "".join(re.findall(r"[^\W_]", name.lower()))


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W_]+", name.lower())


def _are_initials(short: str, name: str) -> bool:
    return len(short) > 1 and short == "".join(word[0] for word in _words(name))


def _is_start(short: str, name: str) -> bool:
    return len(short) > 1 and _plain(name).startswith(short)


def _is_word(short: str, name: str) -> bool:
    return short in _words(name)


def _are_letters(short: str, name: str) -> bool:
    """Whether the name has the letters of `short` in this order, and starts with the first."""
    letters = iter(_plain(name))
    return len(short) > 1 and _plain(name)[:1] == short[0] and all(letter in letters for letter in short)


def join_hints(*hints: str | None) -> str | None:
    """Hints as one text, each of them once; None without hints."""
    distinct = dict.fromkeys(hint for hint in hints if hint)
    return "; ".join(distinct).replace("?; ", "? ") or None


def describe_error(error: BaseException) -> str:
    """An exception as one line, for use inside a sentence."""
    if isinstance(error, Tdmr1Error):
        return f"{error.message} ({error.hint})" if error.hint else error.message
    try:
        text = one_line(str(error))
    except Exception as failure:
        text = f"its text cannot be shown, because that raises {type(failure).__name__}"
    return f"{type(error).__name__}: {text}".removesuffix(": ")


def printable(text: str, *, lines: bool = False) -> str:
    """The text without secrets, with escapes for characters that control a terminal, reorder text or are none.

    These are control characters, separators of lines and paragraphs, bidirectional controls and lone surrogates, such
    as `\\x1b` and `\\u202e`. With `lines`, newlines are kept.
    """
    kept = "\n" if lines else ""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] in kept else _escaped(found[0]), redact(text))


def escape_in_json(document: str) -> str:
    """A JSON document with the characters escaped that `printable` escapes. Its data are unchanged."""
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def one_line(text: str) -> str:
    """The text with every run of white space replaced by one blank."""
    return " ".join(text.split())


def shorten(text: str, length: int = 60) -> str:
    """The text without secrets, or its start with an ellipsis if it is longer than `length` characters."""
    text = redact(text)
    return text if len(text) <= length else text[: length - 1] + "…"
