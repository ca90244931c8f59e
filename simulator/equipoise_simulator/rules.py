"""What a policy says beyond its scheduler: who a request's tenant is, its limits, its promises, how long it may wait."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from equipoise_api.names import DEFAULT_TENANT
from equipoise_api.tenant import SloTarget, TenantLimits
from equipoise_scheduling.request import Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from equipoise_scheduling.contract import TenantSettings
    from equipoise_simulator.workload import Call

UNAUTHENTICATED = "unauthenticated"
REQUEST_TOO_LARGE = "request-too-large"
NO_LIMITS = TenantLimits()


@dataclass(frozen=True, kw_only=True)
class TenantRules:
    """One Tenant object, as far as a run needs it."""

    settings: TenantSettings
    limits: TenantLimits = NO_LIMITS
    slo: SloTarget | None = None
    applications: Mapping[str, SloTarget] = field(default_factory=dict)
    """Promises that applications have of their own."""

    def promise(self, application: str) -> SloTarget | None:
        """Return what requests of the application were promised."""
        return self.applications.get(application, self.slo)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """A policy's tenants, by the names that a trace uses for them."""

    tenants: Mapping[str, TenantRules]
    strangers: Literal["Shared", "Reject"] = "Shared"
    """What happens to requests whose tenant the policy does not know."""
    default: TenantRules
    max_wait: float

    def tenant_of(self, name: str) -> str | None:
        """Return the tenant that a request counts for; None: it is rejected."""
        if name in self.tenants:
            return name
        return DEFAULT_TENANT if self.strangers == "Shared" else None

    def of(self, tenant: str) -> TenantRules:
        """Return a tenant's rules."""
        return self.tenants.get(tenant, self.default)


class MinuteLimits:
    """Which requests the Tenants' hard limits refuse. O(1) amortised."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._accepted: dict[str, deque[float]] = {}

    def refusal(self, tenant: str, call: Call, now: float) -> str | None:
        """Return the reason for which a request is refused; None: count it as accepted."""
        limits = self._rules.of(tenant).limits
        most = limits.max_tokens_per_request
        if most is not None and call.prompt_tokens + call.max_tokens > most:
            return REQUEST_TOO_LARGE
        if limits.requests_per_minute is not None:
            accepted = self._accepted.setdefault(tenant, deque())
            while accepted and accepted[0] <= now - 60.0:
                accepted.popleft()
            if len(accepted) >= limits.requests_per_minute:
                return Reason.RATE_LIMITED
            accepted.append(now)
        return None
