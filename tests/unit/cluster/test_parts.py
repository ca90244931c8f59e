"""Ports, certificates, kubeconfigs, processes and progress, each on its own."""

import base64
import io
import json
import os
import signal
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from rich.console import Console

from equipoise_cluster import commands, kubeconfig, ports, state
from equipoise_cluster.errors import ClusterError, CommandError
from equipoise_cluster.pki import Authority
from equipoise_cluster.processes import Process
from equipoise_cluster.progress import ConsoleProgress


def test_chosen_ports_are_free_distinct_and_never_given_to_outgoing_connections():
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    chosen = ports.choose(20)
    assert len(set(chosen)) == 20
    assert all(port < first for port in chosen)
    with socket.create_server(("127.0.0.1", chosen[0])):
        assert not ports.is_free(chosen[0])
        assert ports.is_free(chosen[0], "127.0.0.2")


def test_a_client_trusts_an_issued_server_certificate_for_its_hosts_alone(tmp_path):
    authority = Authority(tmp_path, "ca")
    pair = authority.issue("server", file="server", hosts=["localhost", "127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pair.certificate, pair.key)
    client = ssl.create_default_context(cafile=authority.certificate)

    def handshake(name):
        near, far = socket.socketpair()
        with near, far:
            thread = threading.Thread(target=_serve, args=(server, far))
            thread.start()
            try:
                client.wrap_socket(near, server_hostname=name).close()
            finally:
                near.close()
                thread.join()

    handshake("localhost")
    handshake("127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake("elsewhere")


def _serve(context, connection):
    try:
        context.wrap_socket(connection, server_side=True).close()
    except OSError:
        connection.close()


def test_organizations_become_groups_and_keys_stay_private(tmp_path):
    pair = Authority(tmp_path, "ca").issue("me", file="me", organizations=["system:masters"])
    subject = x509.load_pem_x509_certificate(pair.certificate.read_bytes()).subject
    assert subject.rfc4514_string() == "CN=me,O=system:masters"
    assert pair.key.stat().st_mode & 0o777 == 0o600


def test_a_kubeconfig_holds_all_it_needs(tmp_path):
    path = kubeconfig.write(
        tmp_path / "reader.kubeconfig", server="https://a:1", ca=b"PEM", credentials="t", namespace="blue"
    )
    document = json.loads(path.read_text())
    assert document["current-context"] == "reader"
    assert document["contexts"][0]["context"]["namespace"] == "blue"
    assert base64.b64decode(document["clusters"][0]["cluster"]["certificate-authority-data"]) == b"PEM"
    assert document["users"] == [{"name": "reader", "user": {"token": "t"}}]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_process_outlives_the_thread_that_asked_for_it(tmp_path):
    """PR_SET_PDEATHSIG means the parent thread: a child started by a pool's thread would die with that thread."""
    started = []
    thread = threading.Thread(target=lambda: started.append(Process(["/bin/sleep", "60"], tmp_path / "log")))
    thread.start()
    thread.join()
    [process] = started
    assert process.wait(0.3) is None
    process.stop()
    assert process.exit_code == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed_and_a_paused_one_stops(tmp_path):
    stubborn = Process(
        ["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], tmp_path / "log"
    )
    while "ready" not in stubborn.tail():
        assert stubborn.wait(0.02) is None
    stubborn.stop(seconds=0.2)
    assert stubborn.exit_code == -signal.SIGKILL

    paused = Process(["/bin/sleep", "60"], tmp_path / "log")
    paused.signal(signal.SIGSTOP)
    paused.stop()
    assert paused.exit_code == -signal.SIGTERM
    paused.stop()


def test_an_ended_process_reports_its_code_and_the_end_of_its_log(tmp_path):
    process = Process(["/bin/sh", "-c", "echo first; echo last; exit 4"], tmp_path / "log")
    assert process.wait(10) == 4
    with pytest.raises(ClusterError, match=r"sh ended with code 4(.|\n)*first\nlast"):
        process.check()


def test_a_process_has_a_session_of_its_own_so_that_ctrl_c_does_not_reach_it(tmp_path):
    process = Process(["/bin/sleep", "60"], tmp_path / "log")
    try:
        assert os.getsid(process.pid) == process.pid
    finally:
        process.kill()


def test_commands_pass_input_and_report_refusals():
    cat = Path("/bin/cat")
    assert commands.run(cat, env={}, stdin="in") == "in"
    with pytest.raises(CommandError, match=r"cat /nowhere ended with code 1:\n.*No such file") as refused:
        commands.run(cat, "/nowhere", env={})
    assert "No such file" in refused.value.stderr
    with pytest.raises(ClusterError, match=r"did not end within 0\.1 s"):
        commands.run(Path("/bin/sleep"), "5", env={}, seconds=0.1)


def test_an_owned_state_folder_is_not_taken_for_an_abandoned_one(tmp_path, monkeypatch):
    monkeypatch.setattr(state.tempfile, "tempdir", str(tmp_path))
    owned = state.TemporaryState()
    foreign = tmp_path / "equipoise-cluster-without-lock"
    foreign.mkdir()
    state.remove_abandoned()
    assert owned.folder.is_dir()
    assert foreign.is_dir()
    os.close(owned._lock)
    state.remove_abandoned()
    assert not owned.folder.exists()


def test_progress_writes_lines_at_intervals_where_there_is_no_terminal(monkeypatch):
    clock = iter([0.0, 1.0, 2.0, 16.5, 16.5, 17.0])
    monkeypatch.setattr("equipoise_cluster.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out), every=15)
    progress.step("[1/2] begins")  # written at 1.0
    progress.update("1 of 9")
    progress.update("5 of 9")
    progress.update("6 of 9")
    assert out.getvalue().splitlines() == ["[1/2] begins", "5 of 9"]


def test_progress_draws_over_the_last_line_on_a_terminal():
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out, force_terminal=True, width=80))
    progress.update("1 of 9")
    progress.update("2 of 9")
    progress.step("built [in] 3 s")
    assert "\x1b[2K" in out.getvalue()
    assert "built [in] 3 s" in out.getvalue().splitlines()[-1]


def test_the_processes_of_this_package_are_found_by_their_absolute_path(tmp_path):
    with pytest.raises(ValueError, match="must be absolute"):
        Process(["sleep", "1"], tmp_path / "log")
