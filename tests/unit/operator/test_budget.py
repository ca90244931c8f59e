import asyncio

import pytest

from equipoise_operator.budget import Budget, Budgets


def test_a_burst_then_the_rate():
    now = [0.0]
    budget = Budget(10, 3, lambda: now[0])
    assert [budget.take() for _ in range(3)] == [0, 0, 0]
    assert budget.take() == pytest.approx(0.1)
    now[0] = 0.1
    assert budget.take() == 0
    now[0] = 1000.0
    assert [bool(budget.take()) for _ in range(4)] == [False, False, False, True]


@pytest.mark.looptime
async def test_waiting_takes_as_long_as_it_must():
    loop = asyncio.get_running_loop()
    budget = Budget(10, 1, loop.time)
    began = loop.time()
    for _ in range(21):
        await budget.wait()
    assert loop.time() - began == pytest.approx(2.0, abs=0.05)


def test_each_key_has_its_own():
    now = [0.0]
    budgets = Budgets(1, 2, lambda: now[0])
    assert [budgets.take("a") for _ in range(3)] == [0, 0, 1]
    assert budgets.take("b") == 0
    now[0] = 1.0
    assert [budgets.take("a") for _ in range(2)] == [0, 1]


def test_those_that_are_full_again_are_forgotten_and_no_others():
    now = [0.0]
    budgets = Budgets(1, 2, lambda: now[0])
    for n in range(1000):
        budgets.take(str(n))
    now[0] = 1.9
    for _ in range(3):
        budgets.take("0")
    assert len(budgets) == 1000
    now[0] = 2.0
    assert budgets.take("0") > 0
    assert len(budgets) == 1


def test_one_that_asks_all_the_time_gets_the_rate_and_no_more():
    now = [0.0]
    budgets = Budgets(5, 20, lambda: now[0])
    got = 0
    for _ in range(10_000):
        got += not budgets.take("a")
        now[0] += 0.01
    assert got == pytest.approx(20 + 5 * 100, abs=1)
