"""Whose a request is: keys by digest, the trusted header from trusted peers, and nothing that a client can forge."""

import base64
import hmac

import pytest

from equipoise_sidecar.identity import Identity

SECRET, NEXT_SECRET = b"s" * 32, b"n" * 32
BLUE_KEY, RED_KEY = b"blue-key-of-thirty-two-characters", b"red-key-of-thirty-two-characters."


def digest(key, secret=SECRET):
    return hmac.new(secret, key, "sha256").hexdigest()


def hmac_key(name, secret):
    return {"id": name, "secret": base64.b64encode(secret).decode()}


@pytest.fixture
def make_identity(config, tenant):
    def make(**settings):
        settings.setdefault("hmacKeys", [hmac_key("1", SECRET)])
        settings.setdefault("trustedHeader", {"name": "X-Tenant", "peers": ["10.0.0.0/8", "fd00::/8"]})
        settings.setdefault(
            "tenants",
            [
                tenant("team/blue", keyDigests=[digest(BLUE_KEY)], headerValues=["blue"]),
                tenant("team/red", keyDigests=[digest(RED_KEY)], headerValues=["red"]),
            ],
        )
        return Identity(config(**settings))

    return make


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer " + BLUE_KEY),
        (b"authorization", b"bearer  " + BLUE_KEY + b" "),
        (b"x-api-key", BLUE_KEY),
    ],
)
def test_an_api_key_proves_its_tenant(make_identity, header):
    assert make_identity().tenant_of([(b"host", b"x"), header], "1.2.3.4") == "team/blue"


@pytest.mark.parametrize(
    "header",
    [
        (b"authorization", b"Bearer wrong"),
        (b"authorization", b"Basic " + BLUE_KEY),
        (b"authorization", b"Bearer"),
        (b"authorization", b""),
        (b"x-api-key", digest(BLUE_KEY).encode()),
        (b"x-api-key", b"\xff" * 5000),
        (b"cookie", BLUE_KEY),
    ],
)
def test_what_is_no_key_of_a_tenant_proves_nobody(make_identity, header):
    assert make_identity().tenant_of([header], "1.2.3.4") is None


def test_a_later_header_may_hold_the_key_when_the_first_does_not(make_identity):
    headers = [(b"authorization", b"Bearer EMPTY"), (b"x-api-key", RED_KEY)]
    assert make_identity().tenant_of(headers, None) == "team/red"


def test_digests_under_both_keys_count_while_the_policys_key_is_rotated(make_identity, tenant):
    identity = make_identity(
        hmacKeys=[hmac_key("2", NEXT_SECRET), hmac_key("1", SECRET)],
        tenants=[
            tenant("team/blue", keyDigests=[digest(BLUE_KEY)]),
            tenant("team/red", keyDigests=[digest(RED_KEY, NEXT_SECRET)]),
        ],
    )
    assert identity.tenant_of([(b"x-api-key", BLUE_KEY)], None) == "team/blue"
    assert identity.tenant_of([(b"x-api-key", RED_KEY)], None) == "team/red"


@pytest.mark.parametrize(
    ("peer", "want"),
    [
        ("10.1.2.3", "team/red"),
        ("::ffff:10.1.2.3", "team/red"),
        ("fd00::1", "team/red"),
        ("11.1.2.3", None),
        ("not an address", None),
        (None, None),
    ],
)
def test_the_header_counts_from_trusted_peers_alone(make_identity, peer, want):
    assert make_identity().tenant_of([(b"x-tenant", b"red")], peer) == want


def test_a_key_comes_before_the_header(make_identity):
    headers = [(b"x-tenant", b"red"), (b"x-api-key", BLUE_KEY)]
    assert make_identity().tenant_of(headers, "10.0.0.1") == "team/blue"


