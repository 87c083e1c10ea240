"""`tdmr1 rewards serve`: a reward for runs on other machines."""

from __future__ import annotations

import os
import secrets
from types import ModuleType
from typing import Annotated

import typer

from tdmr1_cli.commands.rewards.common import OptionsOption, SourceArgument, build
from tdmr1_cli.output import data, warning
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.serving.addresses import is_loopback, listen, reachable

TOKEN_VARIABLE = "TDMR1_REWARD_TOKEN"


def command(
    source: SourceArgument,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes a free one.")] = 8000,
    options: OptionsOption = None,
    device: Annotated[
        str, typer.Option("--device", metavar="D", help="cpu, cuda:1 …; auto takes a GPU where there is one.")
    ] = "auto",
) -> None:
    """Let runs on other machines ask a reward here; Ctrl-C stops it.

    Requests carry a token: that of TDMR1_REWARD_TOKEN, or else one that is made and printed.
    """
    server = _server_module()
    built = build(source, options or ())
    spec = built.found.spec
    given = os.environ.get(TOKEN_VARIABLE)
    token = given or secrets.token_urlsafe(32)
    chosen = _device(device)
    if not is_loopback(host):
        warning(f"{host} can be reached from other machines, and the token and pictures travel unencrypted")
    listening = listen(host, port)
    app = server.build_app(built.reward, spec, token, provenance=built.found.provenance, device=chosen)
    url = f"http://{reachable(host)}:{listening.getsockname()[1]}/{spec.name}"

    def ready() -> None:
        data(f"serving {spec.name} on {chosen} at {url}")
        data(f"token: as {TOKEN_VARIABLE} has it" if given else f"token: {token}")
        data(f"use it: {TOKEN_VARIABLE}={'…' if given else token} tdmr1 train --reward remote:{url}")

    server.serve(app, listening, ready)


def _server_module() -> ModuleType:
    """The server, which needs what only the extra brings."""
    try:
        from tdmr1_rewards.serving import server
    except ModuleNotFoundError as error:
        raise Tdmr1Error(
            f"serving a reward needs {error.name}, which is not installed", "pip install 'tdmr1[serve]'"
        ) from error
    return server


def _device(name: str) -> str:
    """The device by its torch name; torch is imported only to look for a GPU."""
    if name == "cpu":
        return name
    from tdmr1_core.build.parts import choose_device

    return str(choose_device(name))
