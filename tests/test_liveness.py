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
    """A call whose body comes byte by byte cannot hold a connection for ever."""
    seen, seconds = slow_clocks.outcome("loris_body", 60)
    assert seen == b"" or seen.startswith(b"HTTP/1.1 408 "), seen
    assert seconds <= 45, f"closed after {seconds:.1f} s"


def test_client_that_has_pinged_and_falls_silent_is_ended_without_a_close_frame(slow_clocks):
    """App ping, PING and PONG are each a sign of life; liveness is enforced from then on (the bound is set to 30 s here)."""
    for seconds in slow_clocks.outcome("alive_then_mute", 80):
        assert 29 <= seconds <= 45, f"ended after {seconds:.1f} s"


def test_client_that_never_pinged_is_not_ended_for_its_silence(slow_clocks):
    """Ruby sends nothing while idle and is stuck once dropped: it was there first and is there after the others are gone."""
    slow_clocks.outcome("alive_then_mute", 80)
    quiet = slow_clocks.quiet
    quiet.send_json({"action": "ping"})
    while "timestamp" not in quiet.expect(action="pong"):
        pass  # heartbeats of the time before carry no timestamp
