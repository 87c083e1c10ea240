"""Files from the Hugging Face hub or its cache, and what to say when they can't be had."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.errors import one_line

_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
NOT_NEEDED = ["*.fp16.*", "*.fp16-*", "*.bin", "*.msgpack", "*.onnx*"]
"""The same weights in other formats."""
_COPY = "or give a copy of it with --model-path or --lora"


def is_hub_id(source: str) -> bool:
    """Whether a text that is no path here reads as owner/name."""
    return _ID.fullmatch(source) is not None and not Path(source).exists()


def hub_file(repo: str, name: str) -> Path:
    """One file of a repository, from the cache if nothing has changed. Raises Tdmr1Error if it can't be had."""
    from huggingface_hub import hf_hub_download

    with _in_sentences(repo, name):
        return Path(hf_hub_download(repo, name))


def hub_snapshot(repo: str, patterns: Sequence[str]) -> Path:
    """The folder with the files of a repository that match. Raises Tdmr1Error if they can't be had."""
    from huggingface_hub import snapshot_download

    with _in_sentences(repo, "its files"):
        return Path(snapshot_download(repo, allow_patterns=list(patterns), ignore_patterns=NOT_NEEDED))


def revision_of(path: Path) -> str | None:
    """The commit that a path in the hub's cache belongs to; None for any other."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


@contextmanager
def _in_sentences(repo: str, what: str) -> Iterator[None]:
    """The hub's exceptions as one sentence and a hint each."""
    from huggingface_hub import errors, get_token

    log_in = "log in with `hf auth login` or set HF_TOKEN" if get_token() is None else "check the token's permissions"
    try:
        yield
    except errors.GatedRepoError as error:
        raise Tdmr1Error(
            f"{repo} is gated: its licence must be accepted on the hub first",
            f"accept it at https://huggingface.co/{repo} and {log_in}, {_COPY}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise Tdmr1Error(
            f"there is no directory {repo} here, and no such model on the hub, or it is private",
            f"check its spelling; if it is private, {log_in}",
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(repo, what, error.__cause__, log_in) from error
    except errors.EntryNotFoundError as error:
        raise Tdmr1Error(f"{repo} has no {what}", "it must be a repository that diffusers can load") from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error, log_in) from error
    except (errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        raise _not_cached(repo, what, error, log_in) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise Tdmr1Error(f"there is no room for {repo}: the disk is full", "set HF_HOME to a larger one") from error
        raise Tdmr1Error(f"{repo} can't be downloaded: {one_line(str(error))}", f"try again, {_COPY}") from error


def _not_cached(repo: str, what: str, cause: BaseException | None, log_in: str) -> Tdmr1Error:
    from huggingface_hub import errors

    if isinstance(cause, errors.HfHubHTTPError):
        return _refused(repo, cause, log_in)
    if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
        return Tdmr1Error(
            f"{repo} is not in the hub's cache here ({what}), and HF_HUB_OFFLINE forbids to download it",
            f"unset HF_HUB_OFFLINE, run `hf download {repo}` where there is a network, {_COPY}",
        )
    return Tdmr1Error(
        f"the hub can't be reached, and {repo} is not in its cache here ({what})",
        f"check the network and try again, {_COPY}",
    )


def _refused(repo: str, error: BaseException, log_in: str) -> Tdmr1Error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return Tdmr1Error(f"the hub refused {repo} (status {status})", f"{log_in}, {_COPY}")
    return Tdmr1Error(f"the hub did not give {repo} (status {status})", f"try again later, {_COPY}")
