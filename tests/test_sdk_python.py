"""The PyPI package `wsocket-io` 0.2.0, unmodified: two processes on two shards chat, and come back after a crash."""

import importlib.metadata
import json
import os
import pathlib
import queue
import subprocess
import sys
import threading
import time

import pytest

from harness.client import wait_for_shard
from harness.rest import api
from harness.server import CLIENT_KEY, SERVER_KEY
from harness.wait import wait_until

PEER = pathlib.Path(__file__).parent / "harness" / "sdk_peer.py"


class Peer:
    """One SDK client in a process of its own."""

    def __init__(self, server, key=SERVER_KEY, url=None, env=None, **options):
        self.process = subprocess.Popen(
            [sys.executable, str(PEER), url or server.url, key, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env={**os.environ, **(env or {})},
        )
        self.events = queue.Queue()
        self.backlog = []
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put({"event": "ended"})

    def do(self, command, **fields):
        self.process.stdin.write(json.dumps({"do": command, **fields}) + "\n")
        self.process.stdin.flush()

    def expect(self, event, timeout=15, **fields):
        """The next event of this kind with `fields`; others are kept for later, in order."""
        wanted = {"event": event, **fields}
        for position, got in enumerate(self.backlog):
            if wanted.items() <= got.items():
                return self.backlog.pop(position)
        deadline = time.monotonic() + timeout
        while True:
            try:
                got = self.events.get(timeout=max(0.001, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {wanted} within {timeout} s; have {self.backlog[-8:]}") from None
            if wanted.items() <= got.items():
                return got
            assert got["event"] != "ended", f"the peer ended; have {self.backlog[-8:]}"
            self.backlog.append(got)

    def listen(self, channel):
        self.do("listen", channel=channel)
        self.expect("subscribed", channel=channel)

    def messages(self, count, timeout=30):
        return [self.expect("message", timeout)["data"] for _ in range(count)]

    def end(self):
        """The clean end: the SDK's own disconnect."""
        self.process.stdin.close()
        self.expect("bye")
        assert self.process.wait(10) == 0

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def peers():
    made = []

    def start(server, **options):
        peer = Peer(server, **options)
        made.append(peer)
        peer.expect("state", state="connected")
        return peer

    yield start
    for peer in made:
        peer.kill()


@pytest.fixture
def peer_on_each_shard(peers):
    """Two peers of `server`, the first on shard 0, the second on shard 1."""

    def start(server, **options):
        found = {}
        for _ in range(20):
            before = server.connections()
            peer = peers(server, **options)
            shard = wait_for_shard(server, before)
            if shard in found:
                peer.end()
            found.setdefault(shard, peer)
            if len(found) == 2:
                wait_until(lambda: sum(server.connections().values()) == 2, what="spare peers to be gone")
                assert sorted(server.connections().values()) == [1, 1]
                return found[0], found[1]
        raise AssertionError(f"20 processes, all on shard {set(found)}")

    return start


def test_the_package_is_the_published_one():
    assert importlib.metadata.version("wsocket-io") == "0.2.0"


@pytest.mark.timeout(120)
def test_two_processes_on_two_shards_chat_in_order(new_server, peer_on_each_shard):
    server = new_server(shards=2)
    one, two = peer_on_each_shard(server)
    for peer in (one, two):
        peer.listen("chat")
    one.do("publish", channel="chat", data={"text": "hello", "nested": [1, None, {"é": "😀"}]})
    for peer in (one, two):
        got = peer.expect("message")
        assert got["data"] == {"text": "hello", "nested": [1, None, {"é": "😀"}]}
        assert isinstance(got["timestamp"], int) and got["id"]
    one.expect("ack", channel="chat")

    count = 1000
    one.do("count", channel="chat", name="one", **{"from": 0, "to": count})
    two.do("count", channel="chat", name="two", **{"from": 0, "to": count})
    streams = [peer.messages(2 * count, timeout=60) for peer in (one, two)]
    for stream in streams:
        for name in ("one", "two"):
            assert [m["n"] for m in stream if m["from"] == name] == list(range(count)), name
    assert streams[0] == streams[1], "both see the channel in the same order"
    one.end()
    two.end()


def test_client_key_publishes_and_hears_itself(server, peers, channel):
    peer = peers(server, key=CLIENT_KEY)
    peer.listen(channel)
    peer.do("publish", channel=channel, data="hi")
    peer.expect("message", data="hi")
    peer.do("publish", channel=channel, data="fleeting", options={"persist": False})
    peer.expect("message", data="fleeting")
    peer.do("unsubscribe", channel=channel)
    peer.expect("unsubscribed", channel=channel)
    peer.end()


def test_url_with_a_slash_and_a_query(server, peers):
    for suffix in ("/", "/ws", "/?shape=standard", "//"):
        peers(server, url=server.url + suffix).end()


def test_unknown_key_is_refused_by_status(server):
    peer = Peer(server, key="ck_nobody_knows_this_key")
    assert "401" in peer.expect("refused")["text"]
    peer.kill()


def test_error_text_reaches_the_application(server, peers):
    peer = peers(server, key=CLIENT_KEY)
    peer.do("publish", channel="bad name", data=1)
    assert peer.expect("error")["text"].endswith("[40009]")
    peer.end()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("key", [CLIENT_KEY, SERVER_KEY], ids=["client-key", "server-key"])
def test_reconnects_by_itself_after_a_crash(new_server, peers, key):
    """The SDK makes effectively one try, about a second after the loss (contract 5.8): the server is back before that."""
    server = new_server(shards=2)
    one, two = peers(server, key=key, recover=False), peers(server, key=key, recover=False)
    one.listen("chat")
    two.listen("chat")
    one.do("publish", channel="chat", data="before")
    two.expect("message", data="before")

    server.kill()
    server.restart_on_same_port()
    for peer in (one, two):
        peer.expect("state", state="reconnecting")
        peer.expect("state", state="connected")
        peer.expect("subscribed", channel="chat")  # the SDK's own doing: nobody asked it to
    two.do("publish", channel="chat", data="after")
    one.expect("message", data="after")
    two.expect("message", data="after")
    one.end()
    two.end()
    assert server.stop() == 0


@pytest.mark.timeout(120)
def test_reconnects_after_a_planned_stop_too(new_server, peers):
    """A drain ends clients by a bare TCP close: after a Close frame with 1000 or 1001 this SDK would be stuck for ever."""
    server = new_server(shards=2)
    peer = peers(server, recover=False)
    peer.listen("chat")
    assert server.stop() == 0
    server.restart_on_same_port()
    peer.expect("state", state="connected")
    peer.expect("subscribed", channel="chat")
    peer.do("publish", channel="chat", data="after")
    peer.expect("message", data="after")
    peer.end()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("key", [CLIENT_KEY, SERVER_KEY], ids=["client-key", "server-key"])
def test_its_own_resume_after_a_crash_delivers_what_was_missed(new_server, peers, key):
    """With `recover` on, which is the default, a client that has received something sends `resume` and no `subscribe`: the
    server restores the subscriptions and sends what was published while the client was away, then goes on."""
    server = new_server(shards=2)
    peer = peers(server, key=key)
    peer.listen("chat")
    peer.listen("other")
    peer.do("publish", channel="chat", data="before")
    before = peer.expect("message", data="before")

    server.kill()
    server.restart_on_same_port()
    missed = [("chat", 1), ("other", 2), ("chat", 3)]
    for channel, data in missed:
        api(server, "POST", f"/api/channels/{channel}/messages", {"data": data, "id": f"missed-{data}"})
    assert sum(server.connections().values()) == 0, "the client came back before all was published"
    peer.expect("state", state="reconnecting")
    peer.expect("state", state="connected")
    for channel in ("chat", "other"):
        own = [data for name, data in missed if name == channel]
        got = [peer.expect("message", channel=channel) for _ in own]
        assert [m["data"] for m in got] == own
        assert all(m["timestamp"] > before["timestamp"] and m["id"] == f"missed-{m['data']}" for m in got)
        peer.expect("subscribed", channel=channel)
    for channel in ("chat", "other"):
        peer.do("publish", channel=channel, data="after")
        peer.expect("message", channel=channel, data="after")
    assert not [e for e in peer.backlog if e["event"] == "message"], "nothing comes twice"
    peer.end()


@pytest.mark.timeout(120)
def test_subscribing_again_after_a_resume_is_harmless(new_server, peers):
    """After a resume this SDK holds its channels for unsubscribed, so the application's `subscribe()` sends it again."""
    server = new_server(shards=2)
    peer = peers(server)
    peer.listen("chat")
    peer.do("publish", channel="chat", data="before")
    peer.expect("message", data="before")
    server.kill()
    server.restart_on_same_port()
    peer.expect("state", state="reconnecting")
    peer.expect("state", state="connected")
    peer.expect("subscribed", channel="chat")
    peer.do("resubscribe", channel="chat")
    peer.expect("subscribed", channel="chat")
    peer.do("publish", channel="chat", data="after")
    peer.expect("message", data="after")
    peer.end()
    assert not [e for e in peer.backlog if e["event"] == "message"]


@pytest.mark.timeout(60)
def test_rewind_and_history(server, peers, channel):
    for n in range(3):
        api(server, "POST", f"/api/channels/{channel}/messages", {"data": n})
    peer = peers(server, key=CLIENT_KEY)
    peer.do("listen", channel=channel, rewind=2)
    assert [peer.expect("message")["data"] for _ in range(2)] == [1, 2]
    peer.do("history", channel=channel, options={"limit": 10, "direction": "forward"})
    page = peer.expect("history", channel=channel)
    assert [m["data"] for m in page["messages"]] == [0, 1, 2] and page["has_more"] is False
    assert [m["sequence"] for m in page["messages"]] == [1, 2, 3]
    peer.end()


def test_its_presence_calls_and_listeners(server, channel):
    """Two SDK clients that only listen to presence, as the README of the SDK shows it."""
    ann, bob = Peer(server), Peer(server)
    try:
        for peer in (ann, bob):
            peer.expect("state", state="connected")
            peer.do("attend", channel=channel)
        ann.do("presence", channel=channel, call="enter", **{"with": [{"name": "ann"}]})
        entered = ann.expect("enter", data={"name": "ann"})
        assert entered["joined"] > 1.7e12
        me = entered["client"]
        bob.do("presence", channel=channel, call="enter")
        other = ann.expect("enter", data=None)["client"]
        assert other != me
        ann.do("presence", channel=channel, call="update", **{"with": [{"name": "Ann"}]})
        updated = bob.expect("update", client=me, data={"name": "Ann"})
        assert updated["joined"] == entered["joined"]
        bob.do("presence", channel=channel, call="get")
        members = bob.expect("members")["members"]
        assert {m["client"]: m["data"] for m in members} == {me: {"name": "Ann"}, other: None}
        ann.do("presence", channel=channel, call="leave")
        for peer in (ann, bob):
            peer.expect("leave", client=me, data={"name": "Ann"})
        bob.do("presence", channel=channel, call="get")
        assert [m["client"] for m in bob.expect("members")["members"]] == [other]
    finally:
        for peer in (ann, bob):
            peer.process.kill()
            peer.process.wait()
