"""Channel behaviour over the socket: subscriptions, publishing, dedup, rights, limits, unknown input (contract D7, D10-D15, D25, D31)."""

import json
import re
import time

import pytest

from harness.client import Client, open_on_every_shard
from harness.rawws import TEXT, Ended, encode_frame
from harness.rest import api
from harness.server import CLIENT_KEY, SERVER_KEY

KIB = 1024


@pytest.fixture
def both_shards(server):
    """Two clients with the server key, on shards 0 and 1."""
    clients = open_on_every_shard(server, lambda: Client(server, key=SERVER_KEY))
    yield clients[0], clients[1]
    for client in clients.values():
        client.drop()


# -- subscriptions -----------------------------------------------------------------------------------------------------


def test_subscribe_is_idempotent_and_delivers_once(connect, channel):
    client = connect()
    client.subscribe(channel, channel, channel)
    client.publish(channel, 1)
    client.expect(action="message", data=1)
    client.nothing_waiting()


def test_unsubscribe_ends_delivery(connect, channel):
    client, publisher = connect().subscribe(channel, channel + ":sentinel"), connect()
    client.unsubscribe(channel)
    publisher.publish(channel, "not seen")
    publisher.publish(channel + ":sentinel", "seen")
    assert client.recv_json()["data"] == "seen"


def test_unsubscribe_of_a_channel_never_subscribed_is_answered(connect, channel):
    connect().unsubscribe(channel)


def test_subscribe_again_after_unsubscribe(connect, channel):
    client = connect().subscribe(channel)
    client.unsubscribe(channel)
    client.subscribe(channel)
    client.publish(channel, "again")
    client.expect(action="message", data="again")


def test_messages_reach_subscribers_of_that_channel_only(connect, channel):
    one, other, publisher = connect().subscribe(channel), connect().subscribe(channel + "x"), connect()
    publisher.publish(channel, "for one")
    publisher.publish(channel + "x", "for other")
    assert one.recv_json()["data"] == "for one"
    assert other.recv_json()["data"] == "for other"
    one.nothing_waiting()
    other.nothing_waiting()


def test_publish_needs_no_subscription_and_no_subscriber(connect, channel):
    assert connect().publish(channel, {"a": 1})["sequence"] == 1


def test_order_holds_between_shards_both_ways(both_shards, channel):
    one, two = both_shards
    one.subscribe(channel + ":a")
    two.subscribe(channel + ":b")
    for n in range(200):
        one.publish_raw(channel + ":b", str(n), f"b{n}")
        two.publish_raw(channel + ":a", str(n), f"a{n}")
    for client in (one, two):
        messages = [client.expect(action="message") for _ in range(200)]
        assert [m["data"] for m in messages] == list(range(200))
        assert [m["sequence"] for m in messages] == list(range(1, 201))


@pytest.mark.parametrize("name", ["a", "A:b:c", "x" * 255, "private-room", "presence-1", "a/b?c#d&e=%20", ":", "::", "~!@$^()_+-[]{}|;',.<>"])
def test_good_channel_names(connect, name):
    client = connect().subscribe(name)
    client.publish(name, 1)
    client.expect(action="message", channel=name)


@pytest.mark.parametrize(
    "name", ["", "x" * 256, "a b", 'a"b', "a\\b", "a*", "*", "a\tb", "a\nb", "a\x00b", "a\x7fb", "é", "a:é", "😀", "$sys", "$"]
)
@pytest.mark.parametrize("action", ["subscribe", "publish"])
def test_bad_channel_names(connect, action, name):
    client = connect()
    client.send_json({"action": action, "channel": name, "data": 1, "id": "b"})
    client.expect_error(40009)
    client.nothing_waiting()


def test_257th_channel_is_refused(connect, channel):
    client = connect()
    client.subscribe(*[f"{channel}:{n}" for n in range(256)])
    client.send_json({"action": "subscribe", "channel": f"{channel}:over"})
    client.expect_error(42911, channel=f"{channel}:over")
    client.subscribe(f"{channel}:7")  # one of the 256: still fine
    client.unsubscribe(f"{channel}:7")
    client.subscribe(f"{channel}:over")


