"""Plain data that another process wrote: numbers in it are checked before anybody computes with them.

JSON as Python reads it has NaN, Infinity, 1e400 and integers of any length. One of them taken over would fail at each
request, long after the snapshot was accepted.
"""

from typing import Any

LARGEST = 2.0**100
"""Beyond any count of tokens, counter units or squares of them."""


def check_numbers(data: Any, where: str = "snapshot") -> None:
    """Raise ValueError unless all numbers in `data` are finite and within +-LARGEST. Linear in the data."""
    if isinstance(data, dict):
        for name, value in data.items():
            check_numbers(value, f"{where}.{name}")
    elif isinstance(data, list):
        for place, value in enumerate(data):
            check_numbers(value, f"{where}[{place}]")
    elif isinstance(data, int | float) and not -LARGEST <= data <= LARGEST:
        raise ValueError(f"{where}: not a number that can be")
