"""The configuration in force, compiled into what the request's way and the dispatcher look up. Immutable, replaced whole.

Compiling 10,000 tenants takes tens of milliseconds, so it happens off the event loop; errors come out before anything
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from equipoise_api.names import DEFAULT_TENANT
from equipoise_api.policy import Algorithm, Overload
from equipoise_api.sidecar_config import SCHEMA_VERSION, SidecarConfig, TenantConfig
from equipoise_api.tenant import SloTarget, TenantLimits
from equipoise_scheduling.contract import SchedulerSettings, TenantSettings
from equipoise_scheduling.registry import scheduler_settings, tenant_settings
from equipoise_sidecar.identity import Identity


class ConfigError(ValueError):
    """A configuration that cannot be taken: which field, and why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """One tenant's limits and promises."""

    limits: TenantLimits
    slo: SloTarget | None
    applications: Mapping[str, SloTarget] = field(default_factory=dict)
    """Of those that were promised something of their own."""

    def promise(self, application: str) -> SloTarget | None:
        """Return what requests of the application were promised."""
        return self.applications.get(application, self.slo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the request's way reads of the configuration in force."""

    configured: bool
    """False before the first configuration: nothing is served."""
    config: SidecarConfig
    """As pushed, its tenants left out."""
    revision: str | None
    identity: Identity
    tenants: Mapping[str, TenantPolicy]
    scheduler: str
    """Name of the scheduler's algorithm."""
    settings: SchedulerSettings
    tenant_settings: Mapping[str, TenantSettings]
    shadow: Mapping[str, SchedulerSettings] = field(default_factory=dict)
    """Schedulers that run beside it and decide nothing, by algorithm."""
    shadow_tenants: Mapping[str, TenantSettings] = field(default_factory=dict)
    """For these: limits hold in them, even where they are not enforced."""
    trusted_header: bytes | None = None
    """Lower-case name of the header that must not reach the engine."""

    @property
    def enforce(self) -> bool:
        """False (PassThrough): nothing is queued, limited or edited."""
        return self.config.mode == "Enforce"

    @property
    def algorithm(self) -> str:
        """Name of the scheduler in force; FCFS with an open gate is what passing through amounts to."""
        return self.config.algorithm.type if self.enforce else "PassThrough"

    @property
    def schedules(self) -> bool:
        """Whether a scheduler orders requests, if only in shadow."""
        return self.enforce or bool(self.shadow)

    @property
    def looks_at_requests(self) -> bool:
        """Whether the predictor reads more of a request than its sizes."""
        return self.config.prediction.type == "Mixture"

    @property
    def max_body_bytes(self) -> int:
        """Larger bodies get 413."""
        return self.config.queue.max_body_bytes

    @property
    def body_timeout_seconds(self) -> float:
        """Slower bodies get 408."""
        return float(self.config.queue.body_timeout_seconds)

    @property
    def engine_api_key(self) -> str | None:
        """Goes to the engine in place of the client's credentials."""
        return self.config.engine_api_key


NO_LIMITS = TenantLimits()
NOBODY = TenantPolicy(NO_LIMITS, None)


def compile_policy(config: SidecarConfig, revision: str) -> Policy:
    """Build the lookups of a configuration. Raises ConfigError. O(tenants)."""
    if config.schema_version > SCHEMA_VERSION + 1:
        raise ConfigError(
            "schemaVersion",
            f"{config.schema_version} is too new: this sidecar reads up to {SCHEMA_VERSION + 1}",
        )
    _check_ids(config.tenants)
    try:
        identity = Identity(config)
    except ValueError as error:
        place, _, message = str(error).partition(": ")
        raise ConfigError(place, message) from None
    if config.engine_api_key is not None and not _is_header_value(config.engine_api_key):
        raise ConfigError("engineApiKey", "must be printable ASCII without line breaks")
    passing = config.mode == "PassThrough"
    algorithm = Algorithm(type="FCFS") if passing else config.algorithm
    overload = Overload() if passing else config.overload
    settings = scheduler_settings(algorithm, config.cost, config.prediction, config.queue, overload)
    tenants = _tenant_settings(config, limited=not passing)
    shadow = _shadow(config)
    return Policy(
        configured=True,
        config=config.model_copy(update={"tenants": []}),
        revision=revision,
        identity=identity,
        tenants={t.id: _terms(t) for t in config.tenants},
        scheduler=algorithm.type,
        settings=replace(settings, max_queued=None) if passing else settings,
        tenant_settings=tenants,
        shadow=shadow,
        shadow_tenants=_tenant_settings(config, limited=True) if shadow and passing else tenants,
        trusted_header=identity.header,
    )


def _shadow(config: SidecarConfig) -> dict[str, SchedulerSettings]:
    settings: dict[str, SchedulerSettings] = {}
    for index, algorithm in enumerate(config.shadow):
        try:
            settings[algorithm.type] = scheduler_settings(
                algorithm, config.cost, config.prediction, config.queue, config.overload
            )
        except ValueError as error:
            raise ConfigError(f"shadow.{index}", str(error)) from None
    return settings


def _terms(tenant: TenantConfig) -> TenantPolicy:
    own = {each.name: each.slo for each in tenant.applications if each.slo is not None}
    return TenantPolicy(tenant.limits, tenant.slo, own)


def _check_ids(tenants: list[TenantConfig]) -> None:
    seen: set[str] = set()
    for index, tenant in enumerate(tenants):
        if not tenant.id or tenant.id == DEFAULT_TENANT:
            raise ConfigError(f"tenants.{index}.id", f"{tenant.id!r} is not the name of a tenant")
        if tenant.id in seen:
            raise ConfigError(f"tenants.{index}.id", f"{tenant.id} is there twice")
        seen.add(tenant.id)


def _tenant_settings(config: SidecarConfig, *, limited: bool) -> dict[str, TenantSettings]:
    settings = {
        t.id: tenant_settings(t.weight, t.limits if limited else NO_LIMITS, t.applications)
        for t in config.tenants
    }
    settings[DEFAULT_TENANT] = tenant_settings(config.default_tenant.weight, NO_LIMITS)
    return settings


def _is_header_value(text: str) -> bool:
    return text.isascii() and text.isprintable()


UNCONFIGURED = replace(compile_policy(SidecarConfig(), ""), configured=False, revision=None)
"""Before the first configuration."""