def test_closed_connection_frees_its_subscriptions(server, connect, channel):
    client, watcher = connect().subscribe(channel), connect().subscribe(channel)
    client.close()
    # The server has ended the connection: a publish and the count no longer include it.
    watcher.publish(channel, 1)
    assert api(server, "GET", f"/api/channels/{channel}")["subscribers"] == 1


# -- publishing --------------------------------------------------------------------------------------------------------


def test_ack_false_spares_acks_and_nothing_else(server, connect, channel):
    """On every shard, so that the channel's home is the connection's own and another."""
    reader = connect().subscribe(channel)
    quiet = [connect(target=f"/?key={SERVER_KEY}&ack=false") for _ in range(4)]
    for n, client in enumerate(quiet):
        client.send_json({"action": "publish", "channel": channel, "data": n, "id": f"{channel}-{n}", "persist": n % 2 == 0})
        assert reader.expect(action="message", id=f"{channel}-{n}")["data"] == n
        client.send_json({"action": "publish", "channel": "*", "data": n, "id": "bad"})
        assert client.recv_json()["code"] == 40009, "no ack came before the error"
        client.subscribe(channel)
        assert not client.backlog


def test_echo_false_spares_the_publisher_only(server, connect, channel):
    quiet = connect(target=f"/?key={CLIENT_KEY}&echo=false").subscribe(channel)
    other = connect().subscribe(channel)
    quiet.publish(channel, "from quiet")
    other.expect(action="message", data="from quiet")
    other.publish(channel, "from other")
    assert quiet.recv_json()["data"] == "from other"
    quiet.nothing_waiting()


def test_repeated_id_is_acked_alike_and_delivered_once(connect, channel):
    client, subscriber = connect(), connect().subscribe(channel)
    first = client.publish(channel, "once", id="same")
    again = client.publish(channel, "twice", id="same")
    assert (again["sequence"], again["timestamp"]) == (first["sequence"], first["timestamp"])
    client.publish(channel, "sentinel")
    assert [subscriber.recv_json()["data"] for _ in range(2)] == ["once", "sentinel"]
    subscriber.nothing_waiting()


def test_repeated_id_from_another_shard(both_shards, channel):
    one, two = both_shards
    one.subscribe(channel)
    first = one.publish(channel, "once", id="same")
    again = two.publish(channel, "twice", id="same")
    assert (again["sequence"], again["timestamp"]) == (first["sequence"], first["timestamp"])
    assert two.publish(channel, "sentinel")["sequence"] == first["sequence"] + 1
    assert [one.expect(action="message")["data"] for _ in range(2)] == ["once", "sentinel"]


def test_ids_sent_at_once_from_both_shards_are_stored_once_each(both_shards, channel):
    one, two = both_shards
    ids = [f"race-{n}" for n in range(100)]
    for client in both_shards:
        for identifier in ids:
            client.publish_raw(channel, f'"{identifier}"', identifier)
    numbers = []
    for client in both_shards:
        numbers.append({i: client.expect(action="ack", id=i)["sequence"] for i in ids})
    assert numbers[0] == numbers[1]
    assert sorted(numbers[0].values()) == list(range(1, 101))


def test_dedup_is_per_channel(connect, channel):
    client = connect().subscribe(channel, channel + "x")
    client.publish(channel, 1, id="same")
    client.publish(channel + "x", 2, id="same")
    assert {client.expect(action="message")["data"] for _ in range(2)} == {1, 2}


def test_ephemeral_repeat_is_not_delivered_twice(connect, channel):
    client = connect().subscribe(channel)
    for _ in range(2):
        ack = client.publish(channel, "once", id="e", persist=False)
        assert "sequence" not in ack
    client.expect(action="message", data="once")
    client.nothing_waiting()


@pytest.mark.parametrize("identifier", ["", "x" * 129, "a\x00b", "a\nb"])
def test_unusable_id_is_replaced_by_a_server_id(connect, channel, identifier):
    client = connect().subscribe(channel)
    client.send_json({"action": "publish", "channel": channel, "data": 1, "id": identifier})
    message = client.expect(action="message")
    assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", message["id"]), message
    client.expect(action="ack")


