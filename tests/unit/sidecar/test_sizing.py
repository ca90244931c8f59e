"""From bodies to estimates: what is known is counted, what is not is learnt."""

import pytest

from equipoise_api.tenant import SloTarget
from equipoise_sidecar.facts import EndpointKind, EngineProfile
from equipoise_sidecar.sizing import CONTEXT_TOKENS, IMAGE_TOKENS, Sizing

PROFILE = EngineProfile(max_model_len=4096)


def build(sizing, facts, profile=PROFILE, slo=None):
    return sizing.request("team/blue", facts, name="1", slo=slo, profile=profile, now=0.0)


def test_token_ids_are_counted(facts):
    request = build(Sizing(), facts(prompt_ids=123))
    assert (request.prompt_tokens, request.prompt_upper) == (123, 123)


def test_text_is_a_third_of_a_token_a_byte_until_more_is_known(facts):
    request = build(Sizing(), facts(prompt_ids=None, text_bytes=300))
    assert request.prompt_tokens == 100
    assert request.prompt_upper > 100


def test_the_ratio_of_tenant_and_model_is_learnt(facts):
    sizing, text = Sizing(), facts(prompt_ids=None, text_bytes=300)
    for _ in range(50):
        sizing.learn("team/blue", text, 60)
    assert build(sizing, text).prompt_tokens == pytest.approx(60, abs=3)


def test_what_an_image_is_worth_is_learnt_from_requests_that_have_one(facts):
    sizing, picture = Sizing(), facts(prompt_ids=10, images=2)
    assert build(sizing, picture).prompt_tokens == 10 + 2 * IMAGE_TOKENS
    for _ in range(3):
        sizing.learn("team/blue", picture, 10 + 2 * 1000)
    assert build(sizing, picture).prompt_tokens == 10 + 2 * 1000


def test_a_tenants_pictures_are_its_own_and_those_of_others_stand_in_for_who_has_sent_none(facts):
    sizing, picture = Sizing(), facts(prompt_ids=0, images=1)
    sizing.learn("team/blue", picture, 1000)
    for _ in range(100):
        sizing.learn("team/red", picture, 20)
    assert build(sizing, picture).prompt_tokens == 1000
    other = sizing.request("team/green", picture, name="1", slo=None, profile=PROFILE, now=0.0)
    assert other.prompt_tokens == pytest.approx(20, abs=1)


def test_who_sets_no_limit_may_fill_the_context(facts):
    assert build(Sizing(), facts(max_tokens=None, prompt_ids=96)).max_tokens == 4000
    unknown = EngineProfile()
    assert build(Sizing(), facts(max_tokens=None, prompt_ids=0), unknown).max_tokens == CONTEXT_TOKENS


def test_several_prompts_have_a_context_each(facts):
    request = build(Sizing(), facts(max_tokens=None, prompt_ids=2000, prompts=2, sequences=4))
    assert (request.max_tokens, request.prompts, request.sequences) == (3096, 2, 4)


def test_embeddings_generate_nothing(facts):
    assert build(Sizing(), facts(kind=EndpointKind.POOLING, max_tokens=None)).max_tokens == 0


def test_the_tenants_slo_becomes_the_requests_budget(facts):
    request = build(Sizing(), facts(), slo=SloTarget(ttft_milliseconds=800))
    assert (request.ttft_budget, request.e2e_budget) == (0.8, None)


def test_what_was_learnt_survives_a_restart(facts):
    sizing, again, text = Sizing(), Sizing(), facts(prompt_ids=None, text_bytes=300)
    for _ in range(50):
        sizing.learn("team/blue", text, 60)
        sizing.learn("team/blue", facts(prompt_ids=0, images=1), 700)
    again.restore(sizing.snapshot())
    assert again.snapshot() == sizing.snapshot()
    assert build(again, text).prompt_tokens == build(sizing, text).prompt_tokens
