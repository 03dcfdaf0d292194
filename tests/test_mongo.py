"""MongoDB as the store: what was acknowledged outlasts the end of the server and of the database, and what the database
cannot take is refused in time."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import threading
import time

import pymongo
import pytest

from harness.admin import admin
from harness.client import Client
from harness.mongo import MongoServer
from harness.proxy import Proxy
from harness.rest import api, call, expect_refusal
from harness.server import BINARY, SERVER_KEY, clean_environment
from harness.survivors import PositionSubscriber, Publisher
from harness.wait import wait_until
from test_durability import KEEP_ALL, all_of, epoch_of, path_of
from test_usage import usage, wait_for_messages

# Names of channels in the kill test.
CHANNELS = [f"kill:{n}" for n in range(4)]
KILLS = 8
# What the database is given before a publish is refused, in these tests.
IMPATIENT = """
[store.mongo]
timeout_ms = 500
retry_ms = 1500
"""
REFUSED_WITHIN_S = 4.0


@pytest.fixture
def mongo():
    with MongoServer() as server:
        yield server


class PatientPublisher(Publisher):
    """One that publishes again, with the same id, what was refused because the store was away."""

    refused = 0

    def session(self, client):
        client.send(b"".join(self.frame(id) for id in self.waiting))
        while not self.done():
            while len(self.waiting) < 16 and not self.stopping.is_set():
                id = f"{self.label}-{self.count}"
                self.waiting[id] = self.channels[self.count % len(self.channels)]
                self.count += 1
                client.send(self.frame(id))
            frame = client.recv_json()
            if frame["action"] == "ack":
                assert self.waiting.pop(frame["id"]) == frame["channel"], frame
                self.acked[frame["id"]] = (frame["channel"], frame["sequence"])
            elif frame["action"] == "error":
                assert frame["code"] == 50300, frame
                self.refused += 1
                self.stopping.wait(0.05)
                client.send(self.frame(frame["id"]))


def kept(server, channels, publishers):
    """The whole history, checked against what publishers know."""
    stored = {}
    for channel in channels:
        messages = all_of(server, channel)
        assert [m["sequence"] for m in messages] == list(range(1, len(messages) + 1)), channel
        for message in messages:
            assert message["id"] not in stored, "an id is stored twice"
            stored[message["id"]] = (channel, message["sequence"])
    for publisher in publishers:
        assert publisher.acked.items() <= stored.items(), "acknowledged and not stored, or elsewhere"
        assert len(publisher.acked) == publisher.count, "every publish is acknowledged in the end"
    assert len(stored) == sum(p.count for p in publishers), "stored that nobody has published"
    return stored


def test_everything_is_kept_in_the_database(new_server, mongo):
    first = new_server(args=["--mongo-url", mongo.url])
    with Client(first, key=SERVER_KEY) as client:
        for n in range(20):
            assert client.publish("a", n)["sequence"] == n + 1
        assert [m["data"] for m in client.history("a", limit=5)["messages"]] == [19, 18, 17, 16, 15]
        page = client.history("a", limit=5, direction="forward")
        assert [m["data"] for m in page["messages"]] == [0, 1, 2, 3, 4] and page["hasMore"]
    wait_for_messages(first, 20)
    admin(first, "POST", "/apps", {"id": "shop"})
    key = admin(first, "POST", "/apps/shop/keys", {"kind": "server"})["key"]
    epoch = epoch_of(first, "a")
    assert first.stop() == 0
    assert sorted(file.suffix for file in first.data_dir.iterdir() if file.suffix == ".db") == []
    # A server with a data folder of its own finds all of it.
    second = new_server(args=["--mongo-url", mongo.url])
    assert [m["data"] for m in all_of(second, "a")] == list(range(20))
    assert epoch_of(second, "a") == epoch
    assert usage(second)["messagesToday"] == 20
    with Client(second, key=key) as client:
        assert client.publish("theirs", 1)["sequence"] == 1
    with Client(second) as client:
        client.send_json({"action": "subscribe", "channel": "a", "rewind": 3})
        client.next_is(action="subscribed")
        assert [client.recv_json()["data"] for _ in range(3)] == [17, 18, 19]
    assert api(second, "DELETE", path_of("a")) == {"deleted": 20}
    assert all_of(second, "a") == []
    assert call(second, "POST", path_of("a"), {"data": 1}).json()["messages"][0]["sequence"] == 21
    assert second.stop() == 0


@pytest.mark.timeout(240)
def test_nothing_acknowledged_is_lost_by_kills_of_server_and_database(new_server, mongo):
    """The server and the database are killed in turn, under publishers that publish again what is not acknowledged."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = new_server(config=KEEP_ALL, args=["--mongo-url", mongo.url])
    publishers = [PatientPublisher(server, f"p{n}", CHANNELS) for n in range(3)]
    subscriber = PositionSubscriber(server, CHANNELS)
    subscriber.start()
    wait_until(subscriber.ready.is_set, what="subscriptions")
    for publisher in publishers:
        publisher.start()

    def acked():
        return sum(len(p.acked) for p in publishers)

    for turn in range(KILLS):
        before = acked()
        wait_until(lambda: acked() > before + 60, 40, "acks")
        time.sleep(chance.uniform(0.0, 0.2))
        if turn % 2:
            mongo.kill()
            time.sleep(chance.uniform(0.0, 0.3))
            mongo.start()
        else:
            server.kill()
            server.restart_on_same_port()
        for client in [*publishers, subscriber]:
            assert client.problem is None, client.problem
    before = acked()
    wait_until(lambda: acked() > before + 60, 40, "acks after the last kill")
    for publisher in publishers:
        publisher.end()
    stored = kept(server, CHANNELS, publishers)
    last = {channel: len([1 for at, _ in stored.values() if at == channel]) for channel in CHANNELS}
    subscriber.end(last)
    for channel in CHANNELS:
        expected = sorted((sequence, id) for id, (at, sequence) in stored.items() if at == channel)
        assert subscriber.seen[channel] == expected, channel
    print(f"{len(stored)} messages, {sum(p.refused for p in publishers)} refused and published again")
    assert server.stop() == 0


