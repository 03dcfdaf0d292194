"""Two nodes on a real Redis: order, history, resume, dedup, removal, and what happens while Redis is away or has forgotten."""

import contextlib
import json
import pathlib
import subprocess
import time
import urllib.request

import pymongo
import pytest

from harness.client import Client
from harness.mongo import MongoServer
from harness.redis import redis_url
from harness.rest import api, call
from harness.server import BINARY, SERVER_KEY, clean_environment
from harness.tls import Authority
from harness.wait import wait_until
from test_resume import path_of


@pytest.fixture
def open_client():
    with contextlib.ExitStack() as stack:

        def make(server, **options):
            client = Client(server, **options)
            stack.callback(client.drop)
            return client

        yield make


@pytest.fixture
def pair(new_redis, new_nodes):
    redis = new_redis()
    return redis, new_nodes(redis, 2)


def wait_connected(node, connected=1):
    wait_until(lambda: node.metrics().total("shardwire_broker_connected") == connected, what="Redis to be seen", interval=0.05)


def readiness(node):
    host, port = node.admin
    with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=5) as answer:
        return answer.status, json.load(answer)


def publish_all(client, channel, values):
    """One after the other; returns the acks."""
    return [client.publish(channel, value) for value in values]


def test_messages_reach_other_nodes_in_order_and_history_is_one(pair, open_client, channel):
    _, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    a.subscribe(channel)
    acks = publish_all(a, channel, range(20))
    sequences = [ack["sequence"] for ack in acks]
    assert sequences == list(range(1, 21))
    for client in (a, b):
        heard = [client.expect(action="message", channel=channel) for _ in range(20)]
        assert [m["data"] for m in heard] == list(range(20))
        assert [m["sequence"] for m in heard] == sequences
        assert [m["timestamp"] for m in heard] == [ack["timestamp"] for ack in acks]
        client.nothing_waiting()
    # Any node tells the same, of pages in both directions.
    for node in nodes:
        page = api(node, "GET", path_of(channel) + "?limit=5")
        # Of the last one's millisecond there may be more.
        assert [m["data"] for m in page["messages"]][:5] == [19, 18, 17, 16, 15] and page["hasMore"]
    reader = open_client(nodes[1])
    forward = reader.history(channel, direction="forward", limit=3)
    assert [m["data"] for m in forward["data"]["messages"]][:3] == [0, 1, 2]


def test_the_same_id_on_two_nodes_is_one_message(pair, open_client, channel):
    _, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    first = a.publish(channel, "x", id="same")
    second = b.publish(channel, "x", id="same")
    assert first["sequence"] == second["sequence"] == 1
    b.expect(action="message", channel=channel)
    b.nothing_waiting()
    assert len(api(nodes[0], "GET", path_of(channel))["messages"]) == 1


def test_a_publisher_without_echo_does_not_get_its_own(pair, open_client, channel):
    _, nodes = pair
    key = "?key=ck_e2e_client_0123456789&echo=false"
    a, b = open_client(nodes[0], target="/" + key), open_client(nodes[1])
    a.subscribe(channel)
    b.subscribe(channel)
    a.publish(channel, 1)
    b.expect(action="message", channel=channel)
    b.publish(channel, 2)
    assert a.expect(action="message", channel=channel)["data"] == 2


def test_rewind_and_position_work_on_the_other_node(pair, open_client, channel):
    _, nodes = pair
    a = open_client(nodes[0])
    publish_all(a, channel, range(5))
    b = open_client(nodes[1])
    b.send_json({"action": "subscribe", "channel": channel, "rewind": 2})
    b.expect(action="subscribed", channel=channel)
    assert [b.expect(action="message")["data"] for _ in range(2)] == [3, 4]
    c = open_client(nodes[0])
    c.send_json({"action": "subscribe", "channel": channel, "since": {}})
    place = c.expect(action="subscribed", channel=channel)
    c.drop()
    a.publish(channel, 5)
    d = open_client(nodes[1])
    since = {"epoch": place["epoch"], "sequence": place["sequence"]}
    d.send_json({"action": "subscribe", "channel": channel, "since": since})
    assert d.expect(action="subscribed", channel=channel)["recovered"] is True
    assert d.expect(action="message")["data"] == 5
    d.nothing_waiting()


def test_removed_messages_are_gone_on_all_nodes(pair, open_client, channel):
    _, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    publish_all(a, channel, range(3))
    [b.expect(action="message") for _ in range(3)]
    assert api(nodes[0], "DELETE", path_of(channel))["deleted"] == 3
    assert api(nodes[1], "GET", path_of(channel))["messages"] == []
    ack = a.publish(channel, 3)
    assert ack["sequence"] == 4
    assert b.expect(action="message")["sequence"] == 4
    late = open_client(nodes[1])
    late.send_json({"action": "subscribe", "channel": channel, "rewind": 10})
    late.expect(action="subscribed", channel=channel)
    assert late.expect(action="message")["data"] == 3
    late.nothing_waiting()


