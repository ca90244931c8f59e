import asyncio

import pytest

from equipoise_operator.budget import Budget


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
