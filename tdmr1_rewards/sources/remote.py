"""A reward on a server that runs `tdmr1 rewards serve`. It waits while the server is restarted."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import requests
from pydantic import Field, SecretStr
from urllib3.exceptions import ProtocolError

from tdmr1_rewards.api import RewardBatch, RewardResult, RewardSpec
from tdmr1_rewards.calling.wire import PROTOCOL, check_token, decode_result, encode_batch
from tdmr1_rewards.errors import Tdmr1Error, one_line, printable, shorten
from tdmr1_rewards.options import RewardOptions
from tdmr1_rewards.sources.server_info import check_protocol, read_info
from tdmr1_rewards.texts.documents import parse_json
from tdmr1_rewards.texts.redaction import remember

UNAVAILABLE = (408, 502, 503, 504)
"""HTTP status codes of a proxy whose server is down, of a busy server, and of a request that came too slowly."""
ADOPTED = ("groupwise", "batch_size", "timeout", "image_format", "summary", "score_range")
"""Fields of the RewardSpec that a client takes from the server."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0
"""Seconds before all servers are tried again; doubled each time, up to the longest pause."""
READ_TIMEOUT = 300.0
"""Seconds without data before the server has reported its time-out, and if it reports none."""
LONGEST_MESSAGE = 1000
"""Characters of a server's error message that are shown."""


class RemoteOptions(RewardOptions):
    """Options of a reward on a server."""

    token: SecretStr | None = Field(
        None, description="the token of the server, or env:NAME; a run does not store it, so prefer token_variable"
    )
    token_variable: str = Field("TDMR1_REWARD_TOKEN", description="the environment variable that has the token")
    patience: float = Field(60.0, ge=0, description="seconds to wait for a server that is unavailable")
    connect_timeout: float = Field(5.0, gt=0, description="the time limit of a connection attempt in seconds")
    read_timeout: float | None = Field(
        None, gt=0, description="the longest time without data of an answer, in seconds; default: the server's time-out"
    )


