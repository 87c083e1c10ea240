"""A reward on another machine, behind `tdmr1 rewards serve`: it outlives a restart of its server."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

import requests
from pydantic import Field, SecretStr

from tdmr1_rewards.api import RewardBatch, RewardResult
from tdmr1_rewards.calling.wire import PROTOCOL, check_token, decode_result, encode_batch
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.options import RewardOptions

AWAY = (502, 503, 504)
"""What a proxy answers for a server that is away, or a server that has no room."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds before all endpoints are tried again, doubled each time, up to the longest."""


class RemoteOptions(RewardOptions):
    """How a reward server is spoken to."""

    token: SecretStr | None = Field(None, description="the server's token; a run's config.yaml keeps it, so rather:")
    token_variable: str = Field("TDMR1_REWARD_TOKEN", description="the environment variable that holds the token")
    patience: float = Field(60.0, ge=0, description="seconds in which a server that is away may come back")
    connect_timeout: float = Field(5.0, gt=0, description="seconds that connecting may take")
    read_timeout: float = Field(300.0, gt=0, description="seconds without a word of the answer")


class RemoteReward:
    """Asks the servers of `url`: http://host:port/NAME, or several of them separated by commas, tried in rotation.

    A server that is away (no connection, 502, 503, 504) is asked again until `options.patience` is over; whatever else
    goes wrong is told at once. Raises Tdmr1Error for a URL that is not of this form, or a token no header can carry.
    """

    def __init__(self, url: str, options: RemoteOptions | None = None) -> None:
        self._options = options or RemoteOptions()
        self._bases, self.name = _endpoints(url)
        self._turn = 0
        self._most = sys.maxsize
        self._session = requests.Session()
        token = self._token()
        if token is not None:
            check_token(token)
        self._session.auth = _Bearer(token)

    def setup(self, device: str) -> None:
        """See that a server is there and serves this reward; its device is its own. Raises Tdmr1Error."""
        for _ in self._bases:
            info, base = self._ask("GET", "/info", None)
            if info.get("protocol") != PROTOCOL:
                raise _wrong_version(base, info.get("protocol"))
            if info.get("name") != self.name:
                raise Tdmr1Error(
                    f"the server at {base} serves the reward {info.get('name')!r}, not {self.name!r}",
                    f"write remote:{base}/{info.get('name')}",
                )
            self._most = min(self._most, int(info.get("max_body", self._most)))

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """The server's answer to the batch. Raises Tdmr1Error where there is none."""
        batch = replace(batch, context=replace(batch.context, run_folder=None))  # it means nothing there
        answer, base = self._ask("POST", "/score", {"protocol": PROTOCOL, "batch": encode_batch(batch)})
        if answer.get("protocol") != PROTOCOL:
            raise _wrong_version(base, answer.get("protocol"))
        return decode_result(answer)

    def close(self) -> None:
        """Let go of the connections."""
        self._session.close()

    def _token(self) -> str | None:
        if self._options.token is not None:
            return self._options.token.get_secret_value()
        return os.environ.get(self._options.token_variable) or None

    def _ask(self, method: str, path: str, document: Any) -> tuple[dict[str, Any], str]:
        """A server's answer and which one gave it."""
        body = None if document is None else json.dumps(document).encode("ascii")
        if body is not None and len(body) > self._most:
            raise Tdmr1Error(
                f"the request has {len(body)} bytes, and the server takes {self._most} at most",
                "send fewer images a call (batch_size)",
            )
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            for base in self._rotation():
                cause: Exception | None = None
                trouble = f"the server at {base} could not be reached"
                try:
                    response = self._session.request(
                        method,
                        base + path,
                        data=body,
                        headers={"Content-Type": "application/json"},
                        timeout=(self._options.connect_timeout, self._options.read_timeout),
                        allow_redirects=False,
                    )
                except requests.RequestException as error:
                    cause = error
                    self._check_worth_retrying(error, base)
                else:
                    if response.status_code not in AWAY:
                        return self._understood(response, base), base
                    trouble = f"the server at {base} is away or has no room ({_told(response)})"
            if time.monotonic() - began + pause > self._options.patience:
                waited = f" for {time.monotonic() - began:.0f} s" if self._options.patience else ""
                raise Tdmr1Error(
                    f"{trouble}{waited}", "see that `tdmr1 rewards serve` runs there; option patience waits longer"
                ) from cause
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _rotation(self) -> list[str]:
        """Every server once, each time from the next one on."""
        first = self._turn % len(self._bases)
        self._turn += 1
        return [*self._bases[first:], *self._bases[:first]]

    def _check_worth_retrying(self, error: requests.RequestException, base: str) -> None:
        """Raise Tdmr1Error for what does not pass with time."""
        if isinstance(error, requests.exceptions.SSLError):
            raise Tdmr1Error(f"the certificate of the server at {base} can't be trusted: {error}") from error
        if isinstance(error, requests.exceptions.ReadTimeout):
            raise Tdmr1Error(
                f"the server at {base} did not answer within {self._options.read_timeout:g} s",
                "raise the option read_timeout, or send fewer images a call (batch_size)",
            ) from error
        if not isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            raise Tdmr1Error(f"the server at {base} can't be asked: {error}") from error

    def _understood(self, response: requests.Response, base: str) -> dict[str, Any]:
        if response.status_code != 200:
            self._refused(response, base)
        document = _document(response)
        if document is None:
            raise Tdmr1Error(f"{base} answered with something that is no JSON object", "is it a tdmr1 reward server?")
        return document

    def _refused(self, response: requests.Response, base: str) -> NoReturn:
        status, told, hint = response.status_code, _told(response), (_document(response) or {}).get("hint")
        if status in (401, 403):
            missing = self._token() is None
            raise Tdmr1Error(
                f"the server at {base} {'wants a token' if missing else 'refuses the token'}",
                f"set {self._options.token_variable} to the token that `tdmr1 rewards serve` printed",
            )
        if 300 <= status < 400:
            raise Tdmr1Error(f"the server at {base} is elsewhere now: {response.headers.get('location')}")
        if status == 404:
            raise Tdmr1Error(f"there is no reward server at {base}: {told}", "is it a tdmr1 reward server?")
        if status < 500:
            raise Tdmr1Error(f"the server at {base} refuses the request: {told}", hint)
        raise Tdmr1Error(f"the server at {base} failed: {told}", hint)


