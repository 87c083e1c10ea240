"""Uploads an exported LoRA with its model card to the Hugging Face hub, and translates the errors of the hub client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.errors import one_line
from tdmr1_rewards.texts.redaction import remember

COMMIT = "Upload a LoRA trained with tdmr1"
LOG_IN = "log in with `hf auth login` or set HF_TOKEN, with a token that may write"


def check_repository(repository: str) -> None:
    """Raise Tdmr1Error unless a text is a repository id OWNER/NAME of the hub. Contacts nothing."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    cause = None
    try:
        validate_repo_id(repository)
        if repository.count("/") == 1:
            return
    except HFValidationError as error:
        cause = error
    raise Tdmr1Error(
        f"{repository!r} is not a repository id of the hub, expected OWNER/NAME",
        "use at most 96 letters, digits, `-`, `_` and `.`, with a letter or digit at both ends of OWNER and NAME",
        code="argument-invalid",
        values={"repository": repository},
    ) from cause


def check_access(repository: str) -> None:
    """Raise Tdmr1Error in offline mode, and if no token of the hub is found. Contacts nothing."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise _offline(repository)
    token = get_token()
    if token is None:
        raise _denied(f"no token of the hub is found, and the upload to {repository} needs one", LOG_IN, repository)
    remember(token)


def push_export(folder: Path, names: Sequence[str], repository: str, *, private: bool) -> str:
    """Upload the files `names` of a folder to a repository in one commit, and create the repository if needed.

    Returns the URL of the repository. With `private` a new repository is private, and an existing public one is
    refused; otherwise the default of its owner applies. Raises Tdmr1Error for all failures; the files stay in place.
    """
    from huggingface_hub import HfApi

    check_access(repository)
    api = HfApi()
    with _translate_push_errors(repository, folder):
        url = str(api.create_repo(repository, private=private or None, exist_ok=True))
        if private and not api.repo_info(repository).private:
            raise Tdmr1Error(
                f"the repository {repository} exists and is public, but --private was given",
                "make it private in its settings on the hub, choose another name, or omit --private",
                code="option-conflict",
                values={"repository": repository},
            )
        api.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=list(names), commit_message=COMMIT)
    return url


@contextmanager
def _translate_push_errors(repository: str, folder: Path) -> Iterator[None]:
    """Translate exceptions of an upload to Tdmr1Error. The hint names the folder with the files."""
    from huggingface_hub import errors

    again = f"the exported files are still in {folder}; the same command uploads them"
    try:
        yield
    except Tdmr1Error:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise _offline(repository) from error
    except Exception as error:  # the hub client and its Xet library raise errors of any type
        response = _response_of(error)
        if response is not None:
            raise _refused(repository, error, response, again) from error
        if isinstance(error, errors.HTTPError):
            message, hint = f"the hub cannot be reached: {repository} was not uploaded", "check the network"
        else:
            message, hint = f"the upload to {repository} failed: {one_line(str(error))}", "try again later"
        raise _unavailable(message, f"{hint}; {again}", repository) from error


def _response_of(error: BaseException | None) -> Any:
    """The response of the hub that an exception or one of its causes contains; None if the hub did not answer."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.HfHubHTTPError) and error.response is not None:
            return error.response
        error = error.__cause__
    return None


def _refused(repository: str, error: Exception, response: Any, again: str) -> Tdmr1Error:
    """The error for a response with an HTTP error status."""
    status = response.status_code
    denials = {
        401: f"the hub does not accept the token for {repository}",
        403: f"the token may not write to {repository}",
        404: f"the hub has no owner of {repository}, or the token may not see the repository",
    }
    if status in denials:
        return _denied(f"{denials[status]} (HTTP status {status})", f"{LOG_IN}; {again}", repository, status=status)
    reason = response.headers.get("X-Error-Message") or (str(error) if isinstance(error, ValueError) else "")
    message = f"the hub refused the upload to {repository} with HTTP status {status}"
    message = f"{message}: {one_line(reason)}" if reason else message
    hint = "correct the files" if status == 400 else "try again later"
    return _unavailable(message, f"{hint}; {again}", repository, status=status)


def _offline(repository: str) -> Tdmr1Error:
    message = f"HF_HUB_OFFLINE is set, so that nothing can be uploaded to {repository}"
    return _unavailable(message, "unset HF_HUB_OFFLINE, or see the files with --dry-run", repository, offline=True)


def _denied(message: str, hint: str, repository: str, **values: Any) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="hub-denied", values={"repo": repository, **values})


def _unavailable(message: str, hint: str, repository: str, **values: Any) -> Tdmr1Error:
    return Tdmr1Error(message, hint, code="hub-unavailable", values={"repo": repository, **values})