class RemoteReward:
    """Sends batches to the servers of `url`: http://host:port/NAME, or several URLs separated by commas, in rotation.

    While no server is available (no connection, or status 408, 502, 503 or 504), requests are repeated for `patience`
    seconds. Other failures raise immediately. Raises Tdmr1Error for another form of URL, and for a token that an HTTP
    header cannot carry.
    """

    def __init__(self, url: str, options: RemoteOptions | None = None) -> None:
        self._options = options or RemoteOptions()
        self._bases, self.name = _endpoints(url)
        self._turn = 0
        self._max_body = sys.maxsize
        self._served: dict[str, dict[str, Any]] = {}
        self._session = requests.Session()
        token = self._token()
        if token is not None:
            check_token(token)
        self._session.auth = _Bearer(token)

    def setup(self, device: str) -> None:
        """Check that the servers serve this reward. They use their own device. Raises Tdmr1Error."""
        for _ in self._bases:
            info, base = self._request("GET", "/info", None)
            limits = read_info(info, base, self.name)
            self._max_body = min(self._max_body, limits.get("max_body", self._max_body))
            self._served[base] = limits

    def served_spec(self, spec: RewardSpec) -> RewardSpec:
        """The spec with what the servers say about their reward, after `setup`; of several, the smallest limits.

        Raises Tdmr1Error if one server scores whole groups and another does not, and for invalid values.
        """
        found: dict[str, list[Any]] = {
            name: [served[name] for served in self._served.values() if name in served] for name in ADOPTED
        }
        if len(set(found["groupwise"])) > 1:
            groupwise = {base: served.get("groupwise") for base, served in self._served.items()}
            raise Tdmr1Error(
                f"the servers of reward {self.name!r} differ: some of them score whole groups, some do not",
                "serve the same reward on each server",
                code="reward-spec",
                values={"reward": self.name, "field": "groupwise", "found": groupwise},
            )
        same = ("groupwise", "image_format", "summary", "score_range")
        changes: dict[str, Any] = {name: found[name][0] for name in same if found[name]}
        if found["batch_size"]:
            changes["batch_size"] = min(found["batch_size"])
        if found["timeout"]:
            changes["timeout"] = _shortest(found["timeout"])
        return replace(spec, **changes)

    def __call__(self, batch: RewardBatch) -> RewardResult:
        """Score the batch on a server. Raises Tdmr1Error if that fails."""
        batch = replace(batch, context=replace(batch.context, run_folder=None))  # the folder does not exist there
        answer, base = self._request("POST", "/score", {"protocol": PROTOCOL, "batch": encode_batch(batch)})
        check_protocol(answer, base)
        try:
            return decode_result(answer)
        except Tdmr1Error as error:
            message, values = f"the server at {base} sent an {error.message}", {**error.values, "server": base}
            raise Tdmr1Error(message, error.hint, code=error.code, values=values) from error

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _read_timeout(self) -> float | None:
        """The longest time without data: the option, else the time-out of the servers, which may be None."""
        if self._options.read_timeout is not None:
            return self._options.read_timeout
        return _shortest([served.get("timeout", READ_TIMEOUT) for served in self._served.values()] or [READ_TIMEOUT])

    def _token(self) -> str | None:
        if self._options.token is not None:
            return self._options.token.get_secret_value()
        token = os.environ.get(self._options.token_variable) or None
        remember(token)
        return token

    def _request(self, method: str, path: str, document: Any) -> tuple[dict[str, Any], str]:
        """Send a request; returns the answer and the address of the server that sent it."""
        body = None if document is None else json.dumps(document).encode("ascii")
        if body is not None and len(body) > self._max_body:
            raise Tdmr1Error(
                f"the request has {len(body)} bytes, but the server accepts at most {self._max_body}",
                "reduce `batch_size`",
                code="server-refused",
                values={"bytes": len(body), "limit": self._max_body},
            )
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            for base in self._rotation():
                cause: Exception | None = None
                values: dict[str, Any] = {"server": base}
                try:
                    response = self._session.request(
                        method,
                        base + path,
                        data=body,
                        headers={"Content-Type": "application/json"},
                        timeout=(self._options.connect_timeout, self._read_timeout()),
                        allow_redirects=False,
                    )
                except requests.RequestException as error:
                    cause = error
                    self._check_worth_retrying(error, base)
                    problem = _connection_problem(error, base)
                else:
                    if response.status_code not in UNAVAILABLE:
                        return self._decode(response, base), base
                    problem = f"the server at {base} is unavailable ({_server_message(response)})"
                    values["status"] = response.status_code
            if time.monotonic() - began + pause > self._options.patience:
                waited = f" for {time.monotonic() - began:.0f} s" if self._options.patience else ""
                raise Tdmr1Error(
                    f"{problem}{waited}",
                    "check that `tdmr1 rewards serve` runs there, or increase the option `patience`",
                    code="server-unreachable",
                    values=values,
                ) from cause
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _rotation(self) -> list[str]:
        """All servers, starting with the next one at each call."""
        first = self._turn % len(self._bases)
        self._turn += 1
        return [*self._bases[first:], *self._bases[:first]]

    def _check_worth_retrying(self, error: requests.RequestException, base: str) -> None:
        """Raise Tdmr1Error for an error that does not disappear with time."""
        if isinstance(error, requests.exceptions.SSLError):
            raise Tdmr1Error(
                f"the certificate of the server at {base} is not trusted: {error}",
                "use a certificate that this machine trusts, or name its authority in REQUESTS_CA_BUNDLE",
                code="server-refused",
                values={"server": base, "error": str(error)},
            ) from error
        if isinstance(error, requests.exceptions.ReadTimeout):
            raise Tdmr1Error(
                f"the server at {base} did not answer within {self._read_timeout():g} s",
                "increase the option `read_timeout`, or reduce `batch_size`",
                code="server-unreachable",
                values={"server": base, "seconds": self._read_timeout()},
            ) from error
        if isinstance(error, requests.exceptions.ContentDecodingError):
            raise Tdmr1Error(
                f"the answer of the server at {base} is not in the encoding of its header Content-Encoding",
                "check that it is a reward server",
                code="server-protocol",
                values={"server": base},
            ) from error
        if not isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            raise Tdmr1Error(
                f"the request to the server at {base} failed: {error}",
                code="server-unreachable",
                values={"server": base, "error": str(error)},
            ) from error

    def _decode(self, response: requests.Response, base: str) -> dict[str, Any]:
        """The answer as a JSON object. Raises Tdmr1Error if the server refused the request or sent no JSON object."""
        if response.status_code != 200:
            raise self._refusal(response, base)
        document = _document(response)
        if document is None:
            raise Tdmr1Error(
                f"the server at {base} did not answer with a JSON object",
                "check that it is a reward server",
                code="server-protocol",
                values={"server": base},
            )
        return document

    def _refusal(self, response: requests.Response, base: str) -> Tdmr1Error:
        """The error for an answer with another status than 200."""
        status, message = response.status_code, _server_message(response)
        code, sent = "server-refused", (_document(response) or {}).get("hint")
        hint = _shown(sent) if isinstance(sent, str) else None
        values: dict[str, Any] = {"server": base, "status": status}
        if status in (401, 403):
            sentence = f"the server at {base} {'needs a token' if self._token() is None else 'rejects the token'}"
            code = "token-invalid"
            hint = f"set {self._options.token_variable} to the token that `tdmr1 rewards serve` printed"
        elif 300 <= status < 400:
            sentence = f"the server at {base} has moved to {response.headers.get('location', 'another address')}"
            hint = "use the new address"
        elif status < 300:
            sentence = f"the server at {base} answers with status {status} instead of 200"
            code, hint = "server-protocol", "check that it is a reward server"
        elif status == 404:
            sentence = f"there is no reward server at {base}: {message}"
            code, hint = "server-protocol", "check that it is a reward server"
        elif status < 500:
            sentence = f"the server at {base} refuses the request: {message}"
        else:
            sentence, code = f"the server at {base} failed: {message}", "reward-failed"
            hint = hint or "see the log of the server"
            values |= _place_of(_document(response) or {})
            if "line" in values:
                hint = f"on the server: {hint}"
        return Tdmr1Error(sentence, hint, code=code, values=values)