@pytest.mark.timeout(120)
def test_a_database_that_hangs_has_publishes_refused_in_time(new_server, mongo):
    server = new_server(config=IMPATIENT, args=["--mongo-url", mongo.url])
    with Client(server, key=SERVER_KEY, timeout=30) as client:
        for n in range(5):
            client.publish("a", n, id=f"m{n}")
        mongo.signal(signal.SIGSTOP)
        # One that is under way when it begins, and those that come later.
        for id in ("h1", "h2"):
            client.send_json({"action": "publish", "channel": "a", "data": id, "id": id})
            started = time.monotonic()
            client.expect_error(50300, id=id)
            assert time.monotonic() - started < REFUSED_WITHIN_S
        assert "sequence" not in client.publish("a", "fleeting", persist=False)
        wait_until(lambda: server.admin_get("/readyz")[0] == 503, 15, "to be told")
        expect_refusal(call(server, "POST", path_of("a"), {"data": 1, "id": "h3"}), 503, 50300)
        mongo.signal(signal.SIGCONT)
        wait_until(lambda: server.admin_get("/readyz")[0] == 200, 20, "readiness", 0.05)
        # Their numbers are free again, and so are their ids.
        assert client.publish("a", "h2", id="h2")["sequence"] == 6
        assert client.publish("a", "h1", id="h1")["sequence"] == 7
        assert [m["data"] for m in all_of(server, "a")] == [0, 1, 2, 3, 4, "h2", "h1"]
    assert server.stop() == 0
    server.start()
    assert [m["sequence"] for m in all_of(server, "a")] == list(range(1, 8))
    assert server.stop() == 0


@pytest.mark.timeout(120)
def test_a_slow_and_cut_network_delays_and_loses_nothing(new_server, mongo):
    proxy = Proxy(("127.0.0.1", mongo.port), delay=0.02)
    try:
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true"
        server = new_server(config=KEEP_ALL + IMPATIENT, args=["--mongo-url", url])
        publishers = [PatientPublisher(server, f"p{n}", CHANNELS) for n in range(2)]
        for publisher in publishers:
            publisher.start()

        def acked():
            return sum(len(p.acked) for p in publishers)

        wait_until(lambda: acked() > 100, 30, "acks through a slow network")
        for seconds in (0.2, 3.0):
            proxy.cut()
            time.sleep(seconds)
            before = acked()
            proxy.heal()
            wait_until(lambda: acked() > before + 50, 30, "acks after a cut")
        proxy.reset()
        for publisher in publishers:
            publisher.end()
        kept(server, CHANNELS, publishers)
        assert server.stop() == 0
    finally:
        proxy.close()


