"""Order statistics of bounded integers: how many are larger, and which rank a value has among the distinct ones."""


class Tally:
    """A multiset of integers in [-limit, limit]; every operation is O(log limit), whatever it holds.

    Two Fenwick trees (Fenwick, *A new data structure for cumulative frequency tables*, 1994): one counts members, the
    other distinct values.
    """

    __slots__ = ("_counts", "_distinct", "_limit", "_members", "_total")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[int, int] = {}
        self._total = 0
        self._members = [0] * (2 * limit + 2)
        self._distinct = [0] * (2 * limit + 2)

    def __len__(self) -> int:
        return self._total

    @property
    def distinct(self) -> int:
        """Distinct values."""
        return len(self._counts)

    def add(self, value: int) -> None:
        """Add a member."""
        count = self._counts.get(value, 0)
        self._counts[value] = count + 1
        self._total += 1
        self._change(self._members, value, 1)
        if not count:
            self._change(self._distinct, value, 1)

    def remove(self, value: int) -> None:
        """Remove a member. KeyError if there is none of that value."""
        count = self._counts[value] - 1
        self._total -= 1
        self._change(self._members, value, -1)
        if count:
            self._counts[value] = count
        else:
            del self._counts[value]
            self._change(self._distinct, value, -1)

    def above(self, value: int) -> int:
        """Count the members larger than `value`."""
        return self._total - self._up_to(self._members, value)

    def rank(self, value: int) -> int:
        """Count the distinct values smaller than `value`."""
        return self._up_to(self._distinct, value - 1)

    def __contains__(self, value: int) -> bool:
        return value in self._counts

    def _change(self, tree: list[int], value: int, by: int) -> None:
        place = value + self._limit + 1
        while place < len(tree):
            tree[place] += by
            place += place & -place

    def _up_to(self, tree: list[int], value: int) -> int:
        place, total = value + self._limit + 1, 0
        while place > 0:
            total += tree[place]
            place -= place & -place
        return total