class _Bearer(requests.auth.AuthBase):
    """Sends the token as a header. With an AuthBase, requests does not replace it by an entry of .netrc."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _endpoints(url: str) -> tuple[Sequence[str], str]:
    """The addresses of the servers, without the name of the reward, and that name."""
    parts = [part.strip().rstrip("/") for part in url.split(",")]
    for part in parts:
        if not re.fullmatch(r"https?://[^/?#\s]+(/[^/?#\s]+)+", part):
            raise Tdmr1Error(
                f"{part!r} is not the address of a reward on a server",
                "write it like http://127.0.0.1:8000/object_count",
                code="reward-source",
                values={"source": part},
            )
    names = sorted({part.rpartition("/")[2] for part in parts})
    if len(names) > 1:
        raise Tdmr1Error(
            f"the addresses of the servers name different rewards: {', '.join(names)}",
            "use the same reward on each server",
            code="reward-source",
            values={"rewards": names},
        )
    return [part.rpartition("/")[0] for part in parts], names[0]


def _shortest(limits: Sequence[float | None]) -> float | None:
    """The shortest of several time limits; None is no limit."""
    return min((limit for limit in limits if limit is not None), default=None)


def _connection_problem(error: requests.RequestException, base: str) -> str:
    """What is wrong with a server whose answer could not be received."""
    began = isinstance(error, requests.exceptions.ChunkedEncodingError)
    if began or (error.args and isinstance(error.args[0], ProtocolError)):
        return f"the server at {base} closed the connection before its answer was complete, or does not use HTTP"
    return f"the server at {base} could not be reached"


def _document(response: requests.Response) -> dict[str, Any] | None:
    """The JSON object of an answer, or None. In texts, "?" replaces surrogates, which cannot be written to a file."""
    try:
        document = parse_json(json.dumps(parse_json(response.content), ensure_ascii=False).encode("utf-8", "replace"))
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _place_of(document: dict[str, Any]) -> dict[str, Any]:
    """The file and line of the reward's code in the values of an error of a server; empty if they are missing."""
    match document.get("values"):
        case {"file": str(file), "line": int(line)}:
            return {"file": file, "line": line}
    return {}


def _server_message(response: requests.Response) -> str:
    """The error message of the server, or its HTTP status."""
    error = (_document(response) or {}).get("error")
    return _shown(str(error or f"{response.status_code} {response.reason}"))


def _shown(text: str) -> str:
    """A text of a server as one line of limited length, with control characters escaped."""
    return shorten(printable(one_line(text)), LONGEST_MESSAGE)
