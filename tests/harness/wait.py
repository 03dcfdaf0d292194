"""Bounded waiting for things that have no event to block on (a file to appear, a gauge to move)."""

import time


def wait_until(probe, timeout=10.0, what="condition", interval=0.005):
    """Return the first true value of `probe()`; fail after `timeout` seconds naming `what` and the last value."""
    deadline = time.monotonic() + timeout
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {timeout} s (last value: {value!r})")
        time.sleep(interval)
