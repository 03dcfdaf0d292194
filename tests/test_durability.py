"""What was acknowledged is never lost: kill -9 under load, a full disk, a file that cannot be used, expiry (contract D16, D17, D19)."""

import os
import pathlib
import random
import resource
import shutil
import sqlite3
import subprocess
import time
from urllib.parse import quote

import pytest

from harness.client import Client
from harness.rest import api, call, expect_refusal
from harness.server import SERVER_KEY, Server
from harness.survivors import PositionSubscriber, Publisher, TokenSubscriber
from harness.wait import wait_until

KILLS = 20
CHANNELS = [f"kill:{n}" for n in range(6)]


def path_of(channel):
    return f"/api/channels/{quote(channel, safe='')}/messages"


def all_of(server, channel):
    """The whole history of a channel, oldest first."""
    messages = []
    while True:
        after = messages[-1]["sequence"] if messages else 0
        page = api(server, "GET", f"{path_of(channel)}?direction=forward&limit=1000&afterSeq={after}")
        messages += page["messages"]
        if not page["hasMore"]:
            return messages


# -- kill -9 --------------------------------------------------------------------------------------------------------------

KEEP_ALL = """
[limits]
resume_messages_max = 1000000
[[namespace]]
pattern = "*"
messages_max = 1000000
"""


