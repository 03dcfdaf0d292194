"""Deadlines that the server keeps by itself (contract D12; issue's bad input: slow-loris handshakes, half-open sockets)."""

import pytest

pytestmark = [pytest.mark.slow_clock, pytest.mark.timeout(120)]


def test_silent_connection_gets_a_pong_frame_after_25_s(slow_clocks):
    """PHP ends a connection after 60 s without a byte, and PING would trouble PHP and Ruby: so a text frame."""
    text, seconds = slow_clocks.outcome("silence", 60)
    assert text == '{"action":"pong"}'
    assert 24 <= seconds <= 32, f"the heartbeat came after {seconds:.1f} s"


def test_connection_that_never_speaks_is_closed_at_the_handshake_deadline(slow_clocks):
    seen, seconds = slow_clocks.outcome("mute", 60)
    assert seen == b"" or seen.startswith(b"HTTP/1.1 408 ")
    assert 5 <= seconds <= 20, f"closed after {seconds:.1f} s"


def test_header_trickle_does_not_extend_the_handshake_deadline(slow_clocks):
    seen, seconds = slow_clocks.outcome("loris", 60)
    assert b" 101 " not in seen
    assert seen == b"" or seen.startswith(b"HTTP/1.1 408 ")
    assert 5 <= seconds <= 20, f"closed after {seconds:.1f} s"


def test_body_trickle_is_ended(slow_clocks):
    """A call whose body never comes is answered early (no credentials) or ended; it cannot hold a connection for ever."""
    seen, seconds = slow_clocks.outcome("loris_body", 60)
    assert seen == b"" or seen.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 408 ")), seen
    assert seconds <= 45
