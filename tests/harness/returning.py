"""A process that holds many clients which come back: each is subscribed to one channel, is lost with the server, tries
again after a second as SDKs do, and goes on from its last message.

`returning.py HOST PORT KEY COUNT CHANNELS`; says `served` on stdout once all are. A line on stdin asks for one line of JSON:
how many are served, how often each was, how long each was without, who was refused, what came out of order, and the last
sequence of each client.
"""

import errno
import heapq
import json
import os
import random
import selectors
import socket
import sys
import time

from rawws import TEXT, encode_frame, upgrade_head

RETRY_S = 1.0


class Crowd:
    def __init__(self, host, port, key, count, channels):
        self.address, self.key = (host, port), key
        self.selector = selectors.EpollSelector()
        self.due = []  # (when, number) of the next attempts
        self.refused, self.disordered, self.gaps = [], [], []
        self.served = 0
        self.clients = [Client(self, n, f"crowd-{n % channels}") for n in range(count)]
        now = time.monotonic()
        for client in self.clients:
            heapq.heappush(self.due, (now + client.number * 0.0005, client.number))

    def run(self):
        self.selector.register(sys.stdin.fileno(), selectors.EVENT_READ, None)
        told = False
        while True:
            now = time.monotonic()
            while self.due and self.due[0][0] <= now:
                self.clients[heapq.heappop(self.due)[1]].connect()
            wait = max(0.0, self.due[0][0] - now) if self.due else 1.0
            for ready, events in self.selector.select(min(wait, 0.05)):
                if ready.data is None:
                    if not os.read(ready.fd, 4096):
                        return
                    print(json.dumps(self.report()), flush=True)
                else:
                    ready.data.move(events)
            if not told and self.served == len(self.clients):
                told = True
                print("served", flush=True)

    def report(self):
        return {
            "served": self.served, "gaps": self.gaps, "refused": self.refused, "disordered": self.disordered,
            "last": [[client.channel, client.last] for client in self.clients],
        }


class Client:
    def __init__(self, crowd, number, channel):
        self.crowd, self.number, self.channel = crowd, number, channel
        self.socket, self.last, self.epoch, self.lost_at, self.is_served = None, 0, None, None, False

    def connect(self):
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.buffer, self.upgraded = b"", False
        code = self.socket.connect_ex(self.crowd.address)
        if code not in (0, errno.EINPROGRESS):
            return self.lose(f"connect: {os.strerror(code)}")
        self.crowd.selector.register(self.socket, selectors.EVENT_WRITE, self)

    def move(self, events):
        try:
            if events & selectors.EVENT_WRITE:
                code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if code:
                    return self.drop(f"connect: {os.strerror(code)}")
                self.socket.send(upgrade_head(self.crowd.address, f"/?key={self.crowd.key}&shape=standard"))
                self.crowd.selector.modify(self.socket, selectors.EVENT_READ, self)
                return
            data = self.socket.recv(1 << 16)
        except OSError as error:
            # The end of a connection that was served may be a reset: of what the client had sent last.
            return self.drop(None if self.is_served else str(error))
        if not data:
            return self.drop(None if self.is_served else "ended before it was served")
        self.buffer += data
        if not self.upgraded:
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            if not head.startswith(b"HTTP/1.1 101"):
                return self.drop(head.decode().splitlines()[0])
            self.upgraded, self.buffer = True, rest
            since = {"sequence": self.last, "epoch": self.epoch} if self.epoch else {}
            self.send({"action": "subscribe", "channel": self.channel, "since": since})
        self.take_frames()

    def send(self, value):
        self.socket.send(encode_frame(TEXT, json.dumps(value).encode()))

    def take_frames(self):
        at, data = 0, self.buffer
        while len(data) - at >= 4:
            size, head = data[at + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[at + 2:at + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(data[at + 2:at + 10], "big"), 10
            if len(data) - at < head + size:
                break
            if data[at] & 15 == TEXT:
                self.take(json.loads(data[at + head:at + head + size]))
            at += head + size
        self.buffer = data[at:]

    def take(self, frame):
        if frame["action"] == "message":
            if frame["sequence"] != self.last + 1:
                self.crowd.disordered.append([self.number, self.last, frame["sequence"]])
            self.last = frame["sequence"]
        elif frame["action"] == "subscribed":
            if self.epoch and not frame["recovered"]:
                self.crowd.disordered.append([self.number, self.last, "not recovered"])
            if not self.epoch:
                self.epoch, self.last = frame["epoch"], frame["sequence"]
            self.is_served = True
            self.crowd.served += 1
            if self.lost_at is not None:
                self.crowd.gaps.append(round(time.monotonic() - self.lost_at, 4))
                self.lost_at = None
        elif frame["action"] == "error":
            self.crowd.disordered.append([self.number, self.last, frame])

    def drop(self, problem):
        self.crowd.selector.unregister(self.socket)
        self.lose(problem)

    def lose(self, problem):
        self.socket.close()
        if problem:
            self.crowd.refused.append(problem)
        if self.is_served:
            self.is_served = False
            self.crowd.served -= 1
        now = time.monotonic()
        if self.lost_at is None:
            self.lost_at = now
        heapq.heappush(self.crowd.due, (now + RETRY_S * random.uniform(0.9, 1.1), self.number))


if __name__ == "__main__":
    host, port, key, count, channels = sys.argv[1:]
    Crowd(host, int(port), key, int(count), int(channels)).run()