@pytest.mark.timeout(180)
def test_nothing_acknowledged_is_lost_by_kill_9(new_server):
    """Publishers at full speed, killed 20 times at random. Resumed subscribers see every message in order; those that give
    their position see none twice, those with a token only what the contract allows, counted."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    server = new_server(config=KEEP_ALL)
    publishers = [Publisher(server, f"r{n}", CHANNELS) for n in range(2)]
    publishers += [Publisher(server, f"u{n}", CHANNELS, retries=False) for n in range(2)]
    exact, by_token = PositionSubscriber(server, CHANNELS), TokenSubscriber(server, CHANNELS)
    for subscriber in (exact, by_token):
        subscriber.start()
        wait_until(subscriber.ready.is_set, what="subscriptions")
    clients = [*publishers, exact, by_token]
    for publisher in publishers:
        publisher.start()
    # Without a message it would have no token.
    wait_until(lambda: by_token.last_timestamp, what="a first message")

    def acked():
        return sum(len(p.acked) for p in publishers)

    for _ in range(KILLS):
        before = acked()
        wait_until(lambda: acked() > before + 200, 20, "acks after a start")
        time.sleep(chance.uniform(0.0, 0.25))
        server.kill()
        server.restart_on_same_port()
        for client in clients:
            assert client.problem is None, client.problem
    wait_until(lambda: all(p.sessions > KILLS // 2 for p in publishers), 20, "publishers to be back")
    for publisher in publishers:
        publisher.end()
    history = {channel: all_of(server, channel) for channel in CHANNELS}
    last = {channel: len(messages) for channel, messages in history.items()}
    for subscriber in (exact, by_token):
        subscriber.end(last)

    stored = {}
    for channel, messages in history.items():
        assert [m["sequence"] for m in messages] == list(range(1, len(messages) + 1)), channel
        times = [m["timestamp"] for m in messages]
        assert times == sorted(times), channel
        stored |= {m["id"]: (channel, m["sequence"]) for m in messages}
    assert len(stored) == sum(last.values()), "an id is stored twice"
    unknown = 0
    for publisher in publishers:
        assert publisher.acked.items() <= stored.items(), "acknowledged and not stored, or elsewhere"
        if publisher.retries:
            assert len(publisher.acked) == publisher.count, "every publish is acknowledged in the end"
        unknown += len(publisher.unknown)
    surplus = len(stored) - acked()
    assert 0 <= surplus <= unknown, "stored without ack: only what its publisher has given up"
    for subscriber in (exact, by_token):
        for channel, messages in history.items():
            assert subscriber.seen[channel] == [(m["sequence"], m["id"]) for m in messages], channel
    print(f"{acked()} acked, {unknown} unknown of which {surplus} stored, {by_token.repeated} repeated to the client with a token")
    assert exact.sessions > KILLS // 2 and by_token.sessions > KILLS // 2
    assert server.stop() == 0


# -- a disk that is full ------------------------------------------------------------------------------------------------------


class FullByTmpfs:
    """The data folder is a small tmpfs in a mount namespace of the server's own."""

    SIZE = 8 << 20

    def __init__(self, folder):
        class Inside(Server):
            def command(self):
                mount = f'mount -t tmpfs -o size={FullByTmpfs.SIZE} tmpfs "$0" && exec "$@"'
                return ["unshare", "--mount", "sh", "-c", mount, str(self.data_dir), *super().command()]

        self.server = Inside(folder)
        self.server.data_dir.mkdir(parents=True)
        self.server.start()
        self.filler = pathlib.Path(f"/proc/{self.server.process.pid}/root{self.server.data_dir}/filler")

    def fill(self):
        with open(self.filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError as error:
                assert error.errno == 28, error

    def heal(self):
        self.filler.unlink()


class FullByLimit:
    """No file of the process may grow (RLIMIT_FSIZE; the signal is ignored, so writes fail)."""

    def __init__(self, folder):
        class Limited(Server):
            def command(self):
                return ["sh", "-c", 'trap "" XFSZ && exec "$0" "$@"', *super().command()]

        self.server = Limited(folder).start()

    def fill(self):
        self.limit(max(file.stat().st_size for file in self.server.data_dir.iterdir()))

    def heal(self):
        self.limit(resource.RLIM_INFINITY)

    def limit(self, size):
        resource.prlimit(self.server.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def may_mount():
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", [FullByTmpfs, FullByLimit])
def test_full_disk_refuses_what_it_cannot_keep_and_heals(tmp_path, kind):
    if kind is FullByTmpfs and not may_mount():
        pytest.skip("may not mount in a namespace of its own")
    disk = kind(tmp_path / "server")
    server = disk.server
    try:
        subscriber = Client(server, key=SERVER_KEY).subscribe("chat")
        publisher = Client(server, key=SERVER_KEY)
        stored = [publisher.publish("chat", n, id=f"a{n}")["sequence"] for n in range(50)]
        assert stored == list(range(1, 51))
        for _ in stored:
            subscriber.expect(action="message")
        disk.fill()

        # What fits into pages already there may still be stored; soon nothing is.
        def refused():
            nonlocal stored
            id = f"b{len(stored)}"
            publisher.send_json({"action": "publish", "channel": "chat", "data": "x" * 60_000, "id": id})
            frame = publisher.expect(id=id)
            if frame["action"] == "ack":
                stored.append(frame["sequence"])
                subscriber.expect(action="message", id=id)
            else:
                assert frame["code"] == 50300 and frame["channel"] == "chat", frame
            return frame["action"] == "error"

        wait_until(refused, what="a refusal")
        assert stored == list(range(1, len(stored) + 1))
        expect_refusal(call(server, "POST", path_of("chat"), {"data": 1, "id": "h"}), 503, 50300)
        batch = api(server, "POST", "/api/publish", {"channels": ["chat", "other"], "data": 1, "id": "h2"})
        assert [m["code"] for m in batch["messages"]] == [50300, 50300]
        ack = publisher.publish("chat", "fleeting", persist=False)
        assert "sequence" not in ack
        subscriber.next_is(action="message", data="fleeting")
        assert len(publisher.history("chat", limit=1000)["messages"]) == len(stored), "reading goes on"
        # Seen from outside, and only there.
        status, _, text = server.admin_get("/readyz")
        assert status == 503 and "store" in text and "50300" in text, text
        assert server.admin_get("/healthz")[0] == 200
        metrics = server.metrics()
        assert metrics.total("shardwire_store_failing") == 1
        assert metrics.total("shardwire_store_operations_total", result="failed") >= 2
        subscriber.nothing_waiting()

        disk.heal()
        wait_until(lambda: server.admin_get("/readyz")[0] == 200, 20, "readiness", 0.05)
        again = publisher.publish("chat", "healed", id="h")  # refused before: its id is free
        assert again["sequence"] == len(stored) + 1
        subscriber.next_is(action="message", data="healed", sequence=len(stored) + 1)
        assert [m["sequence"] for m in all_of(server, "chat")] == list(range(1, len(stored) + 2))
        assert server.metrics().total("shardwire_store_failing") == 0
        assert "writing works again" in server.log()
        subscriber.drop()
        publisher.drop()
    finally:
        server.kill()


# -- a file that cannot be used -------------------------------------------------------------------------------------------------


def garbage(path):
    path.write_bytes(b"this is not a database" * 1000)


def folder(path):
    path.mkdir()


def foreign(path):
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    db.close()


def later(path):
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 999")
    db.close()


def torn(path):
    """The first half of the file, as a copy that was cut off leaves it."""
    os.truncate(path, 100)


@pytest.mark.parametrize(
    "spoil,words", [(garbage, "not a database"), (folder, "cannot open"), (foreign, "another program"), (later, "later version"), (torn, "messages.db")]
)
def test_a_file_that_cannot_be_used_ends_the_start_with_its_reason(new_server, spoil, words):
    server = new_server()
    api(server, "POST", path_of("a"), {"data": 1})
    assert server.stop() == 0
    path = server.data_dir / "messages.db"
    if spoil in (garbage, folder, foreign):
        path.unlink()
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    server.log_file.write_text("")
    server.spawn()
    assert server.wait() == 1
    (line,) = [line for line in server.log().splitlines() if '"error"' in line]
    assert words in line and str(path) in line, line
    assert before is None or path.read_bytes() == before, "it is left as it was"


def test_a_file_taken_away_while_running_is_made_anew_and_the_loss_is_told(new_server):
    server = new_server()
    with Client(server) as client:
        client.send_json({"action": "subscribe", "channel": "a", "since": {}})
        epoch = client.expect(action="subscribed")["epoch"]
        for n in range(5):
            client.publish("a", n)
        for file in server.data_dir.glob("messages.db*"):
            file.unlink()

        def begun_anew():
            answer = call(server, "POST", path_of("a"), {"data": "anew"})
            assert answer.status in (200, 503), answer
            return answer.status == 200 and answer.json()["messages"][0]["sequence"] == 1

        wait_until(begun_anew, what="the first message of another numbering", interval=0.05)
        client.expect(action="message", data="anew", sequence=1)
    with Client(server) as client:
        client.send_json({"action": "subscribe", "channel": "a", "since": {"sequence": 1, "epoch": epoch}})
        answer = client.expect(action="subscribed")
        assert answer["recovered"] is False and answer["epoch"] != epoch
        assert [m["sequence"] for m in client.history("a")["messages"]] == [1]
    wait_until(lambda: server.admin_get("/readyz")[0] == 200, what="readiness")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_file_that_may_not_be_written(new_server):
    server = new_server()
    assert server.stop() == 0
    (server.data_dir / "messages.db").chmod(0o400)
    server.spawn()
    assert server.wait() == 1
    assert "right to write" in server.log()


def test_the_store_is_for_its_owner_only(new_server):
    server = new_server()
    api(server, "POST", path_of("a"), {"data": 1})
    for file in server.data_dir.glob("messages.db*"):
        assert file.stat().st_mode & 0o077 == 0, file


# -- backup, expiry, trimming -----------------------------------------------------------------------------------------------------


def epoch_of(server, channel):
    with Client(server) as client:
        client.send_json({"action": "subscribe", "channel": channel, "since": {}})
        return client.expect(action="subscribed")["epoch"]


def test_backup_of_a_running_server_can_be_started_from(new_server):
    """As the README says: `VACUUM INTO` while it runs; other epochs before the start from it."""
    server = new_server()
    for n in range(5):
        api(server, "POST", path_of("a"), {"data": n})
    copy = server.folder / "backup.db"
    db = sqlite3.connect(server.data_dir / "messages.db")
    db.execute("VACUUM INTO ?", (str(copy),))
    db.close()
    api(server, "POST", path_of("a"), {"data": "after the backup"})
    restored = new_server(start=False)
    restored.data_dir.mkdir(mode=0o700)
    shutil.copy(copy, restored.data_dir / "messages.db")
    db = sqlite3.connect(restored.data_dir / "messages.db")
    db.execute("UPDATE channels SET epoch = lower(hex(randomblob(13)))")
    db.commit()
    db.close()
    restored.start()
    assert epoch_of(restored, "a") != epoch_of(server, "a")
    assert [m["data"] for m in all_of(restored, "a")] == [0, 1, 2, 3, 4]
    assert api(restored, "POST", path_of("a"), {"data": "on"})["messages"][0]["sequence"] == 6


def rows(server, query):
    db = sqlite3.connect(f"file:{server.data_dir / 'messages.db'}?mode=ro", uri=True)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def test_messages_expire_by_age(new_server):
    """Two of three messages are made old in the file, as if the server had been away; they are gone from the first answer
    on, and soon from the file."""
    server = new_server(config='[[namespace]]\npattern = "*"\nttl_s = 120\n')
    for n in range(3):
        api(server, "POST", path_of("a"), {"data": n})
    assert server.stop() == 0
    db = sqlite3.connect(server.data_dir / "messages.db")
    db.execute("UPDATE messages SET ts = ts - 130000 WHERE seq <= 2")
    db.commit()
    db.close()
    server.start()
    assert [m["sequence"] for m in all_of(server, "a")] == [3]
    wait_until(lambda: rows(server, "SELECT seq FROM messages") == [(3,)], what="expired rows to be deleted")
    wait_until(lambda: server.metrics().total("shardwire_store_expired_total") == 2, what="the metric")
    with Client(server) as client:
        client.send_json({"action": "subscribe", "channel": "a", "rewind": 10})
        client.next_is(action="subscribed")
        client.next_is(action="message", sequence=3)
        client.nothing_waiting()
        assert client.publish("a", "next")["sequence"] == 4


def test_a_full_channel_is_trimmed_in_the_file(new_server):
    server = new_server(config='[[namespace]]\npattern = "few:*"\nmessages_max = 10\n')
    for n in range(0, 500, 50):
        api(server, "POST", path_of("few:a"), [{"data": k} for k in range(n, n + 50)])
    assert [m["data"] for m in all_of(server, "few:a")] == list(range(490, 500))
    # Deleting is put off until it is worth it; a start begins with it.
    server.kill()
    server.start()
    wait_until(lambda: rows(server, "SELECT count(*) FROM messages") == [(10,)], what="rows to be deleted")
    assert [m["data"] for m in all_of(server, "few:a")] == list(range(490, 500))
