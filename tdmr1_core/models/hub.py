"""Files from the Hugging Face hub or its local cache. Translates the errors of the hub client."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.errors import one_line

NOT_NEEDED = ["*.fp16.*", "*.fp16-*", "*.bin", "*.msgpack", "*.onnx*"]
"""Copies of the weights in other formats."""
_COPY = "or pass a local copy with --model-path or --lora"


def hub_file(repo: str, name: str) -> Path:
    """The local path of one file of a repository, downloaded if needed. Raises Tdmr1Error if it is not available."""
    from huggingface_hub import hf_hub_download

    with _translate_hub_errors(repo, name):
        return Path(hf_hub_download(repo, name))


def hub_snapshot(repo: str, patterns: Sequence[str]) -> Path:
    """The local folder of the matching files, downloaded if needed. Raises Tdmr1Error if they are not available."""
    from huggingface_hub import snapshot_download

    with _translate_hub_errors(repo, "its files"):
        return Path(snapshot_download(repo, allow_patterns=list(patterns), ignore_patterns=NOT_NEEDED))


def cached_snapshot(repo: str, patterns: Sequence[str]) -> Path | None:
    """The local folder of the matching files if the cache has the repository; None otherwise. Never downloads."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(repo, allow_patterns=list(patterns), ignore_patterns=NOT_NEEDED, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None


def revision_of(path: Path) -> str | None:
    """The commit of a path in the hub cache; None for other paths."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


@contextmanager
def _translate_hub_errors(repo: str, what: str) -> Iterator[None]:
    """Translate exceptions of the hub client to Tdmr1Error. `what` names the requested file or files."""
    from huggingface_hub import errors, get_token

    log_in = "log in with `hf auth login` or set HF_TOKEN" if get_token() is None else "check the token's permissions"
    try:
        yield
    except errors.GatedRepoError as error:
        raise _denied(
            f"access to {repo} is gated: you must accept its license on the hub",
            f"accept it at https://huggingface.co/{repo} and {log_in}, {_COPY}",
            repo,
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise _denied(
            f"{repo} is neither a local directory nor a repository on the hub that you can access",
            f"check the spelling; if it is a private repository, {log_in}",
            repo,
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(repo, what, error.__cause__, log_in) from error
    except errors.EntryNotFoundError as error:
        raise Tdmr1Error(
            f"the repository {repo} has no file {what}",
            "use a repository in the format of diffusers",
            code="model-incomplete",
            values={"source": repo, "missing": what},
        ) from error
    except errors.HfHubHTTPError as error:
        raise _http_error(repo, error, log_in) from error
    except (errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        raise _not_cached(repo, what, error, log_in) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise Tdmr1Error(
                f"the disk is full: {repo} cannot be downloaded",
                "free space, or set HF_HOME to a folder on a larger disk",
                code="not-writable",
                values={"repo": repo},
            ) from error
        message = f"{repo} cannot be downloaded: {one_line(str(error))}"
        raise _unavailable(message, f"try again, {_COPY}", repo) from error


def _not_cached(repo: str, what: str, cause: BaseException | None, log_in: str) -> Tdmr1Error:
    from huggingface_hub import errors

    if isinstance(cause, errors.HfHubHTTPError):
        return _http_error(repo, cause, log_in)
    if cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
        return _unavailable(
            f"{repo} ({what}) is not in the local cache, and HF_HUB_OFFLINE forbids the download",
            f"unset HF_HUB_OFFLINE, run `hf download {repo}` where the hub can be reached, {_COPY}",
            repo,
            offline=True,
        )
    return _unavailable(
        f"the hub cannot be reached, and {repo} ({what}) is not in the local cache",
        f"check the network and try again, {_COPY}",
        repo,
    )


def _http_error(repo: str, error: BaseException, log_in: str) -> Tdmr1Error:
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = f"the hub answered the request for {repo} with HTTP status {status}"
    if status in (401, 403):
        return _denied(message, f"{log_in}, {_COPY}", repo, status=status)
    return _unavailable(message, f"try again later, {_COPY}", repo, status=status)


def _denied(message: str, hint: str, repo: str, **values: Any) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="hub-denied", values={"repo": repo, **values})


def _unavailable(message: str, hint: str, repo: str, **values: Any) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="hub-unavailable", values={"repo": repo, **values})
