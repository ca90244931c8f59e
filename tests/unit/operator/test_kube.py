"""The API client against a small HTTP server: errors by kind, deadlines, pages, tokens that change."""

import asyncio
import json

import kopf
import pytest
from aiohttp import web
from loopback import served

from equipoise_operator import credentials, kube
from equipoise_operator.kube import JSON_PATCH, NAMES_ONLY, ApiError, ApiUnreachableError, Kube, path


class Server:
    def __init__(self):
        self.requests = []
        self.answers = []

    async def handle(self, request):
        self.requests.append(
            (request.method, request.path, dict(request.query), dict(request.headers), await request.text())
        )
        answer = self.answers.pop(0) if self.answers else {}
        if callable(answer):
            answer = await answer()
        if isinstance(answer, web.Response):
            return answer
        return web.json_response(answer)


@pytest.fixture
async def server():
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/{rest:.*}", made.handle)
    async with served(app) as port:
        made.url = f"http://127.0.0.1:{port}"
        yield made


@pytest.fixture
async def client(server):
    tokens = iter("abcdefgh")
    async with Kube(lambda: kopf.ConnectionInfo(server=server.url, token=next(tokens))) as made:
        yield made


def refusal(status, reason, message):
    return web.json_response({"kind": "Status", "reason": reason, "message": message}, status=status)


@pytest.mark.parametrize(
    ("parts", "want"),
    [
        (("v1", "pods"), "/api/v1/pods"),
        (("v1", "secrets", "team"), "/api/v1/namespaces/team/secrets"),
        (("v1", "secrets", "team", "keys"), "/api/v1/namespaces/team/secrets/keys"),
        (("a.b/v1", "things", "team", "x", "status"), "/apis/a.b/v1/namespaces/team/things/x/status"),
    ],
)
def test_paths(parts, want):
    assert path(*parts) == want


@pytest.mark.parametrize(
    ("where", "want"),
    [
        ("/api/v1/pods", "pods"),
        ("/api/v1/namespaces/team/secrets/keys", "secrets"),
        ("/apis/a.b/v1/namespaces/team/things/x/status", "things"),
        ("/apis/a.b/v1", "discovery"),
        ("/api/v1/namespaces", "namespaces"),
    ],
)
def test_a_metrics_label_is_the_resource_and_never_a_name(where, want):
    assert kube._resource(where) == want


async def test_a_refusal_has_status_reason_and_message(client, server):
    server.answers = [refusal(409, "Conflict", "the object has been modified")]
    with pytest.raises(ApiError) as error:
        await client.replace("/api/v1/x", {})
    assert (error.value.status, error.value.reason) == (409, "Conflict")
    assert "modified" in str(error.value)


async def test_a_refusal_that_is_not_json_is_a_refusal_too(client, server):
    server.answers = [
        web.Response(status=502, text="bad gateway"),
        web.Response(status=503, text="[1]", content_type="application/json"),
    ]
    for status in (502, 503):
        with pytest.raises(ApiError) as error:
            await client.get("/api/v1/x")
        assert error.value.status == status


async def test_an_answer_that_is_not_json_is_no_answer(client, server):
    server.answers = [web.Response(text="<html>")]
    with pytest.raises(ApiUnreachableError, match="not JSON"):
        await client.get("/api/v1/x")


async def test_a_hanging_server_costs_the_deadline_and_no_more(client, server):
    async def hang():
        await asyncio.sleep(30)

    server.answers = [hang]
    started = asyncio.get_running_loop().time()
    with pytest.raises(ApiUnreachableError, match=r"no answer in 0\.1 s"):
        await client.get("/api/v1/x", deadline=0.1)
    assert asyncio.get_running_loop().time() - started < 15


async def test_a_refused_connection_is_unreachable(server):
    async with Kube(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1")) as client:
        with pytest.raises(ApiUnreachableError):
            await client.get("/api/v1/x")


async def test_an_expired_token_is_read_again_once(client, server):
    server.answers = [refusal(401, "Unauthorized", "expired"), {"fine": 1}]
    assert await client.get("/api/v1/x") == {"fine": 1}
    assert [headers["Authorization"] for *_, headers, _ in server.requests] == ["Bearer a", "Bearer b"]
    server.answers = [refusal(401, "Unauthorized", "no") for _ in range(2)]
    with pytest.raises(ApiError) as error:
        await client.get("/api/v1/x")
    assert error.value.status == 401


async def test_credentials_that_cannot_be_read_again_are_unreachable(server):
    loads = iter([kopf.ConnectionInfo(server=server.url)])

    def load():
        try:
            return next(loads)
        except StopIteration:
            raise kopf.LoginError("token gone") from None

    async with Kube(load) as client:
        server.answers = [refusal(401, "Unauthorized", "expired")]
        with pytest.raises(ApiUnreachableError, match="token gone"):
            await client.get("/api/v1/x")


async def test_names_come_page_by_page_as_of_one_version(client, server):
    def page(names, **metadata):
        items = [{"metadata": {"namespace": "team", "name": name, "uid": f"u-{name}"}} for name in names]
        return {"metadata": {"resourceVersion": "42", **metadata}, "items": items}

    server.answers = [page(["a", "b"], **{"continue": "next"}), page(["c"])]
    listing = await client.names("/api/v1/secrets", selector="x=y")
    assert listing.uids == {("team", "a"): "u-a", ("team", "b"): "u-b", ("team", "c"): "u-c"}
    assert listing.version == 42
    first, second = server.requests
    assert first[2]["labelSelector"] == "x=y"
    assert first[3]["Accept"] == NAMES_ONLY
    assert second[2]["continue"] == "next"


async def test_an_empty_list_may_have_null_items(client, server):
    server.answers = [{"metadata": {"resourceVersion": "1"}, "items": None}]
    assert (await client.names("/api/v1/secrets")).uids == {}


async def test_bodies_and_patch_types_are_sent_as_given(client, server):
    await client.patch("/api/v1/x", [{"op": "add"}], JSON_PATCH, fieldManager="me")
    method, where, query, headers, body = server.requests[0]
    assert (method, where, query) == ("PATCH", "/api/v1/x", {"fieldManager": "me"})
    assert headers["Content-Type"] == JSON_PATCH
    assert json.loads(body) == [{"op": "add"}]


async def test_every_call_is_counted(client, server):
    counted = []
    client.on_answer = lambda *call: counted.append(call[:3])
    server.answers = [{}, refusal(404, "NotFound", "")]
    await client.get("/api/v1/namespaces/team/pods")
    with pytest.raises(ApiError):
        await client.get("/api/v1/namespaces/team/pods/x")
    assert counted == [("GET", "pods", 200), ("GET", "pods", 404)]


def test_in_a_pod_the_service_account_is_used_without_dns(monkeypatch, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setattr(credentials, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    info = credentials.load()
    assert (info.server, info.token) == ("https://[fd00::1]:6443", "secret")
    (tmp_path / "token").unlink()
    with pytest.raises(kopf.LoginError, match="mount the ServiceAccount"):
        credentials.load()


def test_without_anything_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(kopf.LoginError, match="KUBECONFIG"):
        credentials.load()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(kopf.LoginError, match="kubeconfig cannot be read"):
        credentials.load()
