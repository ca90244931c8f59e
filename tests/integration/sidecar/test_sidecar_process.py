"""The real process with real certificates: what the operator may do to it, and what nobody else may."""

import asyncio
import datetime as dt
import json
import signal
import ssl
import sys

import aiohttp
import pytest
from cryptography import x509

from equipoise_api.names import CONFIG_PATH, STATE_PATH, pod_identity
from equipoise_api.sidecar_config import MAX_CONFIG_BYTES, ConfigPatch, SidecarConfig
from equipoise_api.sidecar_state import SidecarState

INSTALL, POD_UID = "test-install", "11111111-2222-3333-4444-555555555555"
BLUE = {"id": "team/blue", "headerValues": ["blue"]}
RED = {"id": "team/red", "headerValues": ["red"], "weight": 3}


def make_config(*tenants, **settings) -> SidecarConfig:
    return SidecarConfig.model_validate(
        {
            "mode": "Enforce",
            "policy": {"namespace": "models", "name": "fair", "uid": "policy-uid", "generation": 1},
            "trustedHeader": {"name": "X-Tenant", "peers": ["127.0.0.0/8"]},
            "tenants": sorted(tenants or (BLUE, RED), key=lambda tenant: tenant["id"]),
            **settings,
        }
    )


class TestConfiguration:
    async def test_a_push_makes_it_ready_and_serve(self, sidecar):
        async def engine_reached():
            return (await sidecar.state()).engine.reachable

        await sidecar.until(engine_reached)  # its probe takes as long as the engine takes for three answers
        assert await sidecar.health("/readyz") == (503, "no configuration yet\n")
        status, _, _ = await sidecar.chat("blue")
        assert status == 503
        config = make_config()
        assert await sidecar.put(config, 1, 1) == (
            200,
            {"revision": config.revision, "epoch": 1, "sequence": 1, "applied": True},
        )
        assert await sidecar.health("/readyz") == (200, "ok\n")
        status, headers, text = await sidecar.chat("blue")
        assert status == 200
        assert headers["x-equipoise-tenant"] == "team/blue"
        assert text.endswith("data: [DONE]\n\n")
        state = await sidecar.state()
        assert (state.revision, state.epoch, state.sequence) == (config.revision, 1, 1)
        assert (state.policy.uid, state.pod_uid, state.ready) == ("policy-uid", POD_UID, True)
        assert state.engine.reachable
        assert state.engine.kv_tokens == 10_000
        blue = await sidecar.tenant("team/blue")
        assert blue.generated_tokens == 8
        assert blue.service == blue.prompt_tokens + 2 * 8
        assert (blue.wait.total, blue.ttft.total) == (1, 1)

    async def test_the_same_revision_again_does_nothing_but_move_the_pair(self, sidecar):
        config = make_config()
        await sidecar.put(config, 1, 1)
        status, result = await sidecar.put(config, 2, 7)
        assert (status, result["applied"]) == (200, False)
        state = await sidecar.state()
        assert (state.epoch, state.sequence) == (2, 7)

    async def test_an_older_push_gets_409_and_the_pair_that_holds(self, sidecar):
        await sidecar.put(make_config(), 3, 5)
        status, problem = await sidecar.put(make_config(BLUE), 2, 900)
        assert (status, problem["epoch"], problem["sequence"]) == (409, 3, 5)
        status, problem = await sidecar.put(make_config(BLUE), 3, 4)
        assert status == 409
        assert (await sidecar.state()).revision == make_config().revision

    async def test_a_patch_changes_tenants_and_a_wrong_base_gets_412(self, sidecar):
        base, wanted = make_config(), make_config(BLUE, {**RED, "weight": 9}, {"id": "team/green"})
        await sidecar.put(base, 1, 1)
        patch = ConfigPatch(
            epoch=1,
            sequence=2,
            base_revision=base.revision,
            revision=wanted.revision,
            tenants=[tenant for tenant in wanted.tenants if tenant.id != "team/blue"],
        )
        assert (await sidecar.patch(patch))[0] == 200
        assert (await sidecar.state()).revision == wanted.revision
        again = patch.model_copy(update={"sequence": 3, "base_revision": "0" * 64, "revision": "1" * 64})
        status, problem = await sidecar.patch(again)
        assert (status, problem["revision"]) == (412, wanted.revision)
        wrong_result = patch.model_copy(
            update={"sequence": 3, "base_revision": wanted.revision, "revision": "1" * 64}
        )
        assert (await sidecar.patch(wrong_result))[0] == 412
        removal = ConfigPatch(
            epoch=1, sequence=4, base_revision=wanted.revision, revision=base.revision,
            tenants=[base.tenants[1]], removed=["team/green"],
        )  # fmt: skip
        assert (await sidecar.patch(removal))[0] == 200
        assert (await sidecar.state()).revision == base.revision

    async def test_an_invalid_push_gets_422_with_the_field_and_the_last_good_goes_on(self, sidecar):
        config = make_config()
        await sidecar.put(config, 1, 1)
        head = b'{"epoch":1,"sequence":2,"revision":"x","config":'
        for body, field in (
            (b"\xff{", None),
            (b"[]", None),
            (head + b'{"mode":"Sometimes"}}', "config.mode"),
            (head + b'{"tenants":[{"id":"a/b","weight":0}]}}', "config.tenants.0.weight"),
            (head + b'{"hmacKeys":[{"id":"1","secret":"AAAA"}]}}', "hmacKeys.0.secret"),
            (head + b'{"schemaVersion":99}}', "schemaVersion"),
        ):
            status, problem = await sidecar.admin("PUT", CONFIG_PATH, body)
            assert (status, problem.get("field")) == (422, field), (body, problem)
        state = await sidecar.state()
        assert state.revision == config.revision
        assert "equipoise_config_refused 1.0" in (await sidecar.health("/metrics"))[1]
        assert (await sidecar.chat("blue"))[0] == 200
        await sidecar.put(config, 1, 3)
        assert "equipoise_config_refused 0.0" in (await sidecar.health("/metrics"))[1]

    async def test_too_large_a_push_gets_413_before_it_is_sent(self, sidecar):
        tls = sidecar.authority.context(sidecar.directory, f"spiffe://{INSTALL}/operator")
        reader, writer = await asyncio.open_connection("127.0.0.1", sidecar.admin_port, ssl=tls)
        head = f"PUT {CONFIG_PATH} HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_CONFIG_BYTES + 1}\r\n\r\n"
        writer.write(head.encode())
        assert (await asyncio.wait_for(reader.readline(), 60)).startswith(b"HTTP/1.1 413")
        writer.close()

    async def test_ten_thousand_tenants_hold_up_no_stream(self, sidecar):
        await sidecar.put(make_config(), 1, 1)
        many = make_config(
            BLUE, RED, *({"id": f"many/t{i:05}", "headerValues": [f"v{i}"]} for i in range(10_000))
        )
        gaps = []

        async def watch():
            while True:
                began = asyncio.get_running_loop().time()
                await sidecar.health("/healthz")
                gaps.append(asyncio.get_running_loop().time() - began)

        watching = asyncio.create_task(watch())
        push = json.dumps(
            {"epoch": 1, "sequence": 2, "revision": many.revision, "config": many.document()}
        ).encode()
        gaps.clear()
        assert (await sidecar.admin("PUT", CONFIG_PATH, push))[0] == 200
        watching.cancel()
        assert (await sidecar.state()).revision == many.revision
        assert len(gaps) >= 10, "parsing on the event loop would have let two or three through"
        assert (await sidecar.chat("v9999"))[1]["x-equipoise-tenant"] == "many/t09999"


