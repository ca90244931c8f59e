"""Real handshakes on loopback: the operator goes on only with the pod that it means, and shows who it is."""

import asyncio
import ssl
from datetime import UTC, datetime, timedelta

import pytest

from equipoise_api import names
from equipoise_operator.pki import Authority, new_authority
from equipoise_operator.tls import OperatorTls, _load

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority():
    return Authority(new_authority("equipoise", NOW))


async def serve(authority, *, uris=(), hosts=()):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.bundle())
    _load(context, authority.own(NOW, uris=uris, hosts=hosts))
    peers = []

    async def handle(reader, writer):
        peers.append([value for _, value in writer.get_extra_info("peercert")["subjectAltName"]])
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    return server, server.sockets[0].getsockname()[1], peers


async def call(context, port, uid):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=uid)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_the_pod_that_is_meant_is_talked_to_as_the_operator(authority):
    tls = OperatorTls("equipoise", [])
    tls.renew(authority, NOW)
    server, port, peers = await serve(authority, uris=[names.pod_identity("equipoise", "pod-1")])
    async with server:
        assert await call(tls.client, port, "pod-1") == b"hello"
    assert peers == [["spiffe://equipoise/operator"]]


@pytest.mark.parametrize(
    "certificate",
    [
        {"uris": ["spiffe://equipoise/pod/pod-2"]},
        {"uris": ["spiffe://other/pod/pod-1"]},
        {"uris": ["spiffe://equipoise/operator"]},
        {"hosts": ["pod-1"]},
    ],
    ids=["another-pod", "another-install", "the-operator", "a-host-name"],
)
async def test_nobody_else_is(authority, certificate):
    tls = OperatorTls("equipoise", [])
    tls.renew(authority, NOW)
    server, port, _ = await serve(authority, **certificate)
    async with server:
        with pytest.raises(ssl.SSLCertVerificationError, match="spiffe://equipoise/pod/pod-1"):
            await call(tls.client, port, "pod-1")


async def test_a_pod_of_another_authority_is_refused(authority):
    tls = OperatorTls("equipoise", [])
    tls.renew(authority, NOW)
    other = Authority(new_authority("equipoise", NOW))
    server, port, _ = await serve(other, uris=[names.pod_identity("equipoise", "pod-1")])
    async with server:
        with pytest.raises(ssl.SSLError):
            await call(tls.client, port, "pod-1")


def test_certificates_are_renewed_half_way_and_when_the_authority_changes(authority):
    tls = OperatorTls("equipoise", ["localhost"])
    assert tls.renew(authority, NOW)
    first = tls.client
    assert not tls.renew(authority, NOW + timedelta(hours=11))
    assert tls.client is first
    assert tls.renew(authority, NOW + timedelta(hours=12))
    assert tls.client is not first
    assert tls.renew(Authority(new_authority("equipoise", NOW)), NOW + timedelta(hours=13))


async def test_a_serving_context_changes_its_certificate_without_a_restart(authority):
    tls = OperatorTls("equipoise", ["localhost"])
    tls.renew(authority, NOW - timedelta(hours=12))

    async def handle(_, writer):
        writer.close()

    async def shown(port):
        context = ssl.create_default_context(cadata=authority.bundle())
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="localhost"
        )
        serial = writer.get_extra_info("peercert")["serialNumber"]
        await reader.read()
        writer.close()
        return serial

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls.server)
    async with server:
        port = server.sockets[0].getsockname()[1]
        before = await shown(port)
        tls.renew(authority, NOW)
        assert await shown(port) != before