def test_absent_id_is_replaced_by_a_server_id(connect, channel):
    client = connect().subscribe(channel)
    for frame in ({}, {"id": None}):
        client.send_json({"action": "publish", "channel": channel, "data": 1, **frame})
        message, ack = client.expect(action="message"), client.expect(action="ack")
        assert re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", message["id"]), message
        assert ack["id"] == message["id"]


def test_null_and_absent_fields_are_the_same(connect, channel):
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel, "rewind": None})
    client.expect(action="subscribed", channel=channel)
    client.send_json({"action": "publish", "channel": channel, "data": None, "id": "n", "persist": None})
    assert client.expect(action="message")["data"] is None
    assert client.expect(action="ack", id="n")["sequence"] == 1


# -- rights ------------------------------------------------------------------------------------------------------------


def test_client_key_may_subscribe_and_publish_everywhere_by_default(connect, channel):
    client = connect(key=CLIENT_KEY).subscribe(channel)
    client.publish(channel, 1)
    client.expect(action="message", data=1)


# -- unknown and malformed input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["nope", "", "Subscribe", "presence", "x" * 1000])
def test_unknown_action(connect, action):
    client = connect()
    client.send_json({"action": action, "channel": "c"})
    client.expect_error(40002)
    client.nothing_waiting()


@pytest.mark.parametrize("text", ["", " ", "nonsense", "{", '{"action":"ping"', '{"action":"ping"}x', "[]", "1", "null", '"ping"', '[{"action":"ping"}]', "{'action':'ping'}", '{"action":"ping",}', "\ufeff{}"])
def test_not_json_or_not_an_object(connect, text):
    client = connect()
    client.send_text(text)
    client.expect_error(40001)
    client.nothing_waiting()


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"channel": "c"},
        {"action": None},
        {"action": 1},
        {"action": ["subscribe"]},
        {"action": "subscribe"},
        {"action": "subscribe", "channel": None},
        {"action": "subscribe", "channel": 1},
        {"action": "subscribe", "channel": ["c"]},
        {"action": "subscribe", "channel": {"name": "c"}},
        {"action": "unsubscribe"},
        {"action": "publish", "data": 1, "id": "x"},
        {"action": "publish", "channel": True, "data": 1, "id": "x"},
        {"action": "publish", "channel": "c", "data": 1, "id": "x", "persist": "no"},
        {"action": "publish", "channel": "c", "data": 1, "id": "x", "persist": 0},
    ],
    ids=json.dumps,
)
def test_missing_or_wrong_fields(connect, frame):
    client = connect()
    client.send_json(frame)
    client.expect_error(40003)
    client.nothing_waiting()


def test_unknown_fields_are_ignored(connect, channel):
    client = connect()
    client.send_json({"x": {"action": "ping"}, "action": "subscribe", "y": [1, 2], "channel": channel, "zz": None})
    client.expect(action="subscribed", channel=channel)


def test_escaped_keys_and_values_are_understood(connect, channel):
    client = connect()
    client.send_text(r'{"\u0061ction":"\u0073ubscribe","channel":"' + channel.replace(":", r"\u003a") + '"}')
    client.expect(action="subscribed", channel=channel)


def test_error_names_the_publish(connect):
    client = connect()
    client.send_json({"action": "publish", "channel": "bad name", "data": 1, "id": "p-1"})
    client.expect_error(40009, id="p-1")