class TestWhoMay:
    async def test_another_sidecar_and_another_installs_operator_get_403(self, sidecar):
        for identity in (pod_identity(INSTALL, "another-pod"), "spiffe://another-install/operator"):
            other = sidecar.authority.context(sidecar.directory, identity)
            for method, path in (
                ("PUT", CONFIG_PATH),
                ("GET", STATE_PATH),
                ("GET", "/debug/fairness/requests"),
            ):
                status, problem = await sidecar.admin(method, path, tls=other)
                assert (status, problem["message"]) == (403, "only the operator configures a sidecar")

    async def test_without_a_certificate_of_the_authority_there_is_no_connection(self, sidecar, tmp_path):
        nobody = sidecar.authority.context(sidecar.directory, None)
        forged = type(sidecar.authority)("a forger").context(tmp_path, f"spiffe://{INSTALL}/operator")
        forged.load_verify_locations(cadata=sidecar.authority.pem)
        for tls in (nobody, forged):
            with pytest.raises((aiohttp.ClientError, ssl.SSLError, OSError)):
                await sidecar.admin("GET", STATE_PATH, tls=tls)

    async def test_the_plain_port_offers_no_configuration(self, sidecar):
        assert (await sidecar.health(CONFIG_PATH))[0] == 404
        assert (await sidecar.health(STATE_PATH))[0] == 404

    async def test_the_sidecar_shows_the_certificate_of_its_pod(self, sidecar):
        certificate = await shown(sidecar)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [pod_identity(INSTALL, POD_UID)]


