"""Network addresses: listening sockets, loopback hosts, and hosts in URLs."""

from __future__ import annotations

import ipaddress
import socket

from tdmr1_rewards.errors import Tdmr1Error

ANY_HOST = ("0.0.0.0", "::", "")
"""Hosts that mean all addresses of this machine."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on the port; 0 means a free port. Raises Tdmr1Error if it cannot listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Tdmr1Error(
            f"the server cannot listen on {host}, port {port}: {reason}",
            "choose another port or host",
            code="address-invalid",
            values={"host": host, "port": port, "reason": reason},
        ) from error


def is_loopback(host: str) -> bool:
    """Whether the host is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def reachable(host: str) -> str:
    """The host as other machines write it in a URL."""
    name = socket.gethostname() if host in ANY_HOST else host
    return f"[{name}]" if ":" in name else name


def network_address() -> str | None:
    """The IPv4 address of this machine in its local network, for use on a phone; None without a network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: a UDP socket only chooses its local address
        except OSError:
            return None
        address = str(probe.getsockname()[0])
    return None if is_loopback(address) else address