def test_retention_by_number_holds(new_redis, new_nodes, open_client, channel):
    config = '[[namespace]]\npattern = "*"\nmessages_max = 10\n'
    nodes = new_nodes(new_redis(), 1, config=config)
    a = open_client(nodes[0], key=SERVER_KEY)  # no rate
    for n in range(300):
        a.send_json({"action": "publish", "channel": channel, "data": n, "id": f"{n}"})
    assert [a.expect(action="ack")["sequence"] for _ in range(300)] == list(range(1, 301))
    page = api(nodes[0], "GET", path_of(channel) + "?limit=100")
    assert [m["data"] for m in page["messages"]] == list(range(299, 289, -1)) and not page["hasMore"]


def test_messages_that_are_too_old_leave_redis(new_redis):
    # The script alone: the shortest retention of a namespace is two minutes.
    source = pathlib.Path(__file__).parents[1] / "engine/src/broker/scripts/publish.lua"
    keys = [f"{{c}}{kind}" for kind in ("meta", "stream", "even", "odd", "topic", "owed")]
    with new_redis().client() as client:
        publish = client.register_script(source.read_text())

        def publish_all(count, age_ms):
            for _ in range(count):
                publish(keys, ["", 120_000, 1000, age_ms, "EPOCH", "text", 0, "", ""])

        publish_all(100, 60_000)
        assert client.xlen("{c}stream") == 100
        (last, _), = client.xrevrange("{c}stream", count=1)
        wait_until(lambda: client.time()[0] * 1000 > int(last.split("-")[1]) + 1000, what="the messages to be old")
        # They are looked for at every 64th message; the newest that is gone stays, so that it can be told.
        publish_all(28, 500)
        entries = [int(place.split("-")[0]) for place, _ in client.xrange("{c}stream")]
        assert entries == list(range(100, 129))


def test_ephemeral_messages_reach_other_nodes_and_are_not_kept(pair, open_client, channel):
    _, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    ack = a.publish(channel, 1, persist=False)
    assert ack.get("sequence") is None
    assert b.expect(action="message").get("sequence") is None
    assert api(nodes[1], "GET", path_of(channel))["messages"] == []


def test_redis_away_refuses_publishes_keeps_connections_and_heals(pair, open_client, channel):
    redis, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    acked = [a.publish(channel, n)["sequence"] for n in range(10)]
    redis.kill()
    for node in nodes:
        wait_connected(node, 0)
    started = time.monotonic()
    a.send_json({"action": "publish", "channel": channel, "data": "lost", "id": "lost"})
    a.expect_error(50300, id="lost")
    assert time.monotonic() - started < 1
    status, body = readiness(nodes[0])
    assert status == 200 and body["status"] == "degraded", body
    redis.start()
    for node in nodes:
        wait_connected(node)
    assert readiness(nodes[0])[1]["status"] == "ready"
    acked += [a.publish(channel, n)["sequence"] for n in range(10, 20)]
    assert acked == list(range(1, 21))
    assert [b.expect(action="message")["data"] for _ in range(20)] == list(range(20))
    b.nothing_waiting()


def test_what_a_node_has_not_heard_is_fetched(pair, open_client, channel):
    """The topics' socket is killed again and again while others publish."""
    redis, nodes = pair
    a, b = open_client(nodes[0], key=SERVER_KEY), open_client(nodes[1])
    b.subscribe(channel)
    with redis.client() as admin:
        for n in range(100):
            a.publish(channel, n)
            if n % 20 == 10:
                admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    assert [b.expect(action="message", timeout=10)["data"] for _ in range(100)] == list(range(100))
    b.nothing_waiting()
    lost = nodes[1].metrics().total("shardwire_broker_lost_total")
    assert lost == 0


def test_a_redis_that_has_forgotten_everything_is_told(pair, open_client, channel):
    redis, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    publish_all(a, channel, range(3))
    [b.expect(action="message") for _ in range(3)]
    with redis.client() as admin:
        admin.flushall()
    assert a.publish(channel, "new")["sequence"] == 1
    told = b.expect(action="subscribed", channel=channel)
    assert told["recovered"] is False
    assert b.expect(action="message")["data"] == "new"


def test_ephemeral_messages_may_stay_on_their_node(new_redis, new_nodes, open_client):
    redis = new_redis()
    config = '[[namespace]]\npattern = "live:*"\npersist = false\nephemeral_when_degraded = true\n'
    nodes = new_nodes(redis, 2, config=config)
    a, here, there = open_client(nodes[0]), open_client(nodes[0]), open_client(nodes[1])
    here.subscribe("live:x")
    there.subscribe("live:x")
    redis.kill()
    wait_connected(nodes[0], 0)
    a.publish("live:x", 1)
    assert here.expect(action="message")["data"] == 1
    there.nothing_waiting()