async def shown(sidecar):
    """Return the certificate of a new connection to the admin port."""
    tls = sidecar.authority.context(sidecar.directory, f"spiffe://{INSTALL}/operator")
    _, writer = await asyncio.open_connection("127.0.0.1", sidecar.admin_port, ssl=tls)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(certificate)


class TestCertificates:
    async def test_a_certificate_is_renewed_while_connections_are_open(self, sidecar, issuer):
        await sidecar.kill()
        issuer.lifetime = dt.timedelta(seconds=12)
        await sidecar.start()
        first = await sidecar.until(lambda: shown(sidecar))
        tls = sidecar.authority.context(sidecar.directory, f"spiffe://{INSTALL}/operator")
        connector, trace, connections = aiohttp.TCPConnector(keepalive_timeout=600), aiohttp.TraceConfig(), []

        async def connected(*seen):
            connections.append(seen)

        async def renewed():
            return (await shown(sidecar)).serial_number != first.serial_number

        trace.on_connection_create_end.append(connected)
        async with aiohttp.ClientSession(connector=connector, trace_configs=[trace]) as session:
            for until in (sidecar.state, renewed):
                await sidecar.until(until)
                async with session.get(sidecar.admin_url(STATE_PATH), ssl=tls) as response:
                    assert SidecarState.strictly(await response.json()).pod_uid == POD_UID
        assert len(connections) == 1, "the second answer came over the connection of before"

    async def test_an_authority_that_is_replaced_is_no_longer_believed(self, sidecar, issuer, tmp_path):
        old = issuer.authority
        new = type(old)("the next authority")
        issuer.authority, issuer.trusted = new, new.pem
        (tmp_path / "ca.pem").write_text(old.pem + new.pem)
        new_operator = new.context(tmp_path, f"spiffe://{INSTALL}/operator")

        async def believes_the_new():
            return (await sidecar.admin("GET", STATE_PATH, tls=new_operator))[0] == 200

        await sidecar.until(believes_the_new)
        old_operator = old.context(tmp_path, f"spiffe://{INSTALL}/operator")
        old_operator.load_verify_locations(cadata=new.pem)
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, OSError)):
            await sidecar.admin("GET", STATE_PATH, tls=old_operator)

    async def test_an_issuer_that_refuses_is_asked_again_and_requests_are_served_meanwhile(
        self, sidecar, issuer
    ):
        await sidecar.put(make_config(), 1, 1)
        await sidecar.kill()
        issuer.refusing = True
        await sidecar.start()
        await sidecar.until(sidecar.ready)
        assert (await sidecar.chat("blue"))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await sidecar.state()
        issuer.refusing = False
        await sidecar.until(sidecar.state)