class _Bearer(requests.auth.AuthBase):
    """The token as a header; as an AuthBase it is not replaced by what .netrc has for the host."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _endpoints(url: str) -> tuple[Sequence[str], str]:
    """The servers' addresses, without the reward's name, and that name."""
    parts = [part.strip().rstrip("/") for part in url.split(",")]
    for part in parts:
        if not re.fullmatch(r"https?://[^/?#\s]+(/[^/?#\s]+)+", part):
            raise Tdmr1Error(
                f"{part!r} is not the address of a reward on a server",
                "write it like http://127.0.0.1:8000/object_count",
            )
    names = sorted({part.rpartition("/")[2] for part in parts})
    if len(names) > 1:
        raise Tdmr1Error(f"the servers of one reward name several: {', '.join(names)}", "name the same reward on each")
    return [part.rpartition("/")[0] for part in parts], names[0]


def _wrong_version(base: str, version: Any) -> Tdmr1Error:
    return Tdmr1Error(
        f"the server at {base} speaks version {version} of the protocol, and this tdmr1 speaks {PROTOCOL}",
        "install the same version of tdmr1 on both machines",
    )


def _document(response: requests.Response) -> dict[str, Any] | None:
    try:
        document = response.json()
    except requests.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _told(response: requests.Response) -> str:
    """The server's own sentence, or its status."""
    document = _document(response) or {}
    return str(document.get("error") or f"{response.status_code} {response.reason}")
