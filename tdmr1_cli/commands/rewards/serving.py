"""`tdmr1 rewards serve`: serves a reward to runs on other machines."""

from __future__ import annotations

import os
import secrets
from types import ModuleType
from typing import Annotated

import typer

from tdmr1_cli.commands.rewards.common import OptionsOption, PythonOption, SourceArgument, build
from tdmr1_cli.output import data, warning
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.serving.addresses import is_loopback, listen, reachable

TOKEN_VARIABLE = "TDMR1_REWARD_TOKEN"


def command(
    source: SourceArgument,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port; 0 is a free port.")] = 8000,
    options: OptionsOption = None,
    device: Annotated[
        str, typer.Option("--device", metavar="D", help="cpu, cuda:1 …; auto is a GPU if there is one.")
    ] = "auto",
    python: PythonOption = None,
) -> None:
    """Serve a reward to runs on other machines. Ctrl-C stops it.

    Requests need a token: the value of TDMR1_REWARD_TOKEN, or a new token that is printed.
    """
    server = _server_module()
    built = build(source, options or (), python)
    spec = built.found.spec
    given = os.environ.get(TOKEN_VARIABLE)
    token = given or secrets.token_urlsafe(32)
    chosen = _device(device)
    if not is_loopback(host):
        warning(f"other machines can connect to {host}; the token and the images are sent unencrypted")
    listening = listen(host, port)
    app = server.build_app(
        built.reward, spec, token, provenance=built.found.provenance, device=chosen, python=built.python
    )
    url = f"http://{reachable(host)}:{listening.getsockname()[1]}/{spec.name}"

    def ready() -> None:
        data(f"serving {spec.name} on {chosen} at {url}")
        data(f"token: the value of {TOKEN_VARIABLE}" if given else f"token: {token}")
        data(f"use it: {TOKEN_VARIABLE}={'…' if given else token} tdmr1 train --reward remote:{url}")

    server.serve(app, listening, ready)


def _server_module() -> ModuleType:
    """The server module, which needs the extra `serve`."""
    try:
        from tdmr1_rewards.serving import server
    except ModuleNotFoundError as error:
        raise Tdmr1Error(
            f"serving a reward needs {error.name}, which is not installed",
            "pip install 'tdmr1[serve]'",
            code="dependency-missing",
            values={"package": error.name, "install": "tdmr1[serve]"},
        ) from error
    return server


def _device(name: str) -> str:
    """The torch name of a device. torch is not imported for cpu."""
    if name == "cpu":
        return name
    from tdmr1_core.distributed import ALONE

    return str(ALONE.device(name))
