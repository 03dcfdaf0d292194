"""Clocks of the server that take many seconds: started once at the beginning of the run, read at its end.

Each clock is a thread that blocks on a socket until the server acts; nothing polls.
"""

import threading
import time

from .client import Client
from .rawws import PING, PONG, TEXT, Ended, RawSocket, encode_frame
from .server import CLIENT_KEY, SERVER_KEY

# The least the server takes as liveness bound; the rule is the same as with the 90 s of the default.
LIVENESS_MS = 30_001
SIGNS = [encode_frame(TEXT, b'{"action":"ping"}'), encode_frame(PING), encode_frame(PONG)]


class Clock(threading.Thread):
    """Runs `watch`, which returns what it saw; `outcome()` joins it."""

    def __init__(self, watch):
        super().__init__(daemon=True)
        self.watch, self.result, self.error = watch, None, None
        self.start()

    def run(self):
        try:
            self.result = self.watch()
        except BaseException as error:  # handed to the test that asks
            self.error = error

    def outcome(self, timeout):
        self.join(timeout)
        assert not self.is_alive(), f"no outcome within {timeout} s"
        if self.error:
            raise self.error
        return self.result


class SlowClocks:
    def __init__(self, server):
        self.server = server
        self.quiet = Client(server, key=CLIENT_KEY)
        self.clocks = {
            "silence": Clock(self.silence),
            "loris": Clock(self.loris),
            "mute": Clock(self.mute),
            "loris_body": Clock(self.loris_body),
            "alive_then_mute": [Clock(lambda sign=sign: self.alive_then_mute(sign)) for sign in SIGNS],
        }

    def end(self):
        self.quiet.drop()
        assert self.server.alive()
        assert self.server.stop() == 0

    def outcome(self, name, timeout):
        clock = self.clocks[name]
        return [c.outcome(timeout) for c in clock] if isinstance(clock, list) else clock.outcome(timeout)

    def silence(self):
        """(first frame, seconds until it) on a connection that says nothing after the hello."""
        client = Client(self.server, key=CLIENT_KEY)
        started = time.monotonic()
        text = client.recv_text(60)
        seconds = time.monotonic() - started
        client.close()
        return text, seconds

    def alive_then_mute(self, sign):
        """Seconds from a sign of life to the bare TCP close that follows when no other comes."""
        client = Client(self.server, key=CLIENT_KEY)
        client.send(sign)
        started = time.monotonic()
        client.timeout = 90
        client.expect_bare_end(90)
        return time.monotonic() - started

    def mute(self):
        """(what came, seconds until the end) on a connection that never sends a byte."""
        return self.until_end(RawSocket(self.server.address))

    def loris(self):
        """As `mute`, with one header byte every half second: each byte must not restart the clock."""
        raw = RawSocket(self.server.address)
        request = b"GET /?key=" + CLIENT_KEY.encode() + b" HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 200
        return self.until_end(raw, trickle=request)

    def loris_body(self):
        """As `loris`, with a publish whose announced body comes one byte every half second."""
        raw = RawSocket(self.server.address)
        head = "POST /api/publish HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 100000\r\n\r\n"
        raw.send((head % SERVER_KEY).encode())
        return self.until_end(raw, trickle=b'{"channels":["c"],"data":"' + b"a" * 1000)

    @staticmethod
    def until_end(raw, trickle=b""):
        started = time.monotonic()
        seen = b""
        position = 0
        while time.monotonic() - started < 60:
            try:
                raw.fill(len(raw.buffer) + 1, 0.5 if trickle else 60)
            except TimeoutError:
                pass
            except Ended:
                seen = bytes(raw.buffer)
                return seen, time.monotonic() - started
            try:
                if position < len(trickle):
                    raw.send(trickle[position : position + 1])
                    position += 1
            except Ended:
                return bytes(raw.buffer), time.monotonic() - started
        raise AssertionError("the server let the connection be for 60 s")


