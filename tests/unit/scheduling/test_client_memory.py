"""Memory by names that clients make up: bounded, and a flood forgets its own."""

from equipoise_scheduling.client_memory import ClientMemory


def test_what_is_put_is_had_until_it_is_popped():
    memory = ClientMemory(10)
    memory.put(("blue", "a"), 1)
    memory.put(("blue", "a"), 2)
    assert (memory.get(("blue", "a")), len(memory)) == (2, 1)
    assert memory.pop(("blue", "a")) == 2
    assert memory.pop(("blue", "a")) is None
    assert (memory.get(("blue", "a")), memory.oldest(), list(memory)) == (None, None, [])


def test_beyond_the_limit_the_tenant_with_most_forgets_its_oldest():
    memory = ClientMemory(6)
    for at in range(3):
        memory.put(("blue", str(at)), at)
    for at in range(10):
        memory.put(("red", str(at)), at)
    assert list(memory) == [
        ("blue", "0"),
        ("blue", "1"),
        ("blue", "2"),
        ("red", "7"),
        ("red", "8"),
        ("red", "9"),
    ]
    memory.put(("green", "0"), 0)
    assert len([key for key in memory if key[0] == "blue"]) == 2, "of equals the one with the oldest"
    assert memory.get(("green", "0")) == 0


def test_a_value_put_again_is_the_newest():
    memory = ClientMemory(2)
    memory.put(("blue", "a"), 1)
    memory.put(("blue", "b"), 2)
    memory.put(("blue", "a"), 3)
    memory.put(("blue", "c"), 4)
    assert list(memory) == [("blue", "a"), ("blue", "c")]
    memory.clear()
    assert len(memory) == 0


def test_of_many_tenants_with_one_entry_each_the_longest_unused_goes_whatever_its_name():
    memory = ClientMemory(3)
    for tenant in "dcb":
        memory.put((tenant, ""), 1)
    memory.put(("d", ""), 2)
    memory.put(("a", ""), 1)
    assert list(memory) == [("b", ""), ("d", ""), ("a", "")]
