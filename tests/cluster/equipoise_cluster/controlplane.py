"""etcd, kube-apiserver and kube-controller-manager on loopback: a real API with no node.

Ready in seconds, and all of its state is one folder. The processes end with this one, however it ends. They stop in the
order controller manager, API server, etcd: an API server that has lost its etcd hangs for a minute.
"""

import http.client
import shutil
import signal
import ssl
import sys
import time
from pathlib import Path
from typing import NoReturn

from typing_extensions import override

from equipoise_cluster import kubeconfig, ports
from equipoise_cluster.binaries import Binaries
from equipoise_cluster.cluster import Cluster
from equipoise_cluster.errors import ClusterError
from equipoise_cluster.pki import Authority, KeyPair, signing_key
from equipoise_cluster.processes import Process
from equipoise_cluster.progress import Progress, Silent
from equipoise_cluster.state import TemporaryState

ADDRESS = "127.0.0.1"
SERVICE_RANGE = "10.96.0.0/16"
SERVICE_ADDRESS = "10.96.0.1"
ISSUER = "https://kubernetes.default.svc"

START_SECONDS = 180.0


class _PortTakenError(ClusterError):
    """Somebody listens on a port that was free when it was chosen."""


class ControlPlane(Cluster):
    """A control plane of our own. Made by `start`; a context manager that stops it."""

    @classmethod
    def start(
        cls,
        binaries: Binaries,
        *,
        state_dir: Path | None = None,
        port: int | None = None,
        progress: Progress | None = None,
    ) -> "ControlPlane":
        """Starts all and returns when the API server is ready.

        `state_dir` must be empty or absent; logs and kubeconfigs stay there afterwards. By default a temporary folder
        that goes at the end. `port` is the API server's; by default a free one.
        ClusterError: not Linux, a port is taken, a program ends or is not ready within three minutes.
        """
        if sys.platform != "linux":
            raise ClusterError(
                "The control plane runs on Linux alone: its pods get addresses out of 127.0.0.0/8."
            )
        if port is not None and not ports.is_free(port):
            raise ClusterError(
                f"Port {port} on {ADDRESS} is taken. Name another one, or none to have one chosen."
            )
        attempts = 3 if port is None else 1
        while True:
            control_plane = cls(binaries, state_dir, port, progress or Silent())
            try:
                control_plane._start()
            except _PortTakenError:
                control_plane.stop()
                attempts -= 1
                if not attempts:
                    raise
            except BaseException:
                control_plane.stop()
                raise
            else:
                return control_plane

    def __init__(
        self, binaries: Binaries, state_dir: Path | None, port: int | None, progress: Progress
    ) -> None:
        self._temporary = TemporaryState() if state_dir is None else None
        folder = self._temporary.folder if self._temporary else Path(state_dir or "")
        folder.mkdir(parents=True, exist_ok=True)
        self._etcd_port, self._etcd_peer_port, free = ports.choose(3, ADDRESS)
        self._port = port or free
        self._progress = progress
        self._etcd: Process | None = None
        self._apiserver: Process | None = None
        self._controller_manager: Process | None = None
        self._pki = folder / "pki"
        self._pki.mkdir(mode=0o700, exist_ok=True)
        self._authority = Authority(self._pki, "ca")
        self._tokens = signing_key(self._pki, "service-accounts")
        self._server_pair = self._authority.issue(
            "kube-apiserver",
            file="apiserver",
            hosts=[
                *(ADDRESS, SERVICE_ADDRESS, "localhost", "kubernetes", "kubernetes.default"),
                *("kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
            ],
        )
        self._tls = ssl.create_default_context(cafile=str(self._authority.certificate))
        super().__init__(
            kubeconfig=folder / "admin.kubeconfig",
            server=f"https://{ADDRESS}:{self._port}",
            ca=self._authority.certificate,
            binaries=binaries,
            state=folder,
        )

    def _start(self) -> None:
        began = time.monotonic()
        admin = self._authority.issue("kubernetes-admin", file="admin", organizations=["system:masters"])
        self._write_kubeconfig(self.kubeconfig, admin)
        self._progress.update("Starting etcd and kube-apiserver")
        self._start_etcd()
        self.start_apiserver()
        self._progress.update("Starting kube-controller-manager")
        self._start_controller_manager()
        self._until("the controller manager makes no ServiceAccounts", self._default_service_account)
        self._progress.step(
            f"Kubernetes control plane ready at {self.server} in {time.monotonic() - began:.1f} s"
        )

    # The API server on its own

    def start_apiserver(self) -> None:
        """Starts the API server on its port and waits until it is ready. ClusterError if it does not get there."""
        if self._apiserver and self._apiserver.exit_code is None:
            raise ClusterError("The API server runs: stop it first.")
        self._apiserver = self._process(
            "kube-apiserver",
            f"--etcd-servers=http://{ADDRESS}:{self._etcd_port}",
            f"--bind-address={ADDRESS}",
            f"--secure-port={self._port}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--tls-cert-file={self._server_pair.certificate}",
            f"--tls-private-key-file={self._server_pair.key}",
            f"--client-ca-file={self._authority.certificate}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._tokens.certificate}",
            f"--service-account-signing-key-file={self._tokens.key}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # It refuses a loopback address as an endpoint of the Service `kubernetes`.
            "--endpoint-reconciler-type=none",
            # Else it waits up to a minute at its end for the watches of others.
            "--shutdown-watch-termination-grace-period=2s",
            "--profiling=false",
        )
        self._wait_until_ready(self._apiserver)

    def stop_apiserver(self, *, kill: bool = False) -> None:
        """Stops the API server, with `kill` by SIGKILL. The others stay, and so do all objects."""
        if self._apiserver:
            if kill:
                self._apiserver.kill()
            else:
                self._apiserver.stop()

    def restart_apiserver(self, *, kill: bool = False) -> None:
        """Stops and starts it, on the same port and with the same objects; open watches end."""
        self.stop_apiserver(kill=kill)
        self.start_apiserver()

    def pause_apiserver(self) -> None:
        """The API server hangs (SIGSTOP): connections are accepted by the kernel and get no answer."""
        self._running_apiserver().signal(signal.SIGSTOP)

    def resume_apiserver(self) -> None:
        """The API server goes on where it was paused."""
        self._running_apiserver().signal(signal.SIGCONT)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of what was started, by name."""
        started = (self._etcd, self._apiserver, self._controller_manager)
        return {process.name: process.pid for process in started if process}

    def wait(self) -> NoReturn:
        """Blocks as long as all of it runs. ClusterError, with the end of its log, when a program has ended."""
        while True:
            for process in (self._etcd, self._apiserver, self._controller_manager):
                if process:
                    process.check()
            time.sleep(0.5)

    @override
    def stop(self) -> None:
        """Stops all, each waited for, and removes what is not to stay. Safe to call twice."""
        for process in (self._controller_manager, self._apiserver, self._etcd):
            if process:
                process.stop()
        shutil.rmtree(self.state / "etcd", ignore_errors=True)
        if self._temporary:
            self._temporary.remove()
            self._temporary = None

    # Parts

    def _start_etcd(self) -> None:
        client, peer = f"http://{ADDRESS}:{self._etcd_port}", f"http://{ADDRESS}:{self._etcd_peer_port}"
        self._etcd = self._process(
            "etcd",
            f"--data-dir={self.state / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # What a power cut would lose is of no use to anybody.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def _start_controller_manager(self) -> None:
        pair = self._authority.issue("system:kube-controller-manager", file="controller-manager")
        config = self._write_kubeconfig(self.state / "controller-manager.kubeconfig", pair)
        self._controller_manager = self._process(
            "kube-controller-manager",
            f"--kubeconfig={config}",
            f"--service-account-private-key-file={self._tokens.key}",
            f"--root-ca-file={self._authority.certificate}",
            "--use-service-account-credentials=true",
            # Its own default of 20 requests a second is what its start would otherwise wait for.
            "--kube-api-qps=1000",
            "--kube-api-burst=1000",
            "--leader-elect=false",
            "--secure-port=0",
            # No kubelet renews the Nodes' leases: these two would mark nodes and pods as lost and evict the pods.
            "--controllers=*,-node-lifecycle-controller,-taint-eviction-controller",
        )

    def _process(self, name: str, *arguments: str) -> Process:
        return Process([self.binaries[name], *arguments], self.state / f"{name}.log", cwd=self.state)

    def _running_apiserver(self) -> Process:
        if self._apiserver is None or self._apiserver.exit_code is not None:
            raise ClusterError("The API server does not run.")
        return self._apiserver

    def _write_kubeconfig(self, path: Path, pair: KeyPair) -> Path:
        return kubeconfig.write(
            path, server=self.server, ca=self._authority.certificate.read_bytes(), credentials=pair
        )

    def _wait_until_ready(self, apiserver: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers_ready():
            for process in (self._etcd, apiserver):
                if process and process.exit_code is not None:
                    if "address already in use" in process.tail():
                        raise _PortTakenError(f"{process.name}: a port is taken.\n{process.tail(3)}")
                    process.check()
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"kube-apiserver is not ready after {START_SECONDS:g} s. Its log ends:\n{apiserver.tail()}"
                )
            time.sleep(0.03)

    def _answers_ready(self) -> bool:
        connection = http.client.HTTPSConnection(ADDRESS, self._port, timeout=2, context=self._tls)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _default_service_account(self) -> bool:
        assert self._controller_manager
        self._controller_manager.check()
        return self._has_service_account("default")
