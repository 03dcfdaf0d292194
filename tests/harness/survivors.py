"""Clients that outlive the server: publishers that keep what was acknowledged, subscribers that come back and go on.

Each is a thread with a connection of its own, made again whenever it is lost. What they saw is compared by the test.
"""

import base64
import collections
import json
import threading

from .client import Client
from .rawws import TEXT, Ended, Refused, encode_frame
from .server import SERVER_KEY

LOST = (Ended, OSError, Refused)  # a refused or broken connection, and no answer within the time given
WINDOW = 32  # publishes of one client without ack


class Survivor(threading.Thread):
    """A loop of sessions with the server at `address`, until `stop()`."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.stopping, self.problem, self.sessions = server, threading.Event(), None, 0

    def run(self):
        try:
            while not self.done():
                try:
                    with Client(self.server, key=SERVER_KEY, timeout=5) as client:
                        self.sessions += 1
                        self.session(client)
                except LOST:
                    self.stopping.wait(0.01)
        except BaseException as problem:  # told by `end`
            self.problem = problem

    def done(self):
        return self.stopping.is_set()

    def end(self, timeout=40):
        self.stopping.set()
        self.join(timeout)
        assert not self.is_alive(), f"{self!r} does not end: {self.state()}"
        if self.problem:
            raise self.problem

    def state(self):
        return ""


class Publisher(Survivor):
    """Publishes in turn to `channels`, `WINDOW` at a time. What is not acknowledged when the connection goes is published
    again with the same ids (`retries`), or given up as unknown. `pause`: seconds after each ack."""

    def __init__(self, server, name, channels, retries=True, pause=0):
        super().__init__(server)
        self.pause = pause
        self.label, self.channels, self.retries = name, channels, retries
        self.count, self.waiting, self.unknown = 0, {}, []
        self.acked = {}  # id -> (channel, sequence)

    def done(self):
        return super().done() and not self.waiting

    def session(self, client):
        if self.retries:
            client.send(b"".join(self.frame(id) for id in self.waiting))
        else:
            self.unknown += self.waiting
            self.waiting.clear()
        while not self.done():
            frames = []
            while len(self.waiting) < WINDOW and not self.stopping.is_set():
                id = f"{self.label}-{self.count}"
                self.waiting[id] = self.channels[self.count % len(self.channels)]
                self.count += 1
                frames.append(self.frame(id))
            client.send(b"".join(frames))
            ack = client.recv_json()
            assert ack["action"] in ("ack", "pong"), ack
            if ack["action"] == "ack":
                assert self.waiting.pop(ack["id"]) == ack["channel"], ack
                self.acked[ack["id"]] = (ack["channel"], ack["sequence"])
                if self.pause:
                    self.stopping.wait(self.pause)

    def frame(self, id):
        return publish_frame(self.waiting[id], id)

    def state(self):
        return f"waits for {list(self.waiting)[:5]}"


def publish_frame(channel, id):
    body = {"action": "publish", "channel": channel, "data": {"of": id}, "id": id}
    return encode_frame(TEXT, json.dumps(body).encode(), mask=b"\x01\x02\x03\x04")


class Subscriber(Survivor):
    """Base: keeps `seen`, by channel, as (sequence, id) in the order of arrival."""

    def __init__(self, server, channels):
        super().__init__(server)
        self.channels, self.seen = channels, collections.defaultdict(list)
        self.targets = None  # channel -> sequence up to which to go on after the stop
        self.ready = threading.Event()  # subscribed to all, for the first time

    def done(self):
        if not super().done():
            return False
        return all(self.last(channel) >= last for channel, last in self.targets.items())

    def last(self, channel):
        return self.seen[channel][-1][0] if self.seen[channel] else 0

    def take(self, frame):
        self.seen[frame["channel"]].append((frame["sequence"], frame["id"]))

    def session(self, client):
        self.come_back(client)
        self.ready.set()
        while not self.done():
            frame = client.recv_json()
            if frame["action"] == "message":
                self.take(frame)
            else:
                assert frame["action"] == "pong", frame

    def end(self, targets, timeout=40):
        self.targets = targets
        super().end(timeout)

    def state(self):
        return {channel: (self.last(channel), last) for channel, last in (self.targets or {}).items()}


class PositionSubscriber(Subscriber):
    """Comes back with `since`: a channel's next message is always the one after its last."""

    epochs = None

    def come_back(self, client):
        self.epochs = self.epochs or {}
        for channel in self.channels:
            known = self.epochs.get(channel)
            since = {"sequence": self.last(channel), "epoch": known} if known else {}
            client.send_json({"action": "subscribe", "channel": channel, "since": since})
        missing = set(self.channels)
        while missing:
            frame = client.recv_json()
            if frame["action"] == "message":
                self.take(frame)
                continue
            assert frame["action"] == "subscribed", frame
            channel = frame["channel"]
            missing.remove(channel)
            if self.epochs.setdefault(channel, frame["epoch"]) != frame["epoch"]:
                raise AssertionError(f"another epoch: {frame}")
            assert frame["recovered"] or not self.seen[channel] and frame["sequence"] == 0, frame

    def take(self, frame):
        assert frame["sequence"] == self.last(frame["channel"]) + 1, f"{frame} after {self.last(frame['channel'])}"
        super().take(frame)


class TokenSubscriber(Subscriber):
    """Comes back with a resume token as the SDKs make it; it counts as its own what came before the resume's ack."""

    last_timestamp = 0
    repeated = 0

    def come_back(self, client):
        if not self.last_timestamp:
            client.subscribe(*self.channels)  # what comes meanwhile is in the client's backlog
            return
        token = json.dumps({"channels": self.channels, "lastTs": self.last_timestamp})
        client.send_json({"action": "resume", "resumeToken": base64.urlsafe_b64encode(token.encode()).decode()})
        highest = 0
        while True:
            frame = client.recv_json()
            if frame["action"] == "message":
                super().take(frame) if self.is_next(frame) else self.count_repeat()
                highest = max(highest, frame["timestamp"])
            elif frame["action"] == "ack":
                break
            else:
                assert frame["action"] in ("subscribed", "pong"), frame
        marks = frame["data"]["channels"]
        assert sorted(marks) == sorted(self.channels) and all(m["recovered"] for m in marks.values()), marks
        # Only here: were the connection lost during the replay, a later one would have to begin where this one did.
        self.last_timestamp = max(self.last_timestamp, highest)

    def take(self, frame):
        self.note(frame)
        super().take(frame) if self.is_next(frame) else self.count_repeat()

    def note(self, frame):
        if frame["action"] == "message":
            self.last_timestamp = max(self.last_timestamp, frame["timestamp"])

    def is_next(self, frame):
        """False for a repeat; a hole is an error."""
        last = self.last(frame["channel"])
        assert frame["sequence"] <= last + 1, f"{frame} after {last}"
        return frame["sequence"] == last + 1

    def count_repeat(self):
        self.repeated += 1
