"""The band: who is inside by the level, in which order, and who stays outside."""

import random

import pytest

from equipoise_scheduling.band import Band


class Tenants:
    """Counters, urgencies and overdue requests to change at will."""

    def __init__(self, **counters):
        self.counters = counters
        self.urgency = {name: (place, name) for place, name in enumerate(sorted(counters))}
        self.overdue = dict.fromkeys(counters)
        self.band = Band(self.counters.__getitem__, self.urgency.__getitem__, self.overdue.__getitem__)
        for name in counters:
            self.band.changed(name)


def test_who_is_at_the_level_is_inside_and_who_is_above_it_is_not():
    tenants = Tenants(a=6, b=5, c=4)
    tenants.band.admit(5)
    assert tenants.band.most_urgent(5, 9) == ["b", "c"]
    assert tenants.band.first(5) == "b"
    tenants.band.admit(6)
    assert tenants.band.first(6) == "a"


def test_who_is_charged_beyond_the_level_waits_outside_until_it_rises():
    tenants = Tenants(a=1, b=2)
    tenants.band.admit(3)
    tenants.counters["a"] = 4
    assert tenants.band.first(3) == "b"
    tenants.counters["b"] = 4
    assert tenants.band.first(3) is None
    tenants.band.admit(4)
    assert tenants.band.first(4) == "a"


def test_looking_at_the_most_urgent_takes_nobody_out():
    tenants = Tenants(a=1, b=1, c=1)
    tenants.band.admit(1)
    for _ in range(2):
        assert tenants.band.most_urgent(1, 2) == ["a", "b"]
    assert tenants.band.most_urgent(1, 3) == ["a", "b", "c"]


def test_the_oldest_overdue_request_goes_until_it_is_gone_and_only_from_inside():
    tenants = Tenants(a=1, b=2, c=9)
    tenants.overdue.update(a=30, b=20, c=10)
    for name in "abc":
        tenants.band.changed(name)
    tenants.band.admit(5)
    assert tenants.band.longest_overdue(5) == "b"
    tenants.overdue["b"] = None
    tenants.band.changed("b")
    assert tenants.band.longest_overdue(5) == "a"
    tenants.band.discard("a")
    assert tenants.band.longest_overdue(5) is None
    assert tenants.band.first(5) == "b"


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_looking_at_everybody(seed):
    rng = random.Random(seed)
    names = [f"t{number}" for number in range(8)]
    tenants = Tenants(**dict.fromkeys(names, 0))
    backlogged, level = set(names), 0
    for number in range(600):
        name = rng.choice(names)
        match rng.randrange(6):
            case 0:
                tenants.counters[name] += rng.randrange(30)  # a charge is not told
            case 1:
                tenants.counters[name] -= min(tenants.counters[name], rng.randrange(20))
                if name in backlogged:
                    tenants.band.changed(name)
            case 2:
                tenants.urgency[name] = (rng.randrange(9), name)
                tenants.overdue[name] = rng.choice([None, 1 + number])
                if name in backlogged:
                    tenants.band.changed(name)
            case 3:
                tenants.band.discard(name)
                backlogged.discard(name)
            case 4:
                tenants.band.changed(name)
                backlogged.add(name)
            case _:
                level += rng.randrange(10)
        tenants.band.admit(level)
        inside = sorted(
            (each for each in backlogged if tenants.counters[each] <= level), key=tenants.urgency.__getitem__
        )
        late = [each for each in inside if tenants.overdue[each] is not None]
        assert tenants.band.most_urgent(level, 3) == inside[:3]
        assert tenants.band.first(level) == (inside[0] if inside else None)
        oldest = min(late, key=tenants.overdue.__getitem__, default=None)
        assert tenants.band.longest_overdue(level) == oldest
