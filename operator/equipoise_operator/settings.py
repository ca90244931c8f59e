"""What the operator is told from outside: its environment, read once at start."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from equipoise_api.names import DEFAULT_CLASS_NAME, ISSUER_PORT, OPERATOR_PORT

DCGM_SELECTORS = ("app=nvidia-dcgm-exporter", "app.kubernetes.io/name=dcgm-exporter")
"""As the GPU Operator and the exporter's own chart label it."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


class SettingsError(ValueError):
    """A variable that is missing or wrong; the message names it and says what it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where the operator runs and what it serves."""

    install: str = "equipoise"
    """Name of the install: part of every SPIFFE identity, and of the names of its Secret and ConfigMaps."""
    class_name: str = DEFAULT_CLASS_NAME
    """Policies with this `spec.className` are served."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose objects are watched; none means all of the cluster."""
    pod_name: str
    """Who leads: unique among the replicas. The same name again means that its former process is gone."""
    pod_namespace: str
    """Namespace of the Lease and of the authority's Secret."""
    pod_ip: str | None = None
    lease_name: str = "equipoise-operator"
    http_port: int = OPERATOR_PORT
    """Plain HTTP: /healthz, /readyz, /metrics. 0: a free one."""
    issuer_port: int = ISSUER_PORT
    """HTTPS: certificates for sidecars. 0: a free one."""
    host: str | None = None
    """Address that both ports listen on; None: every one, of IPv4 and IPv6."""
    dcgm_namespace: str | None = None
    """Namespace of the dcgm-exporters; None: nobody looks for them."""
    dcgm_selectors: tuple[str, ...] = DCGM_SELECTORS
    """Label selectors of their pods; any of them will do."""
    issuer_names: tuple[str, ...] = ()
    """DNS names and addresses in the serving certificate, beside the pod's address and loopback."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the variables. SettingsError names the first that is wrong."""
        install = _name(environment, "EQUIPOISE_INSTALL", "equipoise")
        return cls(
            install=install,
            class_name=_name(environment, "EQUIPOISE_CLASS_NAME", DEFAULT_CLASS_NAME),
            watch_namespaces=tuple(
                _checked("EQUIPOISE_WATCH_NAMESPACES", name)
                for name in _list(environment, "EQUIPOISE_WATCH_NAMESPACES")
            ),
            pod_name=environment.get("POD_NAME") or f"{socket.gethostname()}-{secrets.token_hex(3)}",
            pod_namespace=_name(environment, "POD_NAMESPACE", "default"),
            pod_ip=environment.get("POD_IP") or None,
            lease_name=environment.get("EQUIPOISE_LEASE_NAME") or f"{install}-operator",
            http_port=_port(environment, "EQUIPOISE_HTTP_PORT", OPERATOR_PORT),
            issuer_port=_port(environment, "EQUIPOISE_ISSUER_PORT", ISSUER_PORT),
            host=environment.get("EQUIPOISE_HOST") or None,
            dcgm_namespace=_name(environment, "EQUIPOISE_DCGM_NAMESPACE", "") or None,
            dcgm_selectors=_list(environment, "EQUIPOISE_DCGM_SELECTORS", ";") or DCGM_SELECTORS,
            issuer_names=_list(environment, "EQUIPOISE_ISSUER_NAMES"),
        )


def _list(environment: Mapping[str, str], variable: str, separator: str = ",") -> tuple[str, ...]:
    return tuple(part.strip() for part in environment.get(variable, "").split(separator) if part.strip())


def _name(environment: Mapping[str, str], variable: str, default: str) -> str:
    value = environment.get(variable) or default
    return _checked(variable, value) if value else ""


def _checked(variable: str, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise SettingsError(
            f"{variable}={value!r} must be a DNS label: lower-case letters, digits and dashes"
        )
    return value


def _port(environment: Mapping[str, str], variable: str, default: int) -> int:
    text = environment.get(variable) or str(default)
    if not text.isdecimal() or int(text) > 65535:
        raise SettingsError(f"{variable}={text!r} must be a port, 0 to 65535")
    return int(text)
