"""From the API's policy to schedulers and gates: the one table of algorithms."""

from collections.abc import Iterable, Mapping

from equipoise_api.policy import Algorithm, Capacity, Cost, Overload, Prediction, Queue
from equipoise_api.tenant import Application, TenantLimits
from equipoise_scheduling.base import TenantScheduler
from equipoise_scheduling.batching import BatchingLimits
from equipoise_scheduling.contract import ApplicationSettings, SchedulerSettings, TenantSettings
from equipoise_scheduling.cost import LinearCost, ProfiledCost
from equipoise_scheduling.gate import GateKind, GateSettings
from equipoise_scheduling.history import carry_over
from equipoise_scheduling.overload import OverloadSettings
from equipoise_scheduling.prediction import PredictionSettings, Predictor
from equipoise_scheduling.schedulers.drr import DRR
from equipoise_scheduling.schedulers.equinox import Equinox
from equipoise_scheduling.schedulers.equipoise import Equipoise
from equipoise_scheduling.schedulers.exfairs import ExFairS
from equipoise_scheduling.schedulers.fairserve import FairServe
from equipoise_scheduling.schedulers.fcfs import FCFS
from equipoise_scheduling.schedulers.lcf import LCF
from equipoise_scheduling.schedulers.round_robin import RoundRobin
from equipoise_scheduling.schedulers.rpm import RPM
from equipoise_scheduling.schedulers.vtc import VTC

SCHEDULERS: Mapping[str, type[TenantScheduler]] = {
    scheduler.algorithm: scheduler
    for scheduler in (FCFS, RoundRobin, RPM, LCF, DRR, VTC, FairServe, ExFairS, Equinox, Equipoise)
}


_GATES: Mapping[str, GateKind] = {"Peak": "peak", "Prompt": "prompt", "Reserve": "reserve"}


def scheduler_settings(
    algorithm: Algorithm,
    cost: Cost,
    prediction: Prediction,
    queue: Queue,
    overload: Overload = Overload(),  # noqa: B008 - immutable
) -> SchedulerSettings:
    """Translate a policy's fields into the settings of its algorithm. ValueError for one that is not there."""
    return _scheduler(algorithm.type).settings_type.of(
        algorithm,
        cost=cost_function(cost),
        prediction=PredictionSettings(kind=prediction.type, prior_tokens=prediction.prior_tokens),
        max_queued=queue.max_requests,
        overload=OverloadSettings(
            user_per_minute=overload.user_requests_per_minute,
            application_per_minute=overload.application_requests_per_minute,
        ),
    )


def cost_function(cost: Cost) -> LinearCost | ProfiledCost:
    """Translate what a policy counts service in."""
    profile = cost.profiled
    if profile is None:
        return LinearCost(
            input=cost.input_percent / 100,
            cached=cost.cached_input_percent / 100,
            output=cost.output_percent / 100,
        )
    return ProfiledCost(
        base=profile.base_nanoseconds / 1e6,
        input=profile.input_nanoseconds / 1e6,
        output=profile.output_nanoseconds / 1e6,
        product=profile.product_nanoseconds / 1e6,
        square=profile.square_nanoseconds / 1e6,
    )


def tenant_settings(
    weight: int, limits: TenantLimits, applications: Iterable[Application] = ()
) -> TenantSettings:
    """Translate a tenant's weight and limits, as far as a scheduler enforces them, and its declared applications."""
    return TenantSettings(
        weight=float(weight),
        max_in_flight=limits.max_in_flight,
        max_queued=limits.max_queued,
        applications={
            application.name: ApplicationSettings(
                expected_input=application.expected_input_tokens,
                expected_system=application.expected_system_tokens,
                expected_output=application.expected_output_tokens,
            )
            for application in applications
        },
    )


def gate_settings(capacity: Capacity) -> GateSettings:
    """Translate a policy's capacity; slots and the size of the pool are set on the gate."""
    return GateSettings(
        kind=_GATES[capacity.gate],
        utilisation_percent=float(capacity.kv_utilisation_percent),
        headroom_percent=float(capacity.headroom_percent),
        batching=BatchingLimits(
            inter_token_seconds=capacity.inter_token_milliseconds / 1000
            if capacity.inter_token_milliseconds is not None
            else None,
            prefill_tokens=capacity.prefill_tokens,
        ),
    )


def create(
    algorithm: str,
    settings: SchedulerSettings,
    tenants: Mapping[str, TenantSettings],
    predictor: Predictor | None = None,
) -> TenantScheduler:
    """Make a scheduler by its algorithm's name. ValueError for an unknown one."""
    return _scheduler(algorithm)(settings, tenants, predictor)


def _scheduler(algorithm: str) -> type[TenantScheduler]:
    scheduler = SCHEDULERS.get(algorithm)
    if scheduler is None:
        raise ValueError(f"algorithm.type={algorithm!r} is unknown: use one of {', '.join(SCHEDULERS)}")
    return scheduler


def reconfigured(
    scheduler: TenantScheduler,
    algorithm: str,
    settings: SchedulerSettings,
    tenants: Mapping[str, TenantSettings],
    now: float,
) -> TenantScheduler:
    """Apply a new policy: to `scheduler` itself, or to a successor that takes everything over from it.

    All errors come out before anything changes.
    """
    if scheduler.algorithm == algorithm:
        scheduler.reconfigure(settings, tenants, now)
        return scheduler
    return carry_over(scheduler, create(algorithm, settings, tenants), now)