@pytest.mark.timeout(120)
def test_a_full_queue_refuses_and_all_that_was_accepted_is_stored(new_server, mongo):
    config = "[store]\nqueue_ops_max = 50\n[store.mongo]\ntimeout_ms = 5000\nretry_ms = 20000\n"
    server = new_server(config=config, args=["--mongo-url", mongo.url])
    with Client(server, key=SERVER_KEY, timeout=30) as client:
        client.publish("a", 0)
        mongo.signal(signal.SIGSTOP)
        threading.Timer(1.0, mongo.signal, [signal.SIGCONT]).start()
        for n in range(400):
            client.publish_raw("a", n, f"m{n}")
        acked, refused = {}, 0
        for n in range(400):
            frame = client.expect(id=f"m{n}")
            if frame["action"] == "ack":
                acked[frame["id"]] = frame["sequence"]
            else:
                assert frame["code"] == 50300, frame
                refused += 1
        assert refused > 0 and acked
        stored = {m["id"]: m["sequence"] for m in all_of(server, "a")}
        assert acked.items() <= stored.items() and len(stored) == len(acked) + 1
        assert client.publish("a", "on")["sequence"] == len(stored) + 1


def test_servers_that_share_a_database_see_each_others_keys(new_server, mongo):
    one, two = (new_server(args=["--mongo-url", mongo.url]) for _ in range(2))
    admin(one, "POST", "/apps", {"id": "shop"})
    made = admin(one, "POST", "/apps/shop/keys", {"kind": "server"})
    path = "/api/channels/x/messages?limit=1"
    wait_until(lambda: call(two, "GET", path, key=made["key"]).status == 200, 5, "the other server to know the key")
    # Each of a state that has both.
    admin(two, "POST", "/apps", {"id": "second"})
    admin(one, "POST", "/apps", {"id": "third"})
    for server in (one, two):
        wait_until(lambda: {"second", "third"} <= {app["id"] for app in admin(server, "GET", "/apps")["apps"]}, 5, "apps")
    admin(two, "DELETE", f"/apps/shop/keys/{made['id']}")
    wait_until(lambda: call(one, "GET", path, key=made["key"]).status == 401, 5, "the key to be gone")


def test_a_database_that_cannot_be_used_ends_the_start_with_its_reason(new_server, tmp_path):
    with MongoServer(arguments=["--standalone"]) as alone:
        server = new_server(start=False, args=["--mongo-url", alone.url])
        server.spawn()
        assert server.wait() == 2
        assert "replica set" in server.log() and "rs.initiate" in server.log()
    config = "[store.mongo]\ntimeout_ms = 300\nretry_ms = 600\n"
    # Nobody is there any more.
    server = new_server(start=False, config=config, args=["--mongo-url", alone.url.replace("://", "://ann:secret@")])
    server.spawn()
    assert server.wait() == 2
    assert "store.mongo" in server.log() and "secret" not in server.log()


