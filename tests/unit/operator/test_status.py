"""From views to conditions, in words that a user can act on."""

import pytest

from equipoise_api.sidecar_config import PASS_THROUGH
from equipoise_api.tenant import Rejections, TenantStatus, Usage
from equipoise_operator.findings import Finding, Reason
from equipoise_operator.policy_status import policy_status
from equipoise_operator.shares import Row
from equipoise_operator.tenant_status import tenant_status
from equipoise_operator.views import Admission, PolicyView, SidecarView

NOW = "2026-01-01T00:00:00Z"


def conditions(status):
    return {each.type: (each.status, each.reason) for each in status.conditions}


def message(status, kind):
    return next(each.message for each in status.conditions if each.type == kind)


def view(make, compiled, *sidecars, **more):
    return PolicyView(policy=make.policy(), compiled=compiled, sidecars=sidecars, **more)


def synced(make, compiled, pod="p-0", **state):
    return SidecarView(pod=pod, state=make.state(**state), held=compiled.revision, acknowledged=compiled)


class TestPolicy:
    def test_all_is_well(self, make):
        compiled = make.compiled([make.tenant_body("blue")])
        bounded = {"fairness": {"bounded": True, "boundMet": True}}
        status = policy_status(view(make, compiled, synced(make, compiled, **bounded)), NOW)
        assert conditions(status) == {
            "Ready": ("True", "Ready"),
            "Accepted": ("True", "Accepted"),
            "Programmed": ("True", "Programmed"),
            "EngineSignalStale": ("False", "Fresh"),
            "GPUMetricsStale": ("Unknown", "NoSidecars"),
            "FairnessBoundMet": ("True", "WithinBound"),
        }
        assert (status.tenants, status.revision, status.sidecars.synced_of_total) == (
            1,
            compiled.revision,
            "1/1",
        )

    def test_before_the_first_compile(self, make):
        assert conditions(policy_status(view(make, None), NOW))["Programmed"] == ("Unknown", "Pending")

    def test_without_sidecars(self, make):
        status = policy_status(view(make, make.compiled()), NOW)
        assert conditions(status)["Programmed"] == conditions(status)["Ready"] == ("False", "NoSidecars")

    def test_a_sidecar_that_lacks_it_is_named_with_its_error(self, make):
        compiled = make.compiled()
        failing = SidecarView(pod="p-1", held="old", reason="Unreachable", message="no answer in 2 s")
        status = policy_status(view(make, compiled, synced(make, compiled), failing), NOW)
        assert conditions(status)["Programmed"] == ("False", "Unreachable")
        assert "1 of 2 sidecars" in message(status, "Programmed")
        assert "p-1: no answer in 2 s" in message(status, "Programmed")
        assert status.sidecars.synced_of_total == "1/2"

    def test_of_many_sidecars_a_few_are_named(self, make):
        lacking = [SidecarView(pod=f"p-{n}") for n in range(9)]
        assert "p-2 and 6 more" in message(
            policy_status(view(make, make.compiled(), *lacking), NOW), "Programmed"
        )

    def test_a_conflict_with_an_older_policy(self, make):
        compiled = make.compiled()
        conflict = Finding(Reason.CONFLICT, "older policies govern p-1")
        status = policy_status(view(make, compiled, synced(make, compiled), conflict=conflict), NOW)
        assert conditions(status)["Accepted"] == conditions(status)["Ready"] == ("False", "Conflict")

    def test_what_was_found_at_the_compile(self, make):
        compiled = make.compiled(policy=make.policy_body(engine={"apiKeySecret": {"name": "gone"}}))
        status = policy_status(view(make, compiled, synced(make, compiled)), NOW)
        assert conditions(status)["Accepted"] == ("False", "SecretNotFound")
        assert "gone" in message(status, "Accepted")

    def test_a_version_that_cannot_be_read(self, make):
        compiled = make.compiled()
        status = policy_status(view(make, compiled, error="spec.mode: no such value"), NOW)
        assert conditions(status)["Accepted"] == ("False", "Invalid")
        assert "spec.mode" in message(status, "Accepted")

    @pytest.mark.parametrize(
        ("engine", "reason", "words"),
        [
            ({"reachable": False, "signalSeen": False}, "EngineUnreachable", "does not answer at p-0"),
            ({"reachable": True, "signalSeen": False}, "NoMetrics", "no metrics yet"),
            ({"reachable": True, "signalSeen": True}, "Stale", "no fresh engine metrics"),
        ],
    )
    def test_engine_metrics_that_are_not_fresh_are_told_with_the_pod_and_why(
        self, make, engine, reason, words
    ):
        compiled = make.compiled()
        stale = synced(make, compiled, engine={"signalStale": True} | engine)
        status = policy_status(view(make, compiled, stale, synced(make, compiled, "p-1")), NOW)
        assert conditions(status)["EngineSignalStale"] == ("True", reason)
        assert words in message(status, "EngineSignalStale")
        assert "p-0" in message(status, "EngineSignalStale")
        assert "p-1" not in message(status, "EngineSignalStale")

    def test_of_several_reasons_the_gravest_is_the_conditions_and_all_are_told(self, make):
        compiled = make.compiled()
        late = {"signalStale": True, "reachable": True}
        sidecars = [
            synced(make, compiled, engine=late),
            synced(make, compiled, "p-1", engine={"signalStale": True}),
        ]
        status = policy_status(view(make, compiled, *sidecars), NOW)
        assert conditions(status)["EngineSignalStale"] == ("True", "EngineUnreachable")
        assert "p-0" in message(status, "EngineSignalStale")

    @pytest.mark.parametrize(
        ("goes_by", "words"),
        [
            ({"uid": "uid-team-policy", "name": "policy", "generation": 1}, "p-1 (goes by generation 1): no"),
            ({"uid": "other", "name": "old", "generation": 9}, "p-1 (goes by policy team/old): no"),
            ({"uid": "uid-team-policy", "name": "policy", "generation": 2}, "p-1: no"),
        ],
    )
    def test_of_a_sidecar_that_lacks_it_is_said_what_it_goes_by(self, make, goes_by, words):
        policy = make.policy_body(meta={"generation": 2})
        compiled = make.compiled(policy=policy)
        state = make.state(policy={"namespace": "team", **goes_by}, revision="old")
        lacking = SidecarView(pod="p-1", state=state, held="old", reason="Unreachable", message="no answer")
        status = policy_status(view(make, compiled, lacking), NOW)
        assert words in message(status, "Programmed")

    def test_a_sidecar_that_still_lets_everything_pass_says_so(self, make):
        state = make.state(revision=PASS_THROUGH.revision)
        lacking = SidecarView(pod="p-1", state=state, held=PASS_THROUGH.revision)
        status = policy_status(view(make, make.compiled(), lacking), NOW)
        assert "p-1 (goes by no policy)" in message(status, "Programmed")

    def test_the_fairness_of_a_sidecar_under_another_policy_is_not_this_ones(self, make):
        compiled = make.compiled()
        broken = {"bounded": True, "boundMet": False, "bound": 10.0, "largestGap": 50.0}
        other = {"namespace": "team", "name": "old", "uid": "other", "generation": 1}
        state = make.state(
            policy=other, revision="old", fairness=broken, load={"queued": 7}, shadow=[{"algorithm": "VTC"}]
        )
        status = policy_status(view(make, compiled, SidecarView(pod="p-1", state=state, held="old")), NOW)
        assert conditions(status)["FairnessBoundMet"] == ("Unknown", "NoBound")
        assert (status.fairness.largest_gap, status.shadow) == (None, [])
        assert status.load.queued == 7

    def test_a_status_is_of_the_generation_that_was_compiled(self, make):
        old = make.compiled(policy=make.policy_body(meta={"generation": 1}))
        newer = make.policy(meta={"generation": 2})
        status = policy_status(PolicyView(policy=newer, compiled=old, sidecars=[synced(make, old)]), NOW)
        assert status.observed_generation == 1
        assert {each.observed_generation for each in status.conditions} == {1}

    def test_a_generation_that_cannot_be_compiled_is_not_programmed(self, make):
        old = make.compiled(policy=make.policy_body(meta={"generation": 1}))
        seen = PolicyView(
            policy=make.policy(meta={"generation": 2}),
            compiled=old,
            sidecars=[synced(make, old)],
            problem="403 Forbidden: secrets is forbidden",
        )
        status = policy_status(seen, NOW)
        assert conditions(status)["Programmed"] == conditions(status)["Ready"] == ("False", "NotCompiled")
        assert "secrets is forbidden" in message(status, "Programmed")
        assert status.observed_generation == 2

    def test_a_sidecar_that_holds_it_and_says_nothing_is_told(self, make):
        compiled = make.compiled()
        silent = SidecarView(pod="p-1", held=compiled.revision, reason="BadState", message="state: no number")
        status = policy_status(view(make, compiled, synced(make, compiled), silent), NOW)
        assert conditions(status)["Programmed"] == ("True", "Programmed")
        assert message(status, "Programmed") == "figures are without p-1 (state: no number)"

    def test_the_versions_that_run_are_counted(self, make):
        compiled = make.compiled()
        versions = ["1.1", "1.0", "1.1", ""]
        sidecars = [
            synced(make, compiled, f"p-{n}", softwareVersion=version) for n, version in enumerate(versions)
        ]
        counts = policy_status(view(make, compiled, *sidecars), NOW).sidecars
        assert [(each.version, each.sidecars) for each in counts.versions] == [("1.1", 2), ("1.0", 1)]
        assert counts.version_names == "1.1,1.0"

    def test_a_broken_bound_is_told_with_the_pod(self, make):
        compiled = make.compiled()
        broken = {"fairness": {"bounded": True, "boundMet": False}}
        sidecars = [synced(make, compiled), synced(make, compiled, "p-9", **broken)]
        status = policy_status(view(make, compiled, *sidecars), NOW)
        assert conditions(status)["FairnessBoundMet"] == ("False", "BoundExceeded")
        assert "p-9" in message(status, "FairnessBoundMet")

    def test_a_scheduler_without_a_bound(self, make):
        compiled = make.compiled()
        assert conditions(policy_status(view(make, compiled, synced(make, compiled)), NOW))[
            "FairnessBoundMet"
        ] == (
            "Unknown",
            "NoBound",
        )

    def test_sidecars_of_another_schema_version_are_counted(self, make):
        compiled = make.compiled()
        sidecars = [synced(make, compiled), synced(make, compiled, "p-1", schemaVersion=2, ready=False)]
        counts = policy_status(view(make, compiled, *sidecars), NOW).sidecars
        assert (counts.total, counts.ready, counts.outdated) == (2, 1, 1)


