"""The operator's ports are open to a cluster of either family of addresses."""

import socket

import pytest
from aiohttp import ClientSession, web

from equipoise_operator import health
from equipoise_operator.listen import every_address
from equipoise_operator.settings import Settings


def has_ipv6_loopback():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
async def test_unless_told_otherwise_probes_of_both_families_are_answered(address):
    if ":" in address and not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6 loopback")
    runner = web.AppRunner(health.app(alive=str, ready=str, metrics=bytes))
    await runner.setup()
    try:
        await web.SockSite(runner, every_address(0)).start()
        port = runner.addresses[0][1]
        async with ClientSession() as session, session.get(f"http://{address}:{port}/healthz") as answer:
            assert answer.status == 200
    finally:
        await runner.cleanup()


def test_without_ipv6_there_is_ipv4(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with every_address(0) as listening:
        assert listening.family == socket.AF_INET
        with socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=5):
            pass


def test_an_address_may_be_named():
    environment = {"POD_NAME": "operator-0", "EQUIPOISE_HOST": "127.0.0.1"}
    assert Settings.from_environment(environment).host == "127.0.0.1"
    assert Settings.from_environment({}).host is None
