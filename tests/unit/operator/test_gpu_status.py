"""GPU metrics in the status: a fault only where somebody asked for them."""

import pytest

from equipoise_operator import shares
from equipoise_operator.policy_status import policy_status
from equipoise_operator.shares import Row
from equipoise_operator.tenant_status import tenant_status
from equipoise_operator.views import Admission, PolicyView, SidecarView

NOW = "2026-01-01T00:00:00Z"
URL = "http://10.0.0.9:9400/metrics"


def sidecar(make, pod="p-0", *, exporter=URL, **gpu):
    gpu = {"exporter": exporter, "ageSeconds": 3.0, **gpu}
    return SidecarView(pod=pod, state=make.state(gpu=gpu), exporter=exporter)


def stale(make, *sidecars, problem="", **gpu):
    view = PolicyView(
        policy=make.policy(gpu=gpu), compiled=make.compiled(), sidecars=sidecars, exporters_problem=problem
    )
    (found,) = (c for c in policy_status(view, NOW).conditions if c.type == "GPUMetricsStale")
    return found.status, found.reason, found.message


class TestCondition:
    def test_fresh(self, make):
        assert stale(make, sidecar(make, utilisation=0.4)) == ("False", "Fresh", "")

    def test_nobody_asked_and_there_is_no_exporter(self, make):
        status, reason, message = stale(make, sidecar(make, exporter=None), problem="nobody looks")
        assert (status, reason) == ("Unknown", "NoExporter")
        assert "p-0 (nobody looks)" in message

    def test_one_node_of_several_without_an_exporter_is_named_and_no_fault(self, make):
        status, reason, message = stale(make, sidecar(make), sidecar(make, "p-1", exporter=None))
        assert (status, reason) == ("False", "Fresh")
        assert "p-1" in message

    def test_where_an_exporter_is_asked_for_its_lack_is_told(self, make):
        several = [sidecar(make, f"p-{n}", exporter=None) for n in range(5)]
        status, reason, message = stale(make, sidecar(make), *several, dcgm="Exporter")
        assert (status, reason) == ("True", "NoExporter")
        assert "p-0, p-1, p-2 and 2 more" in message
        assert "throughput alone" in message

    def test_one_that_does_not_answer_is_told_with_its_pod_and_why(self, make):
        silent = sidecar(make, "p-1", stale=True, problem="Unreachable", message="connection refused")
        status, reason, message = stale(make, sidecar(make), silent)
        assert (status, reason) == ("True", "Unreachable")
        assert "p-1: connection refused" in message

    def test_an_endpoint_needs_no_exporter(self, make):
        policy = {"dcgm": "Endpoint", "endpoint": "http://prometheus/federate"}
        assert stale(make, sidecar(make, exporter=None), **policy)[:2] == ("False", "Fresh")

    def test_before_the_first_reading(self, make):
        assert stale(make, sidecar(make, ageSeconds=None))[:2] == ("Unknown", "Pending")

    def test_off(self, make):
        assert stale(make, sidecar(make, stale=True), dcgm="Off") == ("False", "Off", "")

    @pytest.mark.parametrize("state", [None, {}])
    def test_sidecars_that_say_nothing_of_gpus(self, make, state):
        view = SidecarView(pod="p", state=None if state is None else make.state())
        assert stale(make, view)[:2] == ("Unknown", "NoSidecars")


class TestFigures:
    def states(self, make, *utilisations):
        tenants = [{"id": "team/blue", "gpuSeconds": 12.3, "energyJoules": 4567.0}, {"id": "team/red"}]
        return [
            make.state(gpu={"utilisation": each}, windowSeconds=60, tenants=tenants) for each in utilisations
        ]

    def test_utilisation_is_the_mean_of_those_that_know(self, make):
        assert shares.load(self.states(make, 0.2, 0.6, None)).gpu_percent == 40
        assert shares.load([make.state()]).gpu_percent is None

    def test_time_and_energy_are_summed_over_sidecars_and_absent_where_nobody_measured(self, make):
        rows = shares.Rows(self.states(make, 0.2, 0.6), lambda _: 1)
        blue, red = rows["team/blue"].usage, rows["team/red"].usage
        assert (blue.gpu_seconds, blue.energy_joules) == (25, 9100)
        assert (red.gpu_seconds, red.energy_joules) == (None, None)

    def test_a_tenant_has_the_sum_over_its_policies_of_what_is_known(self, make):
        def admission(name, **usage):
            view = PolicyView(policy=make.policy(name), compiled=None)
            return Admission(view, Row(usage=Row().usage.model_copy(update=usage)))

        tenant = make.tenant("blue")
        known = [
            admission("a", gpu_seconds=5, energy_joules=100),
            admission("b", gpu_seconds=2),
            admission("c"),
        ]
        status = tenant_status(tenant, known, "", NOW)
        assert (status.usage.gpu_seconds, status.usage.energy_joules) == (7, 100)
        assert [entry.usage.gpu_seconds for entry in status.policies] == [5, 2, None]
        none = tenant_status(tenant, [admission("a"), admission("b")], "", NOW)
        assert none.usage.gpu_seconds is None
        assert none.usage.queued == 0
