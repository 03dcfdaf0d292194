"""Publishers and subscribers on every node of a cluster, and the comparison of what was acknowledged with what was seen."""

import collections
import threading

from .survivors import PositionSubscriber, Publisher

UNAVAILABLE = 50300


class PatientPublisher(Publisher):
    """Publishes again, under the same id, what was refused because Redis was away."""

    refused = 0
    window = 32

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.pacing = threading.Event()  # never set: a sleep that belongs to this publisher

    def session(self, client):
        client.send(b"".join(self.frame(id) for id in self.waiting))
        while not self.done():
            frames = []
            while len(self.waiting) < self.window and not self.stopping.is_set():
                id = f"{self.label}-{self.count}"
                self.waiting[id] = self.channels[self.count % len(self.channels)]
                self.count += 1
                frames.append(self.frame(id))
            client.send(b"".join(frames))
            answer = client.recv_json()
            if answer["action"] == "error":
                assert answer["code"] == UNAVAILABLE, answer
                self.refused += 1
                # Not at once: it would only be refused again. A stop does not cut this short: all are to be acknowledged.
                self.pacing.wait(0.05)
                if answer["id"] in self.waiting:
                    client.send(self.frame(answer["id"]))
            elif answer["action"] == "ack":
                # An answer to an earlier try may have come first.
                if self.waiting.pop(answer["id"], None):
                    self.acked[answer["id"]] = (answer["channel"], answer["sequence"])
                    if self.pause:
                        self.stopping.wait(self.pause)


class Traffic:
    """A publisher and a subscriber on every node, all on the same channels."""

    def __init__(self, nodes, channels, window=32, pause=0):
        self.channels = channels
        self.subscribers = [PositionSubscriber(node, channels) for node in nodes]
        self.publishers = [
            PatientPublisher(node, f"p{number}", channels, pause=pause) for number, node in enumerate(nodes)
        ]
        for publisher in self.publishers:
            publisher.window = window

    def start(self, timeout=20):
        for subscriber in self.subscribers:
            subscriber.start()
        for subscriber in self.subscribers:
            ready = subscriber.ready.wait(timeout)
            assert ready and not subscriber.problem, f"a subscriber is not ready: {subscriber.problem!r}"
        for publisher in self.publishers:
            publisher.start()
        return self

    def acked(self):
        return sum(len(publisher.acked) for publisher in self.publishers)

    def finish(self, timeout=60):
        """Every subscriber has seen every acknowledged message of its channels in sequence order, once."""
        for publisher in self.publishers:
            publisher.stopping.set()
        for publisher in self.publishers:
            publisher.end(timeout)
        told = collections.defaultdict(dict)  # channel -> sequence -> id
        for publisher in self.publishers:
            for id, (channel, sequence) in publisher.acked.items():
                assert sequence not in told[channel], f"two publishes share {channel} {sequence}"
                told[channel][sequence] = id
        targets = {channel: max(told[channel], default=0) for channel in self.channels}
        for subscriber in self.subscribers:
            subscriber.end(targets, timeout)
        for number, subscriber in enumerate(self.subscribers):
            for channel in self.channels:
                seen = subscriber.seen[channel]
                assert [s for s, _ in seen] == list(range(1, len(seen) + 1)), f"node {number}, {channel}: {seen[:20]}…"
                ids = dict(seen)
                lost = {s: id for s, id in told[channel].items() if ids.get(s) != id}
                assert not lost, f"node {number}, {channel}: acknowledged and not seen: {lost}"
                assert len({id for _, id in seen}) == len(seen), f"node {number}, {channel}: an id came twice"
        return sum(map(len, told.values()))

    def refused(self):
        return sum(publisher.refused for publisher in self.publishers)

    def figures(self):
        refused = self.refused()
        sessions = [subscriber.sessions for subscriber in self.subscribers]
        return f"{self.acked()} acknowledged, {refused} refused and published again, sessions of subscribers {sessions}"