class TestTenant:
    def admission(self, make, compiled, *sidecars, row=None, **more):
        return Admission(view(make, compiled, *sidecars, **more), row or Row())

    def test_all_is_well(self, make):
        body = make.tenant_body("blue", secrets=["keys"])
        compiled = make.compiled([body], secrets=[make.secret_body("keys", k="k" * 32)])
        tenant = make.tenant("blue", secrets=["keys"])
        status = tenant_status(tenant, [self.admission(make, compiled, synced(make, compiled))], "", NOW)
        assert conditions(status) == {
            "Ready": ("True", "Ready"),
            "IdentityResolved": ("True", "Resolved"),
            "Synced": ("True", "Synced"),
        }
        (entry,) = status.policies
        assert (entry.namespace, entry.name) == ("team", "policy")
        assert [each.status for each in entry.conditions] == ["True", "True"]

    def test_a_tenant_that_no_policy_admits(self, make):
        status = tenant_status(make.tenant("blue"), [], "", NOW)
        assert conditions(status)["Synced"] == ("False", "NoPolicy")
        assert conditions(status)["Ready"][0] == "False"

    @pytest.mark.parametrize(
        ("secret", "reason"), [(None, "SecretNotFound"), ({"k": "short"}, "KeyTooShort"), ({}, "SecretEmpty")]
    )
    def test_an_identity_that_is_not_resolved(self, make, secret, reason):
        secrets = [] if secret is None else [make.secret_body("keys", **secret)]
        compiled = make.compiled([make.tenant_body("blue", secrets=["keys"])], secrets=secrets)
        status = tenant_status(
            make.tenant("blue", secrets=["keys"]),
            [self.admission(make, compiled, synced(make, compiled))],
            "",
            NOW,
        )
        assert conditions(status)["IdentityResolved"] == conditions(status)["Ready"] == ("False", reason)
        assert conditions(status)["Synced"] == ("True", "Synced")

    def test_only_a_tenant_whose_own_part_differs_is_out_of_sync(self, make):
        old = make.compiled([make.tenant_body("blue"), make.tenant_body("green")])
        new = make.compiled([make.tenant_body("blue", weight=2), make.tenant_body("green")])
        behind = SidecarView(pod="p-0", state=make.state(), held=old.revision, acknowledged=old)
        blue = tenant_status(make.tenant("blue"), [self.admission(make, new, behind)], "", NOW)
        green = tenant_status(make.tenant("green"), [self.admission(make, new, behind)], "", NOW)
        assert conditions(blue)["Synced"] == ("False", "Pending")
        assert "p-0" in message(blue, "Synced")
        assert conditions(green)["Synced"] == ("True", "Synced")

    def test_a_sidecar_with_an_unknown_configuration_lacks_everybodys(self, make):
        compiled = make.compiled([make.tenant_body("blue")])
        stranger = SidecarView(pod="p-0", state=make.state(), held="an older leader's")
        status = tenant_status(make.tenant("blue"), [self.admission(make, compiled, stranger)], "", NOW)
        assert conditions(status)["Synced"] == ("False", "Pending")

    def test_a_sidecar_without_any_serves_nobody_and_lacks_nothing(self, make):
        compiled = make.compiled([make.tenant_body("blue")])
        for held in ("", None):
            view = SidecarView(pod="p-0", held=held)
            status = tenant_status(make.tenant("blue"), [self.admission(make, compiled, view)], "", NOW)
            assert conditions(status)["Synced"] == ("True", "Synced")

    def test_a_status_is_of_the_generation_that_every_policy_has_compiled(self, make):
        def compiled(generation):
            return make.compiled([make.tenant_body("blue", meta={"generation": generation})])

        admissions = [
            Admission(PolicyView(policy=make.policy(name), compiled=compiled(generation)), Row())
            for name, generation in (("a", 3), ("b", 2))
        ]
        tenant = make.tenant("blue", meta={"generation": 3})
        status = tenant_status(tenant, admissions, "", NOW)
        assert status.observed_generation == 2
        assert {each.observed_generation for each in status.conditions} == {2}

    def test_a_tenant_that_is_not_compiled_yet_is_neither_resolved_nor_synced(self, make):
        before = make.compiled([make.tenant_body("green")])
        status = tenant_status(make.tenant("blue"), [self.admission(make, before)], "", NOW)
        assert (
            conditions(status)["Synced"] == conditions(status)["IdentityResolved"] == ("Unknown", "Pending")
        )

    def test_one_made_again_under_the_same_name_is_not_taken_for_its_predecessor(self, make):
        compiled = make.compiled([make.tenant_body("blue", meta={"uid": "first"})])
        again = make.tenant("blue", meta={"uid": "second"})
        status = tenant_status(again, [self.admission(make, compiled, synced(make, compiled))], "", NOW)
        assert conditions(status)["Synced"] == ("Unknown", "Pending")

    def test_a_bounded_weight_is_told(self, make):
        policy = make.policy_body(namespace="platform", tenants={"from": "All"})
        compiled = make.compiled([make.tenant_body("blue", weight=7)], policy=policy)
        status = tenant_status(make.tenant("blue", weight=7), [self.admission(make, compiled)], "", NOW)
        accepted = status.policies[0].conditions[0]
        assert (accepted.status, accepted.reason) == ("True", "WeightLimited")
        assert "maxWeight" in accepted.message

    @pytest.mark.parametrize(
        ("attained", "want"),
        [(None, ("Unknown", "NoRequests")), (94, ("False", "Missed")), (95, ("True", "Met"))],
    )
    def test_the_slo(self, make, attained, want):
        tenant = make.tenant("blue", slo={"ttftMilliseconds": 500, "objectivePercent": 95})
        row = Row()
        row.latency = row.latency.model_copy(update={"slo_attainment_percent": attained})
        status = tenant_status(tenant, [self.admission(make, make.compiled(), row=row)], "", NOW)
        assert conditions(status)["SLOMet"] == want

    def test_without_an_slo_there_is_no_such_condition(self, make):
        assert "SLOMet" not in conditions(tenant_status(make.tenant("blue"), [], "", NOW))

    def test_the_slo_of_an_application_is_held_to_as_well(self, make):
        fast = {"name": "chat", "slo": {"ttftMilliseconds": 500, "objectivePercent": 99}}
        tenant = make.tenant("blue", applications=[{"name": "batch"}, fast])
        row = Row()
        row.latency = row.latency.model_copy(update={"slo_attainment_percent": 97})
        status = tenant_status(tenant, [self.admission(make, make.compiled(), row=row)], "", NOW)
        assert conditions(status)["SLOMet"][0] == "False"

    def test_over_policies_usage_is_summed_latency_the_worst_and_the_share_of_the_largest_gap(self, make):
        def admission(name, actual, *, queued, p99, slo):
            row = Row()
            row.share = row.share.model_copy(update={"entitled_percent": 50, "actual_percent": actual})
            row.usage = Usage(queued=queued, rejected=[Rejections(reason="queue-full", per_minute=queued)])
            row.latency = row.latency.model_copy(
                update={"ttft_p99_milliseconds": p99, "slo_attainment_percent": slo}
            )
            return Admission(PolicyView(policy=make.policy(name), compiled=make.compiled()), row)

        status = tenant_status(
            make.tenant("blue"),
            [admission("b", 45, queued=3, p99=900, slo=80), admission("a", 20, queued=4, p99=100, slo=99)],
            "",
            NOW,
        )
        assert [entry.name for entry in status.policies] == ["a", "b"]
        assert (status.share.entitled_percent, status.share.actual_percent) == (50, 20)
        assert status.usage.queued == 7
        assert [(each.reason, each.per_minute) for each in status.usage.rejected] == [("queue-full", 7)]
        assert status.latency.ttft_p99_milliseconds == 900
        assert status.latency.slo_attainment_percent == 80

    def test_more_policies_than_fit_are_left_out(self, make):
        admissions = [
            Admission(PolicyView(policy=make.policy(f"p{n:02}"), compiled=None), Row()) for n in range(20)
        ]
        status = tenant_status(make.tenant("blue"), admissions, "", NOW)
        assert [entry.name for entry in status.policies] == [f"p{n:02}" for n in range(16)]
        TenantStatus.strictly(status.document())

    def test_a_version_that_cannot_be_read(self, make):
        status = tenant_status(make.tenant("blue"), [], "spec.weight: too small", NOW)
        assert conditions(status)["IdentityResolved"] == ("False", "Invalid")