class TestRestart:
    async def test_configuration_and_counters_survive_a_kill(self, sidecar):
        config = make_config()
        await sidecar.put(config, 4, 2)
        for _ in range(3):
            await sidecar.chat("red", max_tokens=40)
        red = await sidecar.written("team/red")
        incarnation = (await sidecar.state()).incarnation
        await sidecar.kill()
        await sidecar.start()
        await sidecar.until(sidecar.ready)
        assert (await sidecar.chat("red"))[1]["x-equipoise-tenant"] == "team/red"
        state = await sidecar.until(sidecar.state)
        assert (state.revision, state.epoch, state.sequence) == (config.revision, 4, 2)
        assert state.incarnation != incarnation
        assert (await sidecar.tenant("team/red")).counter > red.counter

    async def test_what_is_on_disk_is_for_the_sidecar_alone(self, sidecar):
        await sidecar.put(make_config(engineApiKey="engine-secret"), 1, 1)
        file = sidecar.directory / "state" / "config.json"
        assert "engine-secret" in file.read_text()
        assert file.stat().st_mode & 0o777 == 0o600
        assert (sidecar.directory / "state" / "control.sock").stat().st_mode & 0o777 == 0o600
        assert "engine-secret" not in sidecar.log.read_text()

    async def test_a_damaged_configuration_on_disk_is_left_behind(self, sidecar):
        await sidecar.put(make_config(), 1, 1)
        await sidecar.kill()
        (sidecar.directory / "state" / "config.json").write_bytes(b'{"epoch": 1, "conf')
        (sidecar.directory / "state" / "counters.json").write_bytes(b"\x00\x01")
        await sidecar.start()
        await sidecar.until(sidecar.state)
        assert (await sidecar.state()).revision is None
        assert (await sidecar.put(make_config(), 1, 1))[0] == 200


async def running_stream(sidecar, engine):
    """Begin an answer, and return in its middle: the engine is paused."""
    await sidecar.until(sidecar.ready)
    before = engine.stats.generation_tokens
    stream = asyncio.create_task(sidecar.chat("blue", max_tokens=400))

    async def begun():
        return engine.stats.generation_tokens > before

    async def runs():
        return (await sidecar.state()).load.running == 1

    await sidecar.until(begun)
    engine.loop.pause()
    await sidecar.until(runs)
    return stream


