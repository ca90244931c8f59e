"""Sockets that the operator listens on: probes, Prometheus and sidecars come from other addresses, by IPv4 or IPv6."""

from __future__ import annotations

import socket


def every_address(port: int) -> socket.socket:
    """Listen on all addresses, of both families where the machine has both. OSError if the port is taken."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
