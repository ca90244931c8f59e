"""Calls to a sidecar over real mutual TLS: errors by kind, deadlines, and no body from one that does not lead."""

import asyncio
import gzip
import ssl
from datetime import UTC, datetime

import pytest
from aiohttp import web
from loopback import served

from equipoise_api import names
from equipoise_api.gpu import GpuExporter
from equipoise_api.sidecar_config import ConfigPatch, ConfigPush, Problem, PushResult
from equipoise_operator import sidecar_client
from equipoise_operator.leader import NotLeadingError
from equipoise_operator.pki import Authority, new_authority
from equipoise_operator.push import difference
from equipoise_operator.sidecar_client import RefusedError, SidecarClient, SidecarError
from equipoise_operator.tls import OperatorTls, _load

NOW = datetime.now(UTC)


class Peer:
    def __init__(self):
        self.bodies = []
        self.answer = web.json_response
        self.hang = False
        self.leading = True
        self.headers = {}
        self.stream = None


@pytest.fixture
async def peer(make):
    made = Peer()
    authority = Authority(new_authority("equipoise", NOW))

    async def handle(request):
        made.headers = request.headers
        if made.stream is not None:
            return await made.stream(request)
        made.bodies.append((request.method, await request.read()))
        if made.hang:
            await asyncio.sleep(60)
        return made.respond()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.bundle())
    _load(context, authority.own(NOW, uris=[names.pod_identity("equipoise", "uid-team-a")]))
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", names.CONFIG_PATH, handle)
    app.router.add_route("*", names.STATE_PATH, handle)
    app.router.add_route("*", names.GPU_EXPORTER_PATH, handle)
    async with served(app, tls=context) as port:
        tls = OperatorTls("equipoise", [])
        tls.renew(authority, NOW)

        def require():
            if not made.leading:
                raise NotLeadingError("no")

        made.client = SidecarClient(require=require, context=lambda: tls.client, push_seconds=1.0)
        made.pod = make.pod(
            "a", ip="127.0.0.1", ports=[{"name": names.ADMIN_PORT_NAME, "containerPort": port}]
        )
        made.stranger = make.pod(
            "b", ip="127.0.0.1", ports=[{"name": names.ADMIN_PORT_NAME, "containerPort": port}]
        )
        made.respond = lambda: web.json_response(
            PushResult(revision="r", epoch=1, sequence=1, applied=True).document()
        )
        yield made
        await made.client.close()


async def test_a_put_carries_the_canonical_configuration(make, peer):
    want = make.compiled([make.tenant_body("blue")])
    result = await peer.client.put(peer.pod, want.body, want.revision, epoch=3, sequence=7)
    assert result.applied
    ((method, body),) = peer.bodies
    push = ConfigPush.model_validate_json(body)
    assert (method, push.epoch, push.sequence, push.revision) == ("PUT", 3, 7, want.revision)
    assert push.config == want.config


async def test_a_patch_carries_the_changed_tenants(make, peer):
    before = make.compiled([make.tenant_body("x"), make.tenant_body("y")])
    after = make.compiled([make.tenant_body("y", weight=3)])
    await peer.client.patch(peer.pod, difference(before, after), epoch=1, sequence=2)
    ((method, body),) = peer.bodies
    assert method == "PATCH"
    assert ConfigPatch.model_validate_json(body) == ConfigPatch(
        epoch=1,
        sequence=2,
        base_revision=before.revision,
        revision=after.revision,
        tenants=[after.tenants["team/y"]],
        removed=["team/x"],
    )


async def test_a_large_configuration_arrives_whole(make, peer):
    tenants = [make.tenant_body(f"t{n}", headers=["x" * 200]) for n in range(3000)]
    want = make.compiled(
        tenants, policy=make.policy_body(identity={"trustedHeader": {"peers": ["10.0.0.0/8"]}})
    )
    peer.client._push_seconds = 20
    await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    assert ConfigPush.model_validate_json(peer.bodies[0][1]).config.revision == want.revision


