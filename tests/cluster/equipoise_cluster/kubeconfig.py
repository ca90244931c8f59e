"""Writes kubeconfig files, as JSON, which is YAML."""

import base64
import json
from pathlib import Path

from equipoise_cluster.pki import KeyPair, write_private

Credentials = KeyPair | str
"""A client certificate or a bearer token."""


def write(
    path: Path, *, server: str, ca: bytes, credentials: Credentials, namespace: str = "default"
) -> Path:
    """Writes a kubeconfig with one context; the CA (PEM) and the credentials are inside it. Returns the path.

    Without a CA the machine's own are trusted.
    """
    if isinstance(credentials, str):
        user = {"token": credentials}
    else:
        user = {
            "client-certificate-data": _base64(credentials.certificate.read_bytes()),
            "client-key-data": _base64(credentials.key.read_bytes()),
        }
    cluster = {"server": server}
    if ca:
        cluster["certificate-authority-data"] = _base64(ca)
    name = path.stem
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "equipoise", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [
            {"name": name, "context": {"cluster": "equipoise", "user": name, "namespace": namespace}}
        ],
        "current-context": name,
    }
    write_private(path, json.dumps(document, indent=1).encode())
    return path


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
