"""Many WebSocket connections read by one thread: an epoll loop that only moves bytes.

For the tests that are about volume. Frames are split after the fact with `split_frames`, not while reading.
"""

import selectors
import struct
import time

from .rawws import TEXT

HEARTBEAT = b'{"action":"pong"}'


class Stream:
    """One connection of a `Fan`: what has been received, and what is waiting to be sent."""

    def __init__(self, client):
        self.client = client
        self.socket = client.socket
        self.received = bytearray(client.buffer)
        client.buffer.clear()
        self.unsent = bytearray()
        self.ended = None  # None, "fin" or "reset"
        self.parsed = 0  # bytes of `received` already handed out by `frames`

    def frames(self):
        """Payloads of the whole text frames since the last call, heartbeats left out."""
        payloads, self.parsed = split_frames(self.received, self.parsed)
        return [p for p in payloads if p != HEARTBEAT]


class Fan:
    """Reads and writes all `streams` until a condition holds."""

    def __init__(self, clients):
        self.selector = selectors.EpollSelector()
        self.streams = [Stream(client) for client in clients]
        for stream in self.streams:
            stream.socket.setblocking(False)
            self.selector.register(stream.socket, selectors.EVENT_READ, stream)

    def send(self, stream, data):
        stream.unsent += data
        self.flush(stream)

    def flush(self, stream):
        if stream.ended:
            stream.unsent.clear()
            return
        if stream.unsent:
            try:
                sent = stream.socket.send(stream.unsent)
                del stream.unsent[:sent]
            except BlockingIOError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                return  # the read side will say so
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if stream.unsent else 0)
        if self.selector.get_key(stream.socket).events != wanted:
            self.selector.modify(stream.socket, wanted, stream)

    def turn(self, timeout):
        """One round: the streams that had an event."""
        touched = []
        for key, events in self.selector.select(timeout):
            stream = key.data
            if events & selectors.EVENT_WRITE:
                self.flush(stream)
            if events & selectors.EVENT_READ:
                self.read(stream)
                touched.append(stream)
        return touched

    def read(self, stream):
        try:
            data = stream.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, stream.ended = b"", "reset"
        if data:
            stream.received += data
        else:
            stream.ended = stream.ended or "fin"
            self.selector.unregister(stream.socket)

    def run_until(self, done, timeout, each=None):
        """Turn until `done()`; `each(stream)` is called for every stream that received something."""
        deadline = time.monotonic() + timeout
        while not done():
            left = deadline - time.monotonic()
            assert left > 0, f"not done within {timeout} s"
            for stream in self.turn(min(left, 0.2)):
                if each:
                    each(stream)

    def close(self):
        self.selector.close()
        for stream in self.streams:
            stream.client.drop()


def split_frames(data, start=0):
    """(text payloads of the whole frames from `start`, offset of the first incomplete frame).

    The server's frames are final, unmasked and text here; anything else is an assertion failure.
    """
    payloads = []
    end = len(data)
    position = start
    while end - position >= 2:
        first, size = data[position], data[position + 1]
        assert first == 0x80 | TEXT, f"frame byte {first:#x} at {position}"
        body = position + 2
        if size == 126:
            if end - position < 4:
                break
            size = struct.unpack_from("!H", data, position + 2)[0]
            body = position + 4
        elif size == 127:
            if end - position < 10:
                break
            size = struct.unpack_from("!Q", data, position + 2)[0]
            body = position + 10
        if end - body < size:
            break
        payloads.append(bytes(data[body : body + size]))
        position = body + size
    return payloads, position
