"""Where a server listens, and how its address is written."""

from __future__ import annotations

import ipaddress
import socket

from tdmr1_rewards.errors import Tdmr1Error

ANY_HOST = ("0.0.0.0", "::", "")
"""Hosts that stand for every address of the machine."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port, or a free one for 0. Raises Tdmr1Error where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise Tdmr1Error(f"the server can't listen on {host}, port {port}: {told}", "choose another --port") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The host as other machines may write it in a URL."""
    name = socket.gethostname() if host in ANY_HOST else host
    return f"[{name}]" if ":" in name else name


def network_address() -> str | None:
    """This machine's IPv4 address in its network, as a phone would need it; None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a datagram socket sends nothing by this: it only chooses its own address
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if is_loopback(address) else address
