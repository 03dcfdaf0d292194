"""One app floods; another on the same shard keeps its latency and loses nothing."""

import json
import os
import selectors
import subprocess
import threading
import time

from harness.admin import admin
from harness.client import Client
from harness.server import CLIENT_KEY, SERVER_KEY, TARGET

LOADTEST = os.environ.get("SHARDWIRE_LOADTEST_BIN", TARGET / "release" / "shardwire-loadtest")

LIMIT = 500  # publishes per second of the app that floods
FLOOD = 10 * LIMIT
CONNECTIONS = 200
# Twice the undisturbed latency, and what a shared machine adds to a few milliseconds by itself.
SLACK_MS = 15.0


class Flood(threading.Thread):
    """`CONNECTIONS` clients that publish `FLOOD` messages per second together and read what comes back."""

    def __init__(self, server, key):
        super().__init__(daemon=True)
        self.clients = [Client(server, key=key) for _ in range(CONNECTIONS)]
        self.stopped = threading.Event()
        self.sent = 0

    def run(self):
        selector = selectors.DefaultSelector()
        for client in self.clients:
            client.socket.setblocking(False)
            selector.register(client.socket, selectors.EVENT_READ)
        frame = client_frame(b'{"action":"publish","channel":"flood","data":1,"persist":false}')
        started, turn = time.monotonic(), 0
        while not self.stopped.is_set():
            due = int((time.monotonic() - started) * FLOOD) - self.sent
            each = max(1, due // 20)
            while due > 0:
                client = self.clients[turn % CONNECTIONS]
                turn += 1
                try:
                    client.socket.send(frame * each)
                except BlockingIOError:
                    pass
                self.sent += each
                due -= each
            for key, _ in selector.select(0.005):
                try:
                    key.fileobj.recv(65536)
                except BlockingIOError:
                    pass

    def stop(self):
        self.stopped.set()
        self.join(10)
        for client in self.clients:
            client.drop()


def client_frame(payload):
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def measure(server, folder, name):
    """The load generator's report on an app that stays within its limits."""
    file = folder / f"{name}.json"
    subprocess.run(
        [LOADTEST, "channels", "--channels", "50", "--subscribers", "2", "--rate", "200", "--duration", "4",
         "--warmup", "1", "--url", "ws://{}:{}".format(*server.address), "--key", CLIENT_KEY,
         "--server-key", SERVER_KEY, "--json", file, "--quiet"],
        check=True, timeout=60,
    )
    return json.loads(file.read_text())


def test_an_app_that_floods_takes_nothing_from_another(new_server, tmp_path):
    server = new_server(shards=1)
    rates = {"publish": {"app": {"per_window": LIMIT, "window_ms": 1000}}}
    admin(server, "POST", "/apps", {"id": "flood", "settings": {"limits": {"rates": rates}}})
    key = admin(server, "POST", "/apps/flood/keys", {"kind": "server"})["key"]
    alone = measure(server, tmp_path, "alone")
    flood = Flood(server, key)
    flood.start()
    try:
        beside = measure(server, tmp_path, "beside")
    finally:
        flood.stop()
    report = json.dumps({"alone": alone["latency"], "beside": beside["latency"]})
    assert beside["integrity"]["lost"] == 0 and beside["integrity"]["out_of_order"] == 0
    before, after = (r["latency"]["p99_us"] / 1000 for r in (alone, beside))
    assert after <= 2 * before + SLACK_MS, report
    limited = sum(v for labels, v in server.metrics().series("shardwire_rate_limited_total")
                  if (labels["class"], labels["scope"]) == ("publish", "app"))
    assert limited >= 0.5 * flood.sent, f"{limited} of {flood.sent} were refused: the flood was none"
    print(f"p99 {before:.1f} ms alone, {after:.1f} ms beside a flood of {flood.sent} publishes, {limited:.0f} refused")