def test_a_gateway_that_adds_its_header_to_the_clients_is_not_believed(make_identity):
    headers = [(b"x-tenant", b"red"), (b"x-tenant", b"blue")]
    assert make_identity().tenant_of(headers, "10.0.0.1") is None
    assert make_identity().tenant_of([headers[0], headers[0]], "10.0.0.1") == "team/red"


def test_without_a_trusted_header_no_header_is_believed(make_identity):
    identity = make_identity(trustedHeader=None)
    assert identity.tenant_of([(b"x-tenant", b"red"), (b"x-equipoise-tenant", b"red")], "10.0.0.1") is None


def test_an_unknown_value_of_the_header_proves_nobody(make_identity):
    assert make_identity().tenant_of([(b"x-tenant", b"green")], "10.0.0.1") is None


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"hmacKeys": [{"id": "1", "secret": "not base64!"}]}, "hmacKeys.0.secret"),
        ({"hmacKeys": [{"id": "1", "secret": "AAAA"}]}, "hmacKeys.0.secret: 3 bytes"),
        ({"trustedHeader": {"peers": ["10.0.0.0/99"]}}, "trustedHeader.peers.0"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_field(make_identity, settings, place):
    with pytest.raises(ValueError, match=f"^{place}"):
        make_identity(**settings)


@pytest.mark.parametrize(
    ("claims", "place"),
    [
        ({"keyDigests": ["ab"]}, "tenants.1.keyDigests: 'ab'"),
        ({"keyDigests": [digest(BLUE_KEY)]}, "tenants.1.keyDigests: team/red claims what team/blue has"),
        ({"headerValues": ["blue"]}, "tenants.1.headerValues: team/red claims what team/blue has"),
    ],
)
def test_two_tenants_with_one_identity_are_refused(make_identity, tenant, claims, place):
    blue = tenant("team/blue", keyDigests=[digest(BLUE_KEY)], headerValues=["blue"])
    with pytest.raises(ValueError, match=f"^{place}"):
        make_identity(tenants=[blue, tenant("team/red", **claims)])


LLM_D = {"name": "X-Tenant", "peers": ["10.0.0.0/8"], "llmD": "Accept"}
FAIRNESS_ID, OLD_FAIRNESS_ID = b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id"


def test_llm_ds_fairness_id_names_the_tenant_where_the_policy_says_so(make_identity):
    it = make_identity(trustedHeader=LLM_D)
    assert it.tenant_of([(FAIRNESS_ID, b"blue")], "10.0.0.1") == "team/blue"
    assert it.tenant_of([(OLD_FAIRNESS_ID, b"red")], "10.0.0.1") == "team/red"
    assert it.tenant_of([(OLD_FAIRNESS_ID, b"red"), (FAIRNESS_ID, b"blue")], "10.0.0.1") == "team/blue"
    assert it.tenant_of([(FAIRNESS_ID, b"red"), (b"x-tenant", b"blue")], "10.0.0.1") == "team/blue"
    assert it.speaks_llm_d("10.0.0.1")


def test_an_ambiguous_header_is_not_made_up_for_by_another(make_identity):
    it = make_identity(trustedHeader=LLM_D)
    headers = [(b"x-tenant", b"blue"), (b"x-tenant", b"red"), (FAIRNESS_ID, b"blue")]
    assert it.tenant_of(headers, "10.0.0.1") is None
    assert it.tenant_of([(FAIRNESS_ID, b"blue"), (FAIRNESS_ID, b"red")], "10.0.0.1") is None


def test_llm_ds_headers_mean_nothing_from_strangers_or_unasked(make_identity):
    it = make_identity(trustedHeader=LLM_D)
    assert it.tenant_of([(FAIRNESS_ID, b"blue")], "1.2.3.4") is None
    assert not it.speaks_llm_d("1.2.3.4")
    assert not it.speaks_llm_d(None)
    plain = make_identity()
    assert plain.tenant_of([(FAIRNESS_ID, b"blue")], "10.0.0.1") is None
    assert not plain.speaks_llm_d("10.0.0.1")
