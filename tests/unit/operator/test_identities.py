"""Whose an identity is, and what is said to those who do not get one."""

import base64
import hashlib
import hmac

import pytest

from equipoise_api.sidecar_config import HmacKey
from equipoise_operator import identities
from equipoise_operator.findings import Reason
from equipoise_operator.identities import HMAC_SECRET_TYPE

KEY = "k" * 32
OLD = {"created": "2026-01-01T00:00:00Z"}
YOUNG = {"created": "2026-02-01T00:00:00Z"}


@pytest.fixture
def resolve(make):
    def run(tenants, secrets=(), policy=None, unlabelled=(), keys=(make.HMAC,)):
        held = {(secret.namespace, secret.name): secret for secret in secrets}
        return identities.resolve(policy or make.policy(), tenants, held, frozenset(unlabelled), keys)

    return run


def reasons(claims):
    return [finding.reason for finding in claims.findings]


def test_a_key_becomes_its_hmac_under_the_policys_key(make, resolve):
    claims = resolve([make.tenant("blue", secrets=["keys"])], [make.secret("keys", a=KEY)])["team/blue"]
    want = hmac.new(base64.b64decode(make.HMAC.secret), KEY.encode(), hashlib.sha256).hexdigest()
    assert claims.digests == [want]
    assert claims.findings == []


def test_every_entry_of_every_secret_is_a_key(make, resolve):
    secrets = [make.secret("one", a="a" * 32, b="b" * 32), make.secret("two", c="c" * 40)]
    claims = resolve([make.tenant("blue", secrets=["one", "two"])], secrets)["team/blue"]
    assert len(claims.digests) == 3


def test_while_the_hmac_key_is_replaced_digests_under_both_are_given(make, resolve):
    keys = (make.HMAC, HmacKey(id="older", secret=base64.b64encode(b"o" * 32).decode()))
    claims = resolve([make.tenant("blue", secrets=["keys"])], [make.secret("keys", a=KEY)], keys=keys)
    assert len(set(claims["team/blue"].digests)) == 2


def test_one_key_in_two_entries_is_one_key(make, resolve):
    claims = resolve([make.tenant("blue", secrets=["keys"])], [make.secret("keys", a=KEY, b=KEY + "\n")])
    assert len(claims["team/blue"].digests) == 1
    assert claims["team/blue"].findings == []


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        ({}, Reason.SECRET_EMPTY),
        ({"entries": {"a": b"\xff" * 40}}, Reason.KEY_NOT_UTF8),
        ({"a": "short"}, Reason.KEY_TOO_SHORT),
        ({"a": "x" * 31 + "\n"}, Reason.KEY_TOO_SHORT),
        ({"a": ""}, Reason.KEY_TOO_SHORT),
        ({"a": "x" * 5000}, Reason.KEY_TOO_LONG),
        ({"a": "two words " * 5}, Reason.KEY_NOT_PRINTABLE),
        ({"a": "schlüssel" * 8}, Reason.KEY_NOT_PRINTABLE),
        ({"a": "line\r\n" * 10}, Reason.KEY_NOT_PRINTABLE),
        ({"a": KEY, "kind": HMAC_SECRET_TYPE}, Reason.SECRET_NOT_USABLE),
    ],
)
def test_a_secret_that_is_no_use_says_why_and_gives_nothing(make, resolve, secret, reason):
    claims = resolve([make.tenant("blue", secrets=["keys"])], [make.secret("keys", **secret)])["team/blue"]
    assert reasons(claims) == [reason]
    assert claims.digests == []
    assert "Secret keys" in claims.findings[0].message


def test_a_bad_entry_does_not_spoil_a_good_one(make, resolve):
    claims = resolve([make.tenant("blue", secrets=["keys"])], [make.secret("keys", good=KEY, bad="short")])[
        "team/blue"
    ]
    assert len(claims.digests) == 1
    assert reasons(claims) == [Reason.KEY_TOO_SHORT]


def test_a_message_never_holds_the_key(make, resolve):
    secrets = [make.secret("a", k="tiny-secret"), make.secret("b", k=KEY), make.secret("c", k=KEY)]
    tenants = [make.tenant("blue", secrets=["a", "b"]), make.tenant("green", secrets=["c"])]
    for claims in resolve(tenants, secrets).values():
        for finding in claims.findings:
            assert "tiny-secret" not in finding.message
            assert KEY not in finding.message