@pytest.mark.parametrize("opening,closing", [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused_and_harmless(connect, channel, opening, closing):
    client = connect().subscribe(channel)
    depth = 9000
    inner = "1" if opening != "[" else ""
    client.publish_raw(channel, opening * depth + inner + closing * depth, "deep")
    frame = client.recv_json()
    assert frame["action"] == "error" and frame["code"] in (40000, 40001, 40003), frame
    client.nothing_waiting()


def test_moderate_nesting_passes(connect, channel):
    client = connect().subscribe(channel)
    payload = "[" * 60 + "]" * 60
    client.publish_raw(channel, payload, "nested")
    client.expect(action="ack", id="nested")
    client.expect(action="message", data=json.loads(payload))


def test_more_than_20_malformed_messages_in_a_minute_close_4000(connect):
    client = connect()
    for n in range(20):
        client.send_text(f"garbage {n}")
        client.expect_error(40001)
    client.nothing_waiting()
    client.send_text("one too many")
    client.expect_close(4000)


def test_refusals_that_are_not_malformed_do_not_close(connect):
    """Errors never close the connection by themselves (D10): a bad channel name is well-formed input."""
    client = connect()
    for _ in range(60):
        client.send_json({"action": "subscribe", "channel": "bad name"})
        client.expect_error(40009)
    client.nothing_waiting()


# -- sizes and rates -----------------------------------------------------------------------------------------------------


def test_largest_data_passes(connect, channel):
    client = connect().subscribe(channel)
    text = "x" * (64 * KIB - 2)
    client.publish(channel, text, id="big")
    assert client.expect(action="message")["data"] == text


def test_data_over_64_kib_is_refused_and_the_connection_stays(connect, channel):
    client = connect().subscribe(channel)
    client.publish_raw(channel, '"' + "x" * (64 * KIB - 1) + '"', "big")
    client.expect_error(41300, id="big")
    client.nothing_waiting()


def test_message_over_128_kib_closes_1009(connect, channel):
    client = connect()
    client.send_text('{"action":"ping","x":"' + "x" * (128 * KIB) + '"}')
    client.expect_close(1009)


def test_publish_rate_of_a_client_key(connect, channel):
    """50/s, burst 100: of 300 at once about a hundred pass, the others are refused by id, each is answered once."""
    client = connect(key=CLIENT_KEY)
    for n in range(300):
        client.publish_raw(channel, "1", f"r{n}")
    answers = [client.recv_json() for _ in range(300)]
    acked = [a["id"] for a in answers if a["action"] == "ack"]
    refused = [a for a in answers if a["action"] == "error"]
    assert sorted(acked + [r["id"] for r in refused]) == sorted(f"r{n}" for n in range(300))
    assert {r["code"] for r in refused} == {42900}
    assert 100 <= len(acked) <= 150, len(acked)
    assert acked[:100] == [f"r{n}" for n in range(100)]
    client.nothing_waiting()


def test_rate_is_per_connection(connect, channel):
    loud, calm = connect(), connect()
    for n in range(150):
        loud.publish_raw(channel, "1", f"l{n}")
    loud.expect_error(42900)
    calm.publish(channel, "fine")


def test_sustained_rate_abuse_ends_the_connection_without_a_close_frame(new_server, tmp_path):
    """Ten windows in a row over the limit: 4150, a bare TCP close (D25). The window is 0.1 s here."""
    path = tmp_path / "limits.toml"
    path.write_text("[limits]\npublish_rate = { per_window = 5, window_ms = 100 }\n")
    server = new_server(shards=1, args=["--config", str(path)])
    abuser, calm = Client(server).subscribe("c"), Client(server).subscribe("c")
    deadline = time.monotonic() + 20
    with pytest.raises(Ended):
        while time.monotonic() < deadline:
            abuser.publish_raw("c", "1", f"{time.monotonic_ns()}")
            json.loads(abuser.recv_text())
    calm.publish("c", "unmoved", id="calm")
    calm.expect(action="message", id="calm")


def test_no_rate_limit_for_a_server_key(connect, channel):
    client = connect(key=SERVER_KEY)
    for n in range(1000):
        client.publish_raw(channel, "1", f"s{n}")
    acks = [client.recv_json() for _ in range(1000)]
    assert [a["action"] for a in acks] == ["ack"] * 1000
    assert sorted(a["sequence"] for a in acks) == list(range(1, 1001))


def test_many_frames_in_one_segment(connect, channel):
    """Frames that arrive together are handled one by one, in order."""
    client = connect(key=SERVER_KEY).subscribe(channel)
    frames = b"".join(
        encode_frame(TEXT, json.dumps({"action": "publish", "channel": channel, "data": n, "id": f"m{n}"}).encode())
        for n in range(500)
    )
    client.send(frames)
    assert [client.expect(action="message")["data"] for _ in range(500)] == list(range(500))
    assert [client.expect(action="ack")["id"] for _ in range(500)] == [f"m{n}" for n in range(500)]
