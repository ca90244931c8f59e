"""How the operator proves itself to the API server: the pod's ServiceAccount, or a kubeconfig."""

from __future__ import annotations

import os
from pathlib import Path

import kopf

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def load() -> kopf.ConnectionInfo:
    """Read server and credentials anew: a mounted token is replaced every hour.

    KUBECONFIG wins. In a pod the address comes from the environment, so that no cluster DNS is needed.
    kopf.LoginError says what is missing.
    """
    if not os.environ.get("KUBECONFIG") and (host := os.environ.get("KUBERNETES_SERVICE_HOST")):
        return _service_account(host, os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
    try:
        connection = kopf.login_with_kubeconfig(settings=kopf.OperatorSettings())
    except (OSError, KeyError, ValueError) as error:
        raise kopf.LoginError(f"kubeconfig cannot be read: {error!r}") from error
    if connection is None:
        raise kopf.LoginError("no API server: run in a pod, or set KUBECONFIG")
    return connection


def _service_account(host: str, port: str) -> kopf.ConnectionInfo:
    token = SERVICE_ACCOUNT / "token"
    try:
        secret = token.read_text().strip()
    except OSError as error:
        raise kopf.LoginError(f"{token}: {error.strerror}; mount the ServiceAccount's token") from error
    return kopf.ConnectionInfo(
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        ca_path=SERVICE_ACCOUNT / "ca.crt",
        token=secret,
    )
