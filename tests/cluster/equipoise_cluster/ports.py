"""Free TCP ports on loopback for servers that must keep their port over a restart."""

import random
import socket
from pathlib import Path

from equipoise_cluster.errors import ClusterError

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int, address: str = "127.0.0.1") -> bool:
    """Whether a server could listen there."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier server in TIME_WAIT are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def choose(count: int, address: str = "127.0.0.1") -> list[int]:
    """Ports that are free, below the kernel's ephemeral range.

    From that range the kernel gives ports to outgoing connections: while the API server restarts, a client that keeps
    trying could be given the server's own port, connect to itself, and keep the server from coming back.
    """
    first = int(_EPHEMERAL.read_text().split()[0])
    candidates = list(range(max(first - 16384, 10240), first))
    random.SystemRandom().shuffle(candidates)
    free: list[int] = []
    for port in candidates:
        if len(free) == count:
            return free
        if is_free(port, address):
            free.append(port)
    raise ClusterError(
        f"There are no {count} free TCP ports on {address} between {first - 16384} and {first}."
    )