async def test_one_that_does_not_lead_sends_no_body(make, peer):
    peer.leading = False
    want = make.compiled()
    with pytest.raises(SidecarError):
        await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    assert peer.bodies == []


async def test_it_is_asked_after_connecting_not_before(make, peer):
    """What counts is the moment in which the bytes leave: a process may be stopped while it connects."""
    asked = []
    peer.client._require = lambda: asked.append(asyncio.get_running_loop().time())
    want = make.compiled()
    await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "reason"),
    [(403, "NotRecognised"), (409, "Outrun"), (412, "OtherBase"), (413, "TooLarge"), (422, "Rejected")],
)
async def test_refusals_have_a_reason_and_the_sidecars_words(make, peer, status, reason):
    problem = Problem(message="because", field="queue.maxBytes", epoch=4, sequence=2)
    peer.respond = lambda: web.json_response(problem.document(), status=status)
    want = make.compiled()
    with pytest.raises(RefusedError, match=r"queue\.maxBytes: because") as refusal:
        await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    assert (refusal.value.status, refusal.value.reason) == (status, reason)
    assert refusal.value.problem == problem


async def test_garbage_is_an_error_of_the_sidecars(make, peer):
    peer.respond = lambda: web.Response(text="<html>")
    want = make.compiled()
    with pytest.raises(SidecarError, match="push"):
        await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    with pytest.raises(SidecarError) as error:
        await peer.client.state(peer.pod)
    assert error.value.reason == "BadState"


async def test_a_state_is_read(make, peer):
    peer.respond = lambda: web.json_response(make.state(revision="r", futureField=1).document())
    assert (await peer.client.state(peer.pod)).revision == "r"
    peer.respond = lambda: web.Response(status=500, text="oops")
    with pytest.raises(RefusedError, match="oops"):
        await peer.client.state(peer.pod)


async def test_where_gpu_metrics_are_is_told_by_the_leader_alone(peer):
    peer.respond = lambda: web.Response(status=204)
    told = GpuExporter(exporter="http://10.0.0.9:9400/metrics")
    await peer.client.point(peer.pod, told)
    ((method, body),) = peer.bodies
    assert (method, GpuExporter.model_validate_json(body)) == ("PUT", told)
    peer.respond = lambda: web.json_response(Problem(message="no such path").document(), status=404)
    with pytest.raises(RefusedError, match="no such path"):
        await peer.client.point(peer.pod, told)
    peer.leading = False
    with pytest.raises(SidecarError):
        await peer.client.point(peer.pod, told)
    assert len(peer.bodies) == 2


async def test_a_hanging_sidecar_costs_the_deadline(make, peer):
    peer.hang = True
    want = make.compiled()
    started = asyncio.get_running_loop().time()
    with pytest.raises(SidecarError, match="no answer in 1 s"):
        await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    assert asyncio.get_running_loop().time() - started < 3


async def test_an_address_where_nobody_shakes_hands_costs_less_than_a_slow_answer(make, peer, monkeypatch):
    monkeypatch.setattr(sidecar_client, "CONNECT_SECONDS", 0.2)

    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        pod = make.pod("a", ip="127.0.0.1", ports=[{"name": names.ADMIN_PORT_NAME, "containerPort": port}])
        with pytest.raises(SidecarError, match=r"no connection in 0\.2 s") as error:
            await peer.client.state(pod)
    assert error.value.reason == "Unreachable"


async def test_another_pod_at_that_address_is_not_talked_to(peer):
    with pytest.raises(SidecarError) as error:
        await peer.client.state(peer.stranger)
    assert error.value.reason == "WrongPeer"
    assert peer.bodies == []


async def test_a_kept_connection_is_not_used_for_another_pod(peer):
    """Addresses are reused: a connection to the former owner must not serve the next."""
    peer.respond = lambda: web.json_response({})
    await peer.client.state(peer.pod)
    with pytest.raises(SidecarError) as error:
        await peer.client.state(peer.stranger)
    assert error.value.reason == "WrongPeer"
    assert len(peer.bodies) == 1