def test_scripts_that_redis_has_forgotten_are_loaded_again(pair, open_client, channel):
    redis, nodes = pair
    a = open_client(nodes[0])
    a.publish(channel, 1)
    with redis.client() as admin:
        admin.script_flush()
    assert a.publish(channel, 2)["sequence"] == 2


def test_a_lone_publish_costs_one_redis_publish_and_waits_for_nobody(pair, open_client, channel):
    redis, nodes = pair
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    a.publish(channel, 0)
    before = redis.calls("spublish")
    publish_all(a, channel, range(1, 11))
    assert redis.calls("spublish") - before == 10


def test_answers_while_redis_is_away_come_from_nobody(pair, channel):
    redis, nodes = pair
    redis.kill()
    wait_connected(nodes[0], 0)
    assert call(nodes[0], "GET", path_of(channel)).status == 503
    assert call(nodes[0], "POST", path_of(channel), {"data": 1}).status == 503


def test_tls_and_an_acl_user_with_few_rights(new_redis, new_nodes, open_client, tmp_path, channel):
    authority = Authority(tmp_path / "ca")
    acl = ["user default on nopass ~* &* +@all", "user sw on >se:cr@et ~sw:* &sw:* +@all -@dangerous +info"]
    redis = new_redis(tls=authority, acl=acl)
    password = tmp_path / "password"
    password.write_text("se:cr@et\n")
    broker = f'username = "sw"\npassword_file = "{password}"\nca_file = "{authority.file}"\n'
    nodes = new_nodes(redis, 2, broker=broker)
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    a.publish(channel, 1)
    assert b.expect(action="message")["data"] == 1
    with redis.client() as admin:
        users = {client["user"] for client in admin.client_list() if client["sub"] != "0" or client["ssub"] != "0"}
    assert users == {"sw"}
    assert all("se:cr@et" not in node.log() for node in nodes)


def test_an_ack_waits_for_replicas(new_redis, new_nodes, open_client, channel):
    redis = new_redis(cluster=True)
    nodes = new_nodes(redis, 1, broker="wait_replicas = 1\npublish_timeout_ms = 2000\n")
    a = open_client(nodes[0])
    a.publish(channel, 1)
    assert redis.calls("wait") >= 1
    # Without a replica nothing is acknowledged, and the retry with one is not another message.
    master = redis.master_of(f"{{dev:{channel}}}")
    replica = redis.replica_of(master)
    replica.kill()
    a.send_json({"action": "publish", "channel": channel, "data": 2, "id": "again"})
    a.expect_error(50300, id="again")
    replica.start()
    wait_until(lambda: redis.follows(replica), what="the replica to follow", interval=0.05)
    assert a.publish(channel, 2, id="again")["sequence"] == 2
    assert a.publish(channel, 3)["sequence"] == 3


def test_channels_follow_their_slot_to_another_server(new_redis, new_nodes, open_client):
    """A slot is moved while messages are published to a channel in it: none is lost, all come in order."""
    redis = new_redis(cluster=True)
    nodes = new_nodes(redis, 2)
    channel = "mover"
    a, b = open_client(nodes[0], key=SERVER_KEY), open_client(nodes[1])
    b.subscribe(channel)
    sent = []

    def publish(count):
        for _ in range(count):
            sent.append(len(sent))
            a.publish(channel, sent[-1])

    publish(20)
    redis.move_slot(f"{{dev:{channel}}}")
    publish(20)
    assert [b.expect(action="message", timeout=15)["data"] for _ in sent] == sent
    b.nothing_waiting()


# -- with a store that all nodes write --------------------------------------------------------------------------------


@pytest.fixture
def stored(new_redis, new_nodes):
    with MongoServer(is_durable=False) as mongo:
        redis = new_redis()
        yield redis, mongo, new_nodes(redis, 2, config=f'[store.mongo]\nurl = "{mongo.url}"\n')


def test_an_ack_means_redis_and_the_shared_store(stored, open_client, channel):
    redis, mongo, nodes = stored
    a, b = open_client(nodes[0], key=SERVER_KEY), open_client(nodes[1])
    b.subscribe(channel)
    acks = publish_all(a, channel, range(30))
    assert [ack["sequence"] for ack in acks] == list(range(1, 31))
    assert [b.expect(action="message")["data"] for _ in range(30)] == list(range(30))
    for node in nodes:
        page = api(node, "GET", path_of(channel) + "?limit=100")
        assert [m["data"] for m in page["messages"]] == list(range(29, -1, -1))
    with redis.client() as admin:
        owed = f"sw:{{dev:{channel}}}:w"
        wait_until(lambda: admin.zcard(owed) == 0, what="nothing to be owed")
    # The same id again is the same message.
    assert a.publish(channel, 29, id=acks[-1]["id"])["sequence"] == 30
    assert api(nodes[0], "DELETE", path_of(channel))["deleted"] == 30
    assert api(nodes[1], "GET", path_of(channel))["messages"] == []