# What a database in trouble answers: an election, a shutdown, a write that was not confirmed, no answer at all. Each is
# told of a command of the writer; errors of the write concern after it was done.
TROUBLES = [
    {"failCommands": ["insert"], "errorCode": 10107},
    {"failCommands": ["update"], "errorCode": 189},
    {"failCommands": ["insert", "update"], "errorCode": 91},
    {"failCommands": ["insert"], "writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
    {"failCommands": ["update"], "writeConcernError": {"code": 91, "errmsg": "Replication is being shut down"}},
    {"failCommands": ["insert"], "closeConnection": True},
    {"failCommands": ["update"], "closeConnection": True},
]


@pytest.mark.timeout(180)
def test_a_step_down_and_what_else_a_database_says_is_survived(new_server):
    """Each trouble comes three times in a row, under publishers, so that retries of the driver are not enough."""
    with MongoServer(arguments=["--enable-test-commands"]) as mongo:
        server = new_server(config=KEEP_ALL, args=["--mongo-url", mongo.url])
        publishers = [PatientPublisher(server, f"p{n}", CHANNELS) for n in range(2)]
        for publisher in publishers:
            publisher.start()

        def acked():
            return sum(len(p.acked) for p in publishers)

        with pymongo.MongoClient(mongo.url) as operator:
            for trouble in TROUBLES:
                before = acked()
                wait_until(lambda: acked() > before + 20, 30, f"acks before {trouble}")
                told = operator.admin.command(
                    {"configureFailPoint": "failCommand", "mode": {"times": 3}, "data": {**trouble, "appName": "shardwire"}}
                )
                assert told["ok"] == 1
                before = acked()
                wait_until(lambda: acked() > before + 20, 30, f"acks after {trouble}")
                for publisher in publishers:
                    assert publisher.problem is None, publisher.problem
        for publisher in publishers:
            publisher.end()
        kept(server, CHANNELS, publishers)
        assert sum(p.refused for p in publishers) == 0, "all of it is over within the time of a batch"
        assert server.stop() == 0


# -- copying --------------------------------------------------------------------------------------------------------------------


def copy(server, mongo, to, data_dir=None, **how):
    """`shardwire store copy`, begun."""
    command = [str(BINARY), "store", "copy", "--to", to, "--json", "--data-dir", str(data_dir or server.data_dir)]
    return subprocess.Popen(
        [*command, "--mongo-url", mongo.url], env=clean_environment(), cwd=server.folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how,
    )


def stored_in(folder):
    """Messages in a data folder that somebody writes."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{folder / 'messages.db'}?mode=ro", uri=True)) as db:
            return db.execute("SELECT count(*) FROM messages").fetchone()[0]
    except sqlite3.OperationalError:
        return 0  # not there yet


# Messages that are copied, and what that may take.
COPIED = int(os.environ.get("SHARDWIRE_COPY_MESSAGES", "3000"))
COPY_S = 60 + COPIED / 250


def finished(process):
    out, err = process.communicate(timeout=2 * COPY_S)
    assert process.returncode == 0, err
    return json.loads(out)


@pytest.mark.timeout(180 + 8 * COPY_S)
def test_a_copy_that_is_killed_goes_on_and_is_equal(new_server, tmp_path):
    with MongoServer(is_durable=False) as mongo:
        server = new_server(config=KEEP_ALL)
        count, size = max(4, COPIED // 2000), COPIED
        for n in range(0, size, 100):
            batch = [{"data": {"n": k}} for k in range(n, n + 100)]
            api(server, "POST", path_of(f"room:{n // 100 % count}"), batch)
        held = copy(server, mongo, "mongo")
        told = held.communicate(timeout=20)[1]
        assert "another shardwire uses it" in told and held.returncode == 1, "a running server keeps its folder"
        before = {f"room:{n}": all_of(server, f"room:{n}") for n in range(count)}
        assert server.stop() == 0
        with pymongo.MongoClient(mongo.url) as client:
            messages = client.shardwire.messages
            begun = time.monotonic()
            for part in (0.2, 0.6):
                process = copy(server, mongo, "mongo")
                wait_until(lambda: messages.estimated_document_count() > size * part, COPY_S, "a part of it")
                process.kill()
                process.communicate()
            there = finished(copy(server, mongo, "mongo"))
            there_s = time.monotonic() - begun
        assert (there["messages"], there["channels"]) == (size, count)
        back_dir = tmp_path / "back"
        begun = time.monotonic()
        process = copy(server, mongo, "files", back_dir)
        wait_until(lambda: stored_in(back_dir) > size * 0.3, COPY_S, "a part of it", 0.05)
        process.kill()
        process.communicate()
        back = finished(copy(server, mongo, "files", back_dir))
        back_s = time.monotonic() - begun
        assert back == there
        print(f"copied and compared, interruptions included: {size} messages to MongoDB in {there_s:.1f} s, "
              f"{size / there_s:.0f}/s; back in {back_s:.1f} s, {size / back_s:.0f}/s")
        for of in ({"args": ["--mongo-url", mongo.url]}, {}):
            # The stand-in reads a whole index for each page: of many messages some are looked at there.
            seen = list(before)[:3] if of and size > 10_000 else before
            other = new_server(start=False, config=f"{KEEP_ALL}[store.mongo]\ntimeout_ms = 60000\n", **of)
            if not of:
                shutil.copytree(back_dir, other.data_dir)
            other.start()
            assert {channel: all_of(other, channel) for channel in seen} == {channel: before[channel] for channel in seen}
            assert call(other, "POST", path_of("room:0"), {"data": "on"}).json()["messages"][0]["sequence"] == len(before["room:0"]) + 1
            assert other.stop() == 0
