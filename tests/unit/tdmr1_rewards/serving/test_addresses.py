import socket

import pytest
from support.errors import raises

from tdmr1_rewards.serving.addresses import is_loopback, listen, reachable

pytestmark = pytest.mark.unit


def test_port_0_is_a_free_port():
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockname()[1] > 0


def test_a_port_in_use_is_an_error():
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with raises("address-invalid", host="127.0.0.1", port=port):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("192.0.2.1", 0)])
def test_an_address_that_is_not_of_this_machine_or_range_is_an_error(host, port):
    with raises("address-invalid", host=host, port=port):
        listen(host, port)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("192.168.1.5", False), ("h", False)],
)
def test_loopback_hosts(host, loopback):
    assert is_loopback(host) is loopback


def test_hosts_in_urls():
    assert reachable("127.0.0.1") == "127.0.0.1"
    assert reachable("::1") == "[::1]"
    assert reachable("0.0.0.0") == socket.gethostname()