def test_numbers_go_on_behind_those_of_the_store_when_redis_has_forgotten(stored, open_client, channel):
    redis, _, nodes = stored
    a, b = open_client(nodes[0]), open_client(nodes[1])
    b.subscribe(channel)
    publish_all(a, channel, range(3))
    [b.expect(action="message") for _ in range(3)]
    with redis.client() as admin:
        admin.flushall()
    wait_until(lambda: can_publish(a, channel), timeout=10, what="publishing to go on")
    page = api(nodes[1], "GET", path_of(channel))["messages"]
    assert [m["sequence"] for m in page] == [4, 3, 2, 1]
    assert b.expect(action="subscribed", channel=channel)["recovered"] is False
    assert b.expect(action="message")["sequence"] == 4


def can_publish(client, channel):
    client.send_json({"action": "publish", "channel": channel, "data": "x", "id": "after"})
    frame = client.expect(id="after")
    return frame["action"] == "ack"


def test_what_a_dead_node_has_not_stored_another_stores(stored, open_client, channel):
    """As if the publishing node had died between Redis and the store: the message is in the stream alone."""
    redis, mongo, nodes = stored
    a = open_client(nodes[0])
    publish_all(a, channel, range(3))
    with pymongo.MongoClient(mongo.url) as client, redis.client() as admin:
        messages = next(
            collection for name in client.list_database_names() if name not in ("admin", "local", "config")
            for collection in [client[name]["messages"]] if collection.count_documents({})
        )
        lost = messages.find_one(sort=[("_id", -1)])
        assert messages.delete_one({"_id": lost["_id"]}).deleted_count == 1
        admin.zadd(f"sw:{{dev:{channel}}}:w", {"1": 1, "2": 1, "3": 1})
        wait_until(lambda: messages.count_documents({}) == 3, timeout=25, what="the message to be stored", interval=0.1)
        wait_until(lambda: admin.zcard(f"sw:{{dev:{channel}}}:w") == 0, what="nothing to be owed", interval=0.05)
    assert [m["data"] for m in api(nodes[1], "GET", path_of(channel))["messages"]] == [2, 1, 0]


# -- `shardwire check` ------------------------------------------------------------------------------------------------


def look(folder, redis, **user):
    """What `check` finds of Redis: grade and text by what was looked at."""
    url = redis_url(redis.address, None, *user.values()) if user else redis.url
    folder.mkdir(exist_ok=True)
    (folder / "shardwire.toml").write_text(
        f'listen = "127.0.0.1:0"\n[admin]\nlisten = "127.0.0.1:0"\n[broker.redis]\nurls = ["{url}"]\n'
    )
    done = subprocess.run(
        [str(BINARY), "check", "--json"], cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=20
    )
    found = {f["what"]: f for f in json.loads(done.stdout) if f["what"].startswith("redis")}
    assert (done.returncode == 2) == any(f["grade"] == "fail" for f in json.loads(done.stdout)), done
    return found


def test_check_looks_at_redis(new_redis, tmp_path):
    acl = [
        "user default on nopass ~* &* +@all",
        "user sw on >secret ~sw:* &sw:* +@all -@dangerous +info",
        "user few on >secret ~sw:* &sw:* +@all -@dangerous +info -xadd -spublish",
        "user other on >secret ~other:* &sw:* +@all -@dangerous +info",
    ]
    redis = new_redis(acl=acl)
    good = look(tmp_path / "a", redis, name="sw", password="secret")
    assert {f["grade"] for f in good.values()} == {"ok"}, good
    few = look(tmp_path / "a", redis, name="few", password="secret")["redis rights"]
    assert few["grade"] == "fail" and few["value"].endswith("denied: XADD, SPUBLISH") and "ACL SETUSER" in few["remedy"], few
    assert look(tmp_path / "a", redis, name="other", password="secret")["redis rights"]["grade"] == "fail"
    wrong = look(tmp_path / "a", redis, name="sw", password="wrong-one")["redis"]
    assert wrong["grade"] == "fail" and "password_file" in wrong["remedy"] and "wrong-one" not in str(wrong), wrong
    with redis.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        assert client.dbsize() == 0, "check changes nothing"
    found = look(tmp_path / "a", redis)
    assert [found[what]["grade"] for what in ("redis", "redis memory", "redis persistence")] == ["ok", "warn", "warn"], found
    redis.kill()
    assert look(tmp_path / "a", redis)["redis"]["grade"] == "warn"