class TestDrain:
    async def test_sigterm_lets_a_stream_end_and_refuses_new_work(self, sidecar, engine):
        await sidecar.put(make_config(), 1, 1)
        stream = await running_stream(sidecar, engine)
        sidecar.process.send_signal(signal.SIGTERM)
        await sidecar.until(sidecar.draining)
        status, headers, _ = await sidecar.chat("red")
        assert (status, headers["x-equipoise-reason"], headers["retry-after"]) == (503, "draining", "1")
        assert (await sidecar.health("/healthz"))[0] == 200
        engine.loop.resume()
        status, _, text = await stream
        assert status == 200
        assert text.endswith("data: [DONE]\n\n")
        assert await asyncio.wait_for(sidecar.process.wait(), 60) == 0

    async def test_the_drain_command_waits_for_the_last_request_and_leaves_the_file(self, sidecar, engine):
        await sidecar.put(make_config(), 1, 1)
        stream = await running_stream(sidecar, engine)
        drained = sidecar.directory / "drained"
        command = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from equipoise_sidecar.cli import drain; sys.exit(drain())",
            env=sidecar.environment,
            stdout=asyncio.subprocess.PIPE,
        )
        await sidecar.until(sidecar.draining)
        await asyncio.sleep(0.5)
        assert command.returncode is None
        assert not drained.exists()
        engine.loop.resume()
        said, _ = await asyncio.wait_for(command.communicate(), 60)
        assert (await stream)[0] == 200
        assert (command.returncode, said) == (0, b"drained\n")
        assert drained.exists()
        assert (await sidecar.health("/readyz"))[0] == 503
        assert sidecar.process.returncode is None

    async def test_a_drain_that_runs_out_of_time_says_what_is_left_and_sigterm_adds_no_more(
        self, sidecar, engine
    ):
        await sidecar.kill()
        sidecar.environment["EQUIPOISE_DRAIN_SECONDS"] = "1"
        await sidecar.start()
        await sidecar.until(sidecar.state)
        await sidecar.put(make_config(), 1, 1)
        stream = await running_stream(sidecar, engine)
        reader, writer = await asyncio.open_unix_connection(sidecar.directory / "state" / "control.sock")
        writer.write(b"drain\n")
        assert await asyncio.wait_for(reader.readline(), 60) == b"timeout: 1 requests left\n"
        writer.close()
        sidecar.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(sidecar.process.wait(), 60) == 0
        with pytest.raises(aiohttp.ClientError):
            await stream

    async def test_a_second_signal_cuts_off_what_is_left_and_ends_in_order(self, sidecar, engine):
        await sidecar.put(make_config(), 1, 1)
        stream = await running_stream(sidecar, engine)
        sidecar.process.send_signal(signal.SIGTERM)
        await sidecar.until(sidecar.draining)
        sidecar.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(sidecar.process.wait(), 60) == 0
        assert "what is left is cut off" in sidecar.log.read_text()
        with pytest.raises(aiohttp.ClientError):
            await stream
        assert "team/blue" in (sidecar.directory / "state" / "counters.json").read_text()

    async def test_a_drain_of_nobody_says_so_and_does_not_hold_the_engine_up(self, sidecar):
        await sidecar.kill()
        command = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sys; from equipoise_sidecar.cli import drain; sys.exit(drain())",
            env=sidecar.environment,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await command.communicate()
        assert command.returncode == 1
        assert b"is the sidecar running?" in said
        assert (sidecar.directory / "drained").exists()


class TestStart:
    async def test_settings_that_cannot_work_are_named(self, sidecar):
        await sidecar.kill()
        sidecar.environment["EQUIPOISE_CA_FILE"] = ""
        sidecar.log.write_text("")
        await sidecar.start()
        assert await asyncio.wait_for(sidecar.process.wait(), 60) == 2
        said = sidecar.log.read_text()
        assert said == "equipoise sidecar: EQUIPOISE_ISSUER_URL needs EQUIPOISE_CA_FILE too\n"

    async def test_a_port_that_is_taken_is_named(self, sidecar):
        taken = type(sidecar)(
            sidecar.directory, sidecar.authority, dict(sidecar.environment), sidecar.data_port, 0, 0
        )
        taken.environment["EQUIPOISE_STATE_DIR"] = str(sidecar.directory / "other")
        taken.log = sidecar.directory / "other.log"
        await taken.start()
        assert await asyncio.wait_for(taken.process.wait(), 60) == 2
        assert "EQUIPOISE_HEALTH_PORT: 127.0.0.1" in taken.log.read_text()

    async def test_an_engine_that_comes_late_is_waited_for(self, sidecar, engine):
        await engine.stop()
        await sidecar.put(make_config(), 1, 1)

        async def lost():
            return (await sidecar.health("/readyz"))[1] == "the engine cannot be reached\n"

        await sidecar.until(lost)
        waiting = asyncio.create_task(sidecar.chat("blue"))

        async def queued():
            return (await sidecar.state()).load.queued == 1

        await sidecar.until(queued)
        assert "the engine cannot be reached" in (await sidecar.health("/debug/fairness/requests"))[1]
        async with type(engine)(profile="fast", speed=4, uds=engine.uds):
            status, _, text = await waiting
        assert status == 200
        assert text.endswith("data: [DONE]\n\n")
