"""Presence from outside: raw clients in every shape, the HTTP twin, and a crowd that is killed."""

import collections
import pathlib
import subprocess
import sys
import time

import pytest

from harness.client import Client, open_on_every_shard
from harness.rest import api, call, expect_refusal
from harness.server import CLIENT_KEY, SERVER_KEY

CROWD = pathlib.Path(__file__).parent / "harness" / "crowd.py"
GRACE_MS = 2000
NAMED = f"[websocket]\nself_asserted_ids = true\n[limits]\npresence_grace_ms = {GRACE_MS}\n"


@pytest.fixture
def named(new_server):
    """A server where clients name themselves and are waited for 2 s; opens clients of it."""
    server = new_server(config=NAMED)
    made = []

    def open_client(client_id, shape=None):
        shape = f"&shape={shape}" if shape else ""
        client = Client(server, target=f"/?key={SERVER_KEY}&clientId={client_id}{shape}")
        made.append(client)
        return client

    open_client.server = server
    yield open_client
    for client in made:
        client.drop()


def do(client, action, channel, **fields):
    client.send_json({"action": f"presence.{action}", "channel": channel, **fields})


def test_every_shape_has_its_form(named, channel):
    clients = {shape: named(f"c-{shape}", shape) for shape in (None, "standard", "flat")}
    for client in clients.values():
        client.subscribe(channel)
    me = named("me")
    do(me, "enter", channel, data={"x": 1})
    do(me, "get", channel)
    joined = me.expect(action="presence.enter")["joinedAt"]
    assert isinstance(joined, int)
    member = {"clientId": "me", "joinedAt": joined, "data": {"x": 1}}
    top = {"action": "presence.enter", "channel": channel}
    assert clients[None].expect(action="presence.enter") == {**top, "clientId": "me", "joinedAt": joined, "data": member}
    assert clients["standard"].expect(action="presence.enter") == {**top, "data": member}
    assert clients["flat"].expect(action="presence.enter") == {
        **top, "clientId": "me", "joinedAt": joined, "data": {"x": 1},
    }
    top["action"] = "presence.members"
    for shape, fields in ((None, ("data", "members")), ("standard", ("data",)), ("flat", ("members",))):
        do(clients[shape], "get", channel)
        assert clients[shape].expect(action="presence.members") == {**top, **{f: [member] for f in fields}}


def test_members_and_counts_over_http(named, channel):
    clients = [named(f"m{n}") for n in range(5)]
    for n, client in enumerate(clients):
        do(client, "enter", channel, data={"n": n} if n else None)
        client.expect(action="presence.enter", clientId=f"m{n}")
    path = f"/api/channels/{channel}/presence"
    server = named.server
    first = api(server, "GET", f"{path}?limit=3")
    assert [m["clientId"] for m in first["members"]] == ["m0", "m1", "m2"]
    assert "data" not in first["members"][0] and first["members"][1]["data"] == {"n": 1}
    assert first["members"][0]["connections"] == 1 and first["total"] == 5
    rest = api(server, "GET", f"{path}?limit=3&cursor={first['cursor']}")
    assert [m["clientId"] for m in rest["members"]] == ["m3", "m4"] and "cursor" not in rest
    one = api(server, "GET", f"/api/channels/{channel}")
    assert (one["occupied"], one["subscribers"], one["members"]) == (True, 0, 5)
    listed = api(server, "GET", f"/api/channels?prefix={channel}")["channels"]
    assert listed == [{"channel": channel, "subscribers": 0, "members": 5}]
    expect_refusal(call(server, "GET", f"{path}?limit=x"), 400, 40003)
    expect_refusal(call(server, "GET", path, key=CLIENT_KEY), 403, 40300)
    for client in clients:
        client.close()
    assert api(server, "GET", path) == {"channel": channel, "members": [], "total": 0}
    assert api(server, "GET", f"/api/channels?prefix={channel}")["channels"] == []


def test_a_cut_connection_is_waited_for_and_its_client_comes_back_on_another_shard(named, channel):
    watcher = named("watcher").subscribe(channel)
    made = iter(range(100))
    by_shard = open_on_every_shard(named.server, lambda: named(f"me{next(made)}"))
    first = by_shard[0]
    me = first.client_id
    do(first, "enter", channel, data={"x": 1})
    watcher.expect(action="presence.enter", clientId=me)
    for _ in range(6):  # on both shards, most probably
        first.reset()
        time.sleep(0.1)
        first = named(me)
        page = api(named.server, "GET", f"/api/channels/{channel}/presence")
        assert [(m["clientId"], m["connections"]) for m in page["members"]] == [(me, 1)]
    time.sleep(GRACE_MS / 1000 + 0.5)
    watcher.nothing_waiting()
    ended = time.monotonic()
    first.reset()
    gone = watcher.expect(action="presence.leave", clientId=me)
    assert GRACE_MS / 1000 - 0.05 <= time.monotonic() - ended <= GRACE_MS / 1000 + 1
    assert gone["data"]["data"] == {"x": 1}
    # A clean end is one at once.
    last = named(me)
    do(last, "enter", channel)
    watcher.expect(action="presence.enter", clientId=me)
    ended = time.monotonic()
    last.close()
    watcher.expect(action="presence.leave", clientId=me)
    assert time.monotonic() - ended < 1


def test_a_thousand_killed_clients_leave_once_after_the_grace(named, channel):
    count = 1000
    watcher = named("watcher").subscribe(channel)
    host, port = named.server.address
    arguments = [host, str(port), SERVER_KEY, channel, str(count)]
    crowd = subprocess.Popen([sys.executable, str(CROWD), *arguments], stdout=subprocess.PIPE, text=True)
    try:
        entered = collections.Counter()
        while entered.total() < count:
            entered[watcher.expect(action="presence.enter", timeout=30)["clientId"]] += 1
        assert crowd.stdout.readline() == "entered\n"
        assert max(entered.values()) == 1
    finally:
        crowd.kill()
        crowd.wait()
    killed = time.monotonic()
    left, first = collections.Counter(), None
    while left.total() < count:
        frame = watcher.expect(action="presence.leave", timeout=10)
        first = first or time.monotonic()
        left[frame["clientId"]] += 1
    took = time.monotonic() - killed
    assert left == entered
    assert first - killed >= GRACE_MS / 1000 - 0.05
    assert took <= GRACE_MS / 1000 + 1, took
    watcher.nothing_waiting()
    assert api(named.server, "GET", f"/api/channels/{channel}")["members"] == 0


def test_a_large_room_tells_its_number(new_server, channel):
    server = new_server(config=NAMED + '[[namespace]]\npattern = "*"\npresence_events_max = 3\n')
    watcher = Client(server, key=SERVER_KEY).subscribe(channel)
    members = [Client(server, key=SERVER_KEY) for _ in range(6)]
    for client in members:
        do(client, "enter", channel)
    for _ in range(3):
        watcher.expect(action="presence.enter")
    counts = []
    while not counts or counts[-1]["count"] < 6:
        counts.append(watcher.expect(action="presence.count"))
    assert all(c["events"] is False and isinstance(c["timestamp"], int) for c in counts)
    for client in members:
        client.close()
    assert watcher.expect(action="presence.count", events=True)["count"] == 3
    for _ in range(3):
        watcher.expect(action="presence.leave")
    watcher.nothing_waiting()
