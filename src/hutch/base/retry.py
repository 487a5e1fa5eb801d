"""How long to wait before trying again: exponential back-off with full jitter."""

from collections.abc import Iterator
from random import Random


def backoff_seconds(first: float, longest: float, rng: Random) -> Iterator[float]:
    """An endless series of delays in seconds: each drawn from 0 to a ceiling that doubles up to `longest`."""
    ceiling = first
    while True:
        yield rng.uniform(0, ceiling)
        ceiling = min(longest, ceiling * 2)