def test_a_missing_secret_and_one_without_the_label_have_reasons_of_their_own(make, resolve):
    tenant = make.tenant("blue", secrets=["keys"])
    assert reasons(resolve([tenant])["team/blue"]) == [Reason.SECRET_NOT_FOUND]
    unlabelled = resolve([tenant], unlabelled=[("team", "keys")])["team/blue"]
    assert reasons(unlabelled) == [Reason.SECRET_NOT_LABELLED]
    assert "kubectl label secret -n team keys equipoise.dev/credential=true" in unlabelled.findings[0].message


def test_a_secret_of_another_namespace_is_out_of_reach(make, resolve):
    claims = resolve([make.tenant("blue", secrets=["keys"])], [make.secret("keys", "other", a=KEY)])
    assert reasons(claims["team/blue"]) == [Reason.SECRET_NOT_FOUND]


def test_the_older_tenant_keeps_a_key_that_two_claim(make, resolve):
    secrets = [make.secret("one", a=KEY), make.secret("two", a=KEY)]
    old = make.tenant("zebra", secrets=["one"], meta=OLD)
    young = make.tenant("ant", secrets=["two"], meta=YOUNG)
    claims = resolve([young, old], secrets)
    assert claims["team/zebra"].findings == []
    assert claims["team/ant"].digests == []
    assert reasons(claims["team/ant"]) == [Reason.CONFLICT]
    assert "team/zebra" in claims["team/ant"].findings[0].message


def test_of_two_tenants_of_one_age_the_first_by_name_keeps_it(make, resolve):
    secrets = [make.secret("one", a=KEY)]
    claims = resolve([make.tenant("b", secrets=["one"]), make.tenant("a", secrets=["one"])], secrets)
    assert claims["team/a"].findings == []
    assert reasons(claims["team/b"]) == [Reason.CONFLICT]


def test_the_younger_keeps_its_other_keys(make, resolve):
    secrets = [make.secret("one", a=KEY), make.secret("two", a=KEY, b="b" * 32)]
    claims = resolve(
        [
            make.tenant("old", secrets=["one"], meta=OLD),
            make.tenant("young", secrets=["two"], meta=YOUNG),
        ],
        secrets,
    )
    assert len(claims["team/young"].digests) == 1


TRUSTING = {"trustedHeader": {"name": "X-Team", "peers": ["10.0.0.0/8"]}}


def test_header_values_need_a_trusted_header(make, resolve):
    tenant = make.tenant("blue", headers=["blue"])
    assert reasons(resolve([tenant])["team/blue"]) == [Reason.NO_TRUSTED_HEADER]
    claims = resolve([tenant], policy=make.policy(identity=TRUSTING))["team/blue"]
    assert (claims.headers, claims.findings) == (["blue"], [])


def test_a_foreign_tenant_claims_header_values_only_where_granted(make, resolve):
    tenant = make.tenant("blue", "guest", headers=["blue"])
    refused = resolve([tenant], policy=make.policy(identity=TRUSTING))["guest/blue"]
    assert (refused.headers, reasons(refused)) == ([], [Reason.NOT_GRANTED])
    granted = resolve([tenant], policy=make.policy(identity=TRUSTING | {"grants": ["guest"]}))["guest/blue"]
    assert (granted.headers, granted.findings) == (["blue"], [])


def test_the_older_tenant_keeps_a_header_value_that_two_claim(make, resolve):
    tenants = [
        make.tenant("young", headers=["x", "mine"], meta=YOUNG),
        make.tenant("old", headers=["x"], meta=OLD),
    ]
    claims = resolve(tenants, policy=make.policy(identity=TRUSTING))
    assert claims["team/old"].headers == ["x"]
    assert claims["team/young"].headers == ["mine"]
    assert reasons(claims["team/young"]) == [Reason.CONFLICT]


def test_a_tenant_that_names_nothing_is_told(make, resolve):
    assert reasons(resolve([make.tenant("blue")])["team/blue"]) == [Reason.NO_IDENTITY]


def test_a_tenant_with_masses_of_keys_gets_its_first_few_and_is_told(make, resolve):
    """What one tenant adds to the configuration every sidecar of the policy gets; too large a one it refuses, for all."""
    secrets = [
        make.secret("one", **{f"k{n:05}": f"{n:032}" for n in range(200)}),
        make.secret("two", **{f"k{n:05}": f"x{n:032}" for n in range(20_000)}),
        make.secret("three", k="y" * 32),
    ]
    claims = resolve([make.tenant("blue", secrets=["one", "two", "three"])], secrets)["team/blue"]
    assert len(claims.digests) == identities.MOST_KEYS
    assert reasons(claims) == [Reason.TOO_MANY_KEYS] * 2
    assert "Secret two has 20000 entries" in claims.findings[0].message