async def test_nobody_listening_is_unreachable(make, peer):
    pod = make.pod("a", ip="127.0.0.1", ports=[{"name": names.ADMIN_PORT_NAME, "containerPort": 1}])
    with pytest.raises(SidecarError) as error:
        await peer.client.state(pod)
    assert error.value.reason == "Unreachable"
    assert "cannot connect to 127.0.0.1:1: Connect call failed" in str(error.value)
    assert " at 0x" not in str(error.value)


async def test_without_a_certificate_nobody_is_called(peer):
    client = SidecarClient(require=lambda: None, context=lambda: None, push_seconds=1)
    with pytest.raises(SidecarError) as error:
        await client.state(peer.pod)
    assert error.value.reason == "NoCertificate"


async def test_an_answer_without_end_is_cut_off(peer, monkeypatch):
    monkeypatch.setattr(sidecar_client, "LARGEST_ANSWER", 2**20)
    sent = 0

    async def flood(request):
        nonlocal sent
        answer = web.StreamResponse()
        await answer.prepare(request)
        while sent < 2**26:
            await answer.write(b" " * 2**16)
            sent += 2**16
        return answer

    peer.stream = flood
    with pytest.raises(SidecarError, match="more than 1048576 bytes") as error:
        await peer.client.state(peer.pod)
    assert error.value.reason == "BadAnswer"
    assert sent < 2**25
    peer.stream = None
    peer.respond = lambda: web.json_response({})
    await peer.client.state(peer.pod)


async def test_a_compressed_answer_is_not_unpacked(peer):
    """Of a few bytes it could make gigabytes."""
    packed = gzip.compress(b'{"revision": "r"}')
    peer.respond = lambda: web.Response(body=packed, headers={"Content-Encoding": "gzip"})
    with pytest.raises(SidecarError) as error:
        await peer.client.state(peer.pod)
    assert error.value.reason == "BadState"
    assert peer.headers["Accept-Encoding"] == "identity"


async def test_a_refusal_of_many_words_is_cut_short(make, peer):
    peer.respond = lambda: web.json_response(
        Problem(message="x" * 10**6, field="y" * 10**6).document(), status=422
    )
    want = make.compiled()
    with pytest.raises(RefusedError) as refusal:
        await peer.client.put(peer.pod, want.body, want.revision, epoch=1, sequence=1)
    assert len(str(refusal.value)) == sidecar_client.LONGEST_PROBLEM


@pytest.mark.parametrize(
    ("state", "where"),
    [
        ('{"tenants": [{"id": "team/a", "service": NaN}]}', "JSON is malformed"),
        ('{"tenants": [{"id": "team/a", "demand": 1e999}]}', "tenants.0.demand"),
        ('{"tenants": [{"id": "team/a", "weight": 0}]}', "tenants.0.weight"),
        ('{"tenants": [{"id": "team/a", "queued": 99999999999999999999}]}', "tenants.0.queued"),
        ('{"tenants": [{"id": "team/a", "rejected": {"": 1}}]}', "tenants.0.rejected"),
        ('{"tenants": [{"id": "team/a", "ttft": {"counts": {"100000": 1}}}]}', "tenants.0.ttft.counts"),
        ('{"windowSeconds": 0}', "windowSeconds"),
        ('{"gpu": {"problem": "no word"}}', "gpu.problem"),
        ("[" * 10_000, ""),
    ],
)
async def test_a_state_that_makes_no_sense_is_refused_by_the_fields_name(peer, state, where):
    peer.respond = lambda: web.Response(text=state)
    with pytest.raises(SidecarError) as error:
        await peer.client.state(peer.pod)
    assert error.value.reason == "BadState"
    assert str(error.value).startswith(f"state: {where}")
