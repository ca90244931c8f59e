"""What is read of the sidecars' metrics, as the sidecars themselves write them."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from equipoise_demo.counted import Counted, parsed
from equipoise_scheduling.contract import Service, TenantShare
from equipoise_sidecar.accounting import TenantAccount
from equipoise_sidecar.gpu_ledger import Spent
from equipoise_sidecar.gpu_metrics import gpu_tenant_metrics
from equipoise_sidecar.tenant_metrics import account_metrics, share_metrics


class Exposed:
    """A registry's collector."""

    def __init__(self, *metrics):
        self.metrics = metrics

    def collect(self):
        return self.metrics


def exposition(tenant, *, cost, kept=0, missed=0, queued=0, gpu_seconds=0.0):
    """The text of a sidecar that has served one tenant."""
    account = TenantAccount()
    account.queued = queued
    for number in range(kept + missed):
        account.judged(number < kept, 0.0)
    nothing = dict.fromkeys(("counter", "demand", "entitled", "actual", "lag", "head_wait"), 0.0)
    share = TenantShare(
        tenant=tenant,
        weight=1,
        queued=queued,
        in_flight=0,
        held=False,
        total=Service(prompt=1, cached=0, generated=1, cost=cost),
        window=Service(prompt=0, cached=0, generated=0, cost=0),
        **nothing,
    )
    registry = CollectorRegistry()
    registry.register(
        Exposed(
            *share_metrics([share]),
            *account_metrics([(tenant, account)]),
            *gpu_tenant_metrics([(tenant, Spent(gpu_seconds, 1.0))]),
        )
    )
    return generate_latest(registry).decode()


def test_the_sidecars_counts_are_added_up_by_tenant():
    counted = parsed(
        [
            exposition("demo/blue", cost=100, kept=1, missed=2, queued=4, gpu_seconds=0.5),
            exposition("demo/blue", cost=30, kept=2, queued=3, gpu_seconds=0.25),
            exposition("demo/red", cost=7),
        ]
    )
    assert counted.service == {"blue": 130, "red": 7}
    assert (counted.kept["blue"], counted.judged["blue"], counted.judged["red"]) == (3, 5, 0)
    assert counted.gpu_milliseconds["blue"] == 750
    assert counted.waiting == 7
    assert counted.share_kept("blue") == counted.share_kept() == pytest.approx(3 / 5)
    assert counted.share_kept("red") is None


def test_a_phase_has_what_was_counted_after_its_start():
    start = parsed([exposition("demo/blue", cost=100, kept=1, missed=2)])
    later = parsed([exposition("demo/blue", cost=160, kept=3, missed=3, queued=2)])
    since = later.since(start)
    assert since.service == {"blue": 60}
    assert (since.kept["blue"], since.judged["blue"], since.waiting) == (2, 3, 2)
    assert later.since(Counted()) == later
