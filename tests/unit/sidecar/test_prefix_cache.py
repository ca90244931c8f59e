"""What the sidecar expects of the engine's prefix cache, and what the engine then says of it."""

import pytest

from equipoise_scheduling.request import Outcome, Usage
from equipoise_sidecar.engine.signals import EngineSignals
from equipoise_sidecar.facts import EngineProfile, PromptBytes
from equipoise_sidecar.prefix_cache import PrefixCache
from equipoise_sidecar.prefix_index import ENDS, PrefixIndex
from equipoise_sidecar.prefix_metrics import prefix_metrics
from equipoise_sidecar.ticket import Phase

BLUE, RED = "team/blue", "team/red"
SYSTEM = bytes(range(256)) * 12
"""3,072 bytes."""
REPORTING = EngineProfile(models=("m",), reports_cached_tokens=True)
SILENT = EngineProfile(models=("m",), reports_cached_tokens=False)


def signals(**said) -> EngineSignals:
    said = {"prefix_caching": True, "kv_tokens": 100_000, "block_tokens": 16, "started": 1.0, **said}
    return EngineSignals(**said)


def asking(question: bytes, root: bytes = b"m") -> dict:
    """Facts of a prompt that begins with the system prompt and has 1,000 tokens, a little over 4 bytes each."""
    prompt = SYSTEM + question * (1028 // len(question))
    return {"prompt_ids": 1000, "prompt_bytes": PromptBytes(root, (prompt,), (len(prompt),))}


@pytest.fixture
def caching(line):
    """A line before an engine that caches prefixes and says what it served from there."""
    line.configure(capacity={"maxInFlight": 100})
    line.dispatcher.connected(REPORTING)
    line.dispatcher.observe(signals())
    return line


def finish(ticket, cached: int = 0) -> None:
    ticket.first_token()
    ticket.finish(Outcome.FINISHED, Usage(1000, 10, cached))


SHARED = 736
"""The system prompt's 48 blocks of 64 bytes are 749 of the 1,000 tokens, in whole KV blocks of 16."""


async def test_what_was_computed_before_is_expected_from_the_cache(caching):
    first = caching.send(**asking(b"one "))
    assert first.request.cached_tokens == 0
    assert first.facts.prompt_bytes is None, "the text is not kept while the request waits"
    finish(first)
    assert caching.send(**asking(b"two ")).request.cached_tokens == SHARED
    assert caching.send(**asking(b"one ")).request.cached_tokens == 992, (
        "all but what follows from the last token"
    )
    assert caching.send(**asking(b"one ", root=b"adapter")).request.cached_tokens == 0


async def test_nobody_gains_by_guessing_anothers_prompt(caching):
    finish(caching.send(BLUE, **asking(b"one ")))
    assert caching.send(RED, **asking(b"one ")).request.cached_tokens == 0
    assert caching.send(BLUE, **asking(b"one ")).request.cached_tokens == 992


async def test_two_that_wait_count_nothing_on_each_other_and_the_second_is_looked_at_again_at_its_turn(
    caching,
):
    caching.configure(capacity={"maxInFlight": 1})
    running = caching.send(prompt_ids=10)
    one, two = caching.send(**asking(b"one ")), caching.send(**asking(b"two "))
    assert (one.request.cached_tokens, two.request.cached_tokens) == (0, 0)
    running.finish(Outcome.FINISHED, Usage(10, 1))
    assert two.request.cached_tokens == SHARED, "its turn was considered, and its twin is with the engine"
    finish(one)
    assert caching.dispatcher.scheduler.books.flights[two.request.id].cached == SHARED
    assert caching.dispatcher.engine.capacity.gate.batching.prefill_held == 1000 - SHARED


async def test_of_a_burst_over_two_prompts_one_is_served_from_what_the_other_left_while_it_is_there(caching):
    """All arrive before anything is cached; by its turn the second of a tenant finds the first one's prompt."""
    caching.configure(
        algorithm={"type": "Equipoise", "equipoise": {"bandTokens": 100_000}}, capacity={"maxInFlight": 1}
    )
    running = caching.send(prompt_ids=10)
    tickets = [caching.send(tenant, **asking(b"%d " % n)) for n in range(3) for tenant in (RED, BLUE)]
    assert [ticket.request.cached_tokens for ticket in tickets] == [0] * 6
    running.finish(Outcome.FINISHED, Usage(10, 1))
    order = []
    while going := [ticket for ticket in tickets if ticket.phase is Phase.IN_FLIGHT]:
        order.append(going[0].tenant)
        finish(going[0], cached=going[0].request.cached_tokens)
    assert order in ([RED] * 3 + [BLUE] * 3, [BLUE] * 3 + [RED] * 3)


@pytest.mark.parametrize("how", ["cancelled", "failed", "refused by the engine", "busy"])
async def test_what_the_engine_did_not_compute_is_not_expected(caching, how):
    ticket = caching.send(**asking(b"one "))
    match how:
        case "cancelled":
            ticket.finish(Outcome.CANCELLED)
        case "failed":
            ticket.finish(Outcome.FAILED)
        case "refused by the engine":
            ticket.finish(Outcome.FINISHED, Usage(0, 0))
        case _:
            ticket.busy()
    assert caching.dispatcher.engine.prefixes.index.known(ticket.prefix.chains[0].blocks.keys) == 0


async def test_a_failure_leaves_what_was_known_before(caching):
    finish(caching.send(**asking(b"one ")))
    caching.send(**asking(b"two ")).finish(Outcome.FAILED)
    assert caching.send(**asking(b"two ")).request.cached_tokens == SHARED


@pytest.mark.parametrize(
    "said",
    [
        {"prefix_caching": False},
        {"started": 2.0},
        {"asleep": True},
        {"kv_tokens": None},
        {"prefix_caching": None},
        {"prefix_caching": None, "cached_tokens": 0},
    ],
)
async def test_an_engine_that_caches_nothing_or_has_lost_its_cache(caching, said):
    finish(caching.send(**asking(b"one ")))
    caching.dispatcher.observe(signals(**said))
    assert caching.send(**asking(b"one ")).request.cached_tokens == 0


async def test_an_engine_that_does_not_say_whether_it_caches_is_believed_by_what_it_served(caching):
    caching.dispatcher.observe(signals(prefix_caching=None, cached_tokens=16))
    finish(caching.send(**asking(b"one ")))
    caching.dispatcher.observe(None)  # stale metrics change nothing
    assert caching.send(**asking(b"one ")).request.cached_tokens == 992


async def test_what_the_engine_reports_corrects_charge_and_estimates(caching):
    finish(caching.send(**asking(b"one ")))
    for _ in range(60):
        finish(caching.send(**asking(b"one ")), cached=496)
    prefixes = caching.dispatcher.engine.prefixes
    assert prefixes.agreement.ratio == pytest.approx(0.5, abs=0.02)
    assert caching.send(**asking(b"one ")).request.cached_tokens == pytest.approx(496, abs=16)
    assert caching.dispatcher.scheduler.shares(0.0)[0].total.cached == 60 * 496
    shown = {sample.name: sample.value for metric in prefix_metrics(prefixes) for sample in metric.samples}
    assert shown["equipoise_prefix_active"] == 1
    assert shown["equipoise_prefix_reported_tokens_total"] == 60 * 496
    assert shown["equipoise_prefix_predicted_tokens_total"] > 60 * 496
    expected = (shown["equipoise_prefix_predicted_tokens_total"] - 60 * 496) / 61
    assert shown["equipoise_prefix_error_tokens"] == pytest.approx(expected)
    assert shown["equipoise_prefix_bias_tokens"] == pytest.approx(expected)


async def test_a_prompt_that_was_shorter_than_it_was_taken_for_does_not_speak_against_the_cache(caching):
    for _ in range(20):
        ticket = caching.send(**asking(b"one "))
        ticket.first_token()
        ticket.finish(Outcome.FINISHED, Usage(800, 10, 799 // 16 * 16))
    assert caching.dispatcher.engine.prefixes.agreement.ratio > 0.98


async def test_requests_that_expected_nothing_say_nothing_of_the_agreement(caching):
    for _ in range(30):
        finish(caching.send(**asking(b"one ")), cached=0)
    ratio = caching.dispatcher.engine.prefixes.agreement.ratio
    assert ratio < 0.1
    for number in range(60):
        finish(caching.send(**asking(b"%d " % number, root=b"%d" % number)), cached=16)
    assert caching.dispatcher.engine.prefixes.agreement.ratio == ratio


async def test_an_engine_that_reports_nothing_by_request_is_followed_by_its_counters(caching):
    caching.dispatcher.connected(SILENT)
    prompts = cached = 0
    caching.dispatcher.observe(signals(prompt_tokens=prompts, cached_tokens=cached))
    for _ in range(60):
        finish(caching.send(**asking(b"one ")))
        prompts, cached = prompts + 1000, cached + 248
        caching.dispatcher.observe(signals(prompt_tokens=prompts, cached_tokens=cached))
    assert caching.dispatcher.engine.prefixes.agreement.ratio == pytest.approx(0.25, abs=0.03)
    assert caching.dispatcher.engine.prefixes.reported_tokens == 0


async def test_an_answer_that_breaks_off_keeps_its_estimate_where_cached_tokens_have_a_price(caching):
    finish(caching.send(**asking(b"one ")))
    for profile, cached in ((REPORTING, 992), (SILENT, 992)):
        caching.dispatcher.connected(profile)
        ticket = caching.send(**asking(b"one "))
        ticket.first_token()
        ticket.progress(1000, 3, exact=True)
        ticket.finish(Outcome.CANCELLED)
        assert caching.dispatcher.scheduler.shares(0.0)[0].total.cached == cached


async def test_cached_tokens_are_counted_once_and_never_taken_back(caching):
    finish(caching.send(**asking(b"one ")))
    ticket = caching.send(**asking(b"one "))
    ticket.first_token()
    ticket.progress(1000, 3, exact=True)
    assert caching.dispatcher.scheduler.shares(0.0)[0].total.cached == 0
    finish(ticket, cached=128)
    assert caching.dispatcher.scheduler.shares(0.0)[0].total.cached == 128


async def test_passing_through_needs_no_estimate_of_anything(caching):
    caching.configure(mode="PassThrough")
    assert not caching.dispatcher.policy.schedules
    caching.configure(mode="PassThrough", shadow=[{"type": "Equipoise"}])
    assert caching.dispatcher.policy.schedules


def test_generated_tokens_push_prompts_out_as_they_do_in_the_engine():
    index = PrefixIndex(capacity=1000)
    keys = index.blocks("t", b"", SYSTEM).keys
    index.add(keys, 960 / len(SYSTEM))
    assert (len(keys), index.known(keys)) == (48, 48)
    index.occupy(400.0)
    assert index.known(keys) == 30, "20 tokens a block, and its end goes first"
    index.add(keys[:10], 960 / len(SYSTEM))
    index.occupy(500.0)
    assert index.known(keys) == 10, "what was used again is the newest"
    assert index.shared(keys) == 640


def test_hashes_are_of_no_use_to_another_process():
    assert PrefixIndex().blocks("t", b"", SYSTEM).keys != PrefixIndex().blocks("t", b"", SYSTEM).keys


def test_a_tenants_name_cannot_be_stretched_into_another_prompt():
    index = PrefixIndex()
    assert index.blocks("a", b"b1", SYSTEM).keys[0] != index.blocks("ab", b"1", SYSTEM).keys[0]


def test_blocks_are_fine_where_prompts_part_and_nothing_is_hashed_beyond_the_most():
    index = PrefixIndex(capacity=10**6)
    long = b"x" * 10_000_000
    keys = index.blocks("t", b"", long).keys
    assert (len(keys), ENDS[:2], ENDS[62:65], ENDS[-1]) == (len(ENDS), (64, 128), (4032, 4096, 4352), 262_144)
    assert index.blocks("t", b"", long[:63]).keys == []
    assert index.blocks("t", b"", long[:4351]).keys == keys[:64]
    assert index.blocks("t", b"", long, 3).keys == keys[:3]


def test_several_prompts_are_estimated_one_by_one():
    cache = PrefixCache()
    cache.observe(signals(), REPORTING, None)
    from equipoise_scheduling.request import Request
    from equipoise_sidecar.facts import EndpointKind, Facts

    def prefix(*prompts: bytes):
        facts = Facts(path="/v1/completions", kind=EndpointKind.COMPLETIONS)
        facts.prompt_bytes = PromptBytes(b"", prompts, tuple(map(len, prompts)))
        return cache.read("t", facts)

    request = Request(id="1", tenant="t", arrival=0.0, prompt_tokens=1000, max_tokens=1)
    cache.dispatched(prefix(SYSTEM), request)
    assert cache.estimate(prefix(SYSTEM), 768) == 752
    assert cache.estimate(prefix(SYSTEM, b"y" * 3072, SYSTEM), 3 * 768) == 2 * 752
