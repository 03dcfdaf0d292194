"""Stored messages as the contract's D17 says, over the socket and its HTTP twin of D23; removal; retention by namespace."""

import json
import time
from urllib.parse import quote

import pytest

from harness.client import Client
from harness.keys import add_key
from harness.rest import api, call, expect_refusal
from harness.server import CLIENT_KEY, SERVER_KEY

KIB = 1024
LIMITED = "ck_e2e_history_0123456789"


def path_of(channel):
    return f"/api/channels/{quote(channel, safe='')}/messages"


def fill(server, channel, *runs):
    """Publish messages 1, 2, 3, … in runs of the given lengths; a run is one call, so its messages share a timestamp."""
    number = 0
    for length in runs:
        batch = [{"data": number + n, "id": f"m{number + n}"} for n in range(1, length + 1)]
        number += length
        api(server, "POST", path_of(channel), batch)


def sequences(messages):
    return [m["sequence"] for m in messages]


@pytest.fixture
def pages(server, connect, channel):
    """`pages(limit=…)` asks over the socket and over HTTP, which must say the same; returns (messages, hasMore)."""
    client = connect()

    def ask(**fields):
        frame = client.history(channel, **fields)
        query = "&".join(f"{name}={value}" for name, value in fields.items())
        body = api(server, "GET", f"{path_of(channel)}?{query}")
        assert body == frame["data"]
        return body["messages"], body["hasMore"]

    return ask


# -- shape --------------------------------------------------------------------------------------------------------------


def test_a_message_is_as_it_was_published(server, connect, channel):
    client = connect()
    data = {"text": "é 😀", "n": [1, None, 1.5]}
    ack = client.publish(channel, data, id="one")
    frame = client.history(channel)
    message = {
        "id": "one", "channel": channel, "data": data, "publisherId": client.client_id,
        "timestamp": ack["timestamp"], "sequence": 1,
    }
    page = {"channel": channel, "messages": [message], "hasMore": False}
    assert frame == {"action": "history", "channel": channel, "data": page, "messages": [message], "hasMore": False}
    assert api(server, "GET", path_of(channel)) == page
    assert api(server, "GET", "/api/admin/apps/dev" + path_of(channel).removeprefix("/api")) == page
    assert type(message["timestamp"]) is int and type(frame["messages"][0]["timestamp"]) is int


def test_data_comes_back_as_the_bytes_that_were_sent(server, connect, channel):
    client = connect()
    client.publish_raw(channel, '{"b":1.0e2, "a":"\\u00e9"}', "raw")
    client.expect(action="ack", id="raw")
    assert b'"data":{"b":1.0e2, "a":"\\u00e9"}' in call(server, "GET", path_of(channel)).body


@pytest.mark.parametrize("shape,keys", [("flat", {"messages", "hasMore"}), ("standard", {"data"}), (None, {"data", "messages", "hasMore"})])
def test_shapes(connect, channel, shape, keys):
    client = connect(target=f"/?key={CLIENT_KEY}" + (f"&shape={shape}" if shape else ""))
    client.publish(channel, 1)
    assert client.history(channel).keys() == {"action", "channel"} | keys


def test_an_empty_channel_has_an_empty_page(connect, server, channel):
    assert connect().history(channel)["data"] == {"channel": channel, "messages": [], "hasMore": False}
    assert api(server, "GET", path_of(channel)) == {"channel": channel, "messages": [], "hasMore": False}


def test_needs_no_subscription_and_ephemeral_messages_are_not_in_it(connect, channel):
    client = connect()
    client.publish(channel, "kept")
    client.publish(channel, "fleeting", persist=False)
    client.publish(channel, "kept too")
    assert [m["data"] for m in client.history(channel)["messages"]] == ["kept too", "kept"]
    client.nothing_waiting()


def test_a_repeated_id_is_stored_once(connect, channel):
    client = connect()
    for n in range(3):
        client.publish(channel, n, id="same")
    assert [m["data"] for m in client.history(channel)["messages"]] == [0]


# -- which messages -------------------------------------------------------------------------------------------------------


def test_direction_and_limit(server, pages, channel):
    fill(server, channel, *[1] * 7)
    assert sequences(pages()[0]) == [7, 6, 5, 4, 3, 2, 1]
    assert sequences(pages(direction="backward")[0]) == [7, 6, 5, 4, 3, 2, 1]
    assert sequences(pages(direction="forward")[0]) == [1, 2, 3, 4, 5, 6, 7]
    for bound in (0, -1, -5):
        assert len(pages(limit=bound)[0]) == 7


def test_default_and_highest_limit(server, pages, channel):
    fill(server, channel, *[1] * 4, *[100] * 10)
    messages, more = pages(limit=100_000)
    assert len(messages) == 1000 and not more, "the channel keeps 1000"
    assert sequences(messages) == list(range(1004, 4, -1))
    messages, more = pages()
    assert 100 <= len(messages) <= 200 and more


def test_time_bounds_are_exclusive_and_floored(server, connect, pages, channel):
    fill(server, channel, *[1] * 6)
    stamps = {m["sequence"]: m["timestamp"] for m in pages()[0]}
    for n in (2, 4):
        stamp = stamps[n]
        older = [s for s in range(6, 0, -1) if stamps[s] < stamp]
        newer = [s for s in range(1, 7) if stamps[s] > stamp]
        assert sequences(pages(before=stamp)[0]) == older
        assert sequences(pages(before=stamp + 0.9)[0]) == older
        assert sequences(pages(after=stamp, direction="forward")[0]) == newer
        assert sequences(pages(after=stamp + 0.9, direction="forward")[0]) == newer
        assert sequences(pages(after=stamp)[0]) == newer[::-1]
        assert sequences(pages(after=stamp, before=stamp)[0]) == []
    assert sequences(pages(after=0, before=stamps[6] + 1, direction="forward")[0]) == [1, 2, 3, 4, 5, 6]


def test_sequence_bounds(server, pages, channel):
    fill(server, channel, 9)
    assert sequences(pages(afterSeq=2, beforeSeq=6, direction="forward")[0]) == [3, 4, 5]
    assert sequences(pages(beforeSeq=3)[0]) == [2, 1]
    assert sequences(pages(afterSeq=9)[0]) == []


def test_has_more_is_about_the_direction(server, pages, channel):
    fill(server, channel, *[1] * 5)
    stamps = [m["timestamp"] for m in pages(direction="forward")[0]]
    if len(set(stamps)) == 5:
        assert pages(limit=5) == (pages()[0], False)
        assert pages(limit=4)[1] is True and pages(limit=4, direction="forward")[1] is True
        assert pages(limit=2, before=stamps[2])[1] is False
        assert pages(limit=1, before=stamps[2])[1] is True
        assert pages(limit=2, after=stamps[2], direction="forward")[1] is False
    assert pages(afterSeq=3)[1] is False, "older messages are not in the range"


@pytest.mark.parametrize("direction", ["backward", "forward"])
@pytest.mark.parametrize("limit", [1, 7, 30])
def test_paging_by_timestamp_loses_nothing(server, pages, channel, direction, limit):
    """A page is never cut inside of a run of equal timestamps."""
    runs = [1, 40, 3, 1, 1, 90, 2, 17]
    fill(server, channel, *runs)
    seen, bound = [], {}
    for _ in range(200):
        messages, more = pages(limit=limit, direction=direction, **bound)
        seen += messages
        assert len(messages) <= limit + 100
        if not more:
            break
        bound = {"before" if direction == "backward" else "after": messages[-1]["timestamp"]}
    expected = list(range(1, sum(runs) + 1))
    assert sequences(seen) == (expected[::-1] if direction == "backward" else expected)


def test_a_run_longer_than_a_page_may_be_is_paged_by_sequence(new_server, channel):
    server = new_server(config="[limits]\npublish_batch_max = 400\n")
    fill(server, channel, 400)
    seen, bound = [], ""
    while True:
        page = api(server, "GET", f"{path_of(channel)}?limit=50{bound}")
        seen += sequences(page["messages"])
        assert len(page["messages"]) <= 150
        if not page["hasMore"]:
            break
        bound = f"&beforeSeq={seen[-1]}"
    assert seen == list(range(400, 0, -1))


@pytest.mark.parametrize("shape,least,most", [(None, 4, 6), ("standard", 8, 12), ("flat", 8, 12)])
def test_a_page_has_a_size(server, connect, channel, shape, least, most):
    """Below 1 MiB, which python and swift need; the mirrored shape carries every message twice."""
    for n in range(30):
        api(server, "POST", path_of(channel), {"data": "x" * (60 * KIB), "id": f"m{n}"})
    client = connect(target=f"/?key={CLIENT_KEY}" + (f"&shape={shape}" if shape else ""))
    seen, bound = [], {}
    while True:
        client.send_json({"action": "history", "channel": channel, **bound})
        text = client.recv_text()
        assert len(text) < 900 * KIB
        frame = json.loads(text)
        page = frame.get("data", frame)
        seen += sequences(page["messages"])
        if not page["hasMore"]:
            break
        assert least <= len(page["messages"]) <= most
        bound = {"beforeSeq": seen[-1]}
    assert seen == list(range(30, 0, -1))


# -- order of answers -----------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_requests(server, connect, channel):
    """Large and small pages of channels on both shards: the readers finish them in another order."""
    names = [f"{channel}:{n}" for n in range(6)]
    for n, name in enumerate(names):
        fill(server, name, *[100 if n % 2 else 1] * 3)
    client = connect(key=SERVER_KEY)  # 160 calls in a row are above a client's rate
    for _ in range(10):
        asked = [(names[n % 6], n % 4 + 1) for n in range(16)]
        for name, limit in asked:
            client.send_json({"action": "history", "channel": name, "direction": "forward", "limit": limit})
        assert [client.recv_json()["channel"] for _ in asked] == [name for name, _ in asked]


def test_too_many_requests_at_once_are_refused(connect, channel, server):
    client = connect()
    fill(server, channel, 100)
    count = 200
    for _ in range(count):
        client.send_json({"action": "history", "channel": channel})
    frames = [client.recv_json() for _ in range(count)]
    refused = [f for f in frames if f["action"] == "error"]
    assert all(f["code"] == 42900 and f["channel"] == channel for f in refused)
    assert sum(f["action"] == "history" for f in frames) == count - len(refused) >= 16
    client.history(channel)


def test_large_pages_wait_for_a_slow_reader(server, connect, channel):
    """Sixteen pages of 720 KiB, asked for at once, are above the bound of an outbox; each waits for the one before it."""
    for n in range(12):
        api(server, "POST", path_of(channel), {"data": "x" * (60 * KIB), "id": f"m{n}"})
    client = connect(target=f"/?key={CLIENT_KEY}&shape=flat", receive_buffer=16 * KIB)
    for _ in range(16):
        client.send_json({"action": "history", "channel": channel})
    time.sleep(0.3)  # nothing is read: socket buffers fill
    for _ in range(16):
        assert sequences(client.recv_json()["messages"]) == list(range(12, 0, -1))
    client.nothing_waiting()


# -- bad input and rights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"direction": "up"}, {"direction": 1}, {"limit": "ten"}, {"before": "now"}, {"after": -1}, {"beforeSeq": -1}, {"afterSeq": "x"}]
)
def test_wrong_fields(server, connect, channel, fields):
    client = connect()
    client.send_json({"action": "history", "channel": channel, **fields})
    client.expect_error(40003, channel=channel)
    (name, value), = fields.items()
    if not (name == "direction" and value == 1):
        expect_refusal(call(server, "GET", f"{path_of(channel)}?{name}={value}"), 400, 40003)


def test_null_is_absent(connect, channel):
    client = connect()
    client.publish(channel, 1)
    frame = client.history(channel, limit=None, before=None, after=None, direction=None, beforeSeq=None)
    assert len(frame["messages"]) == 1


@pytest.mark.parametrize("name", ["bad name", "$sys", ""])
def test_bad_channel_names(server, connect, name):
    client = connect()
    client.send_json({"action": "history", "channel": name})
    client.expect_error(40009)
    if name:
        expect_refusal(call(server, "GET", path_of(name)), 400, 40009)
        expect_refusal(call(server, "DELETE", path_of(name)), 400, 40009)


def test_client_keys_may_not_use_the_http_twin(server, channel):
    for method in ("GET", "DELETE"):
        expect_refusal(call(server, method, path_of(channel), key=CLIENT_KEY), 403, 40300)
        expect_refusal(call(server, method, path_of(channel), key=None), 401, 40100)


@pytest.fixture(scope="module")
def namespaced(tmp_path_factory):
    """A server whose namespaces keep little or nothing, and a key that may not read `secret:*`."""
    from harness.server import Server

    config = """
[[namespace]]
pattern = "quiet:*"
history = false

[[namespace]]
pattern = "live:*"
persist = false

[[namespace]]
pattern = "few:*"
messages_max = 5
ttl_s = 120
"""
    server = Server(tmp_path_factory.mktemp("namespaces"), config=config).start()
    assert server.stop() == 0
    add_key(server, LIMITED, {"*": ["subscribe", "publish"], "open:*": ["history"]})
    server.start()
    yield server
    server.kill()


def test_history_needs_its_right(namespaced):
    with Client(namespaced, key=LIMITED) as client:
        client.publish("secret:1", 1)
        client.send_json({"action": "history", "channel": "secret:1"})
        client.expect_error(40300, channel="secret:1")
        client.publish("open:1", 1)
        assert len(client.history("open:1")["messages"]) == 1
        client.send_json({"action": "subscribe", "channel": "secret:1", "rewind": 1})
        client.expect_error(40300, channel="secret:1")


def test_history_may_be_off_while_messages_are_kept_for_resume(namespaced):
    with Client(namespaced) as client:
        assert client.publish("quiet:1", 1)["sequence"] == 1
        client.send_json({"action": "history", "channel": "quiet:1"})
        client.expect_error(40011, channel="quiet:1")
        client.send_json({"action": "subscribe", "channel": "quiet:1", "rewind": 1})
        client.expect_error(40011, channel="quiet:1")
    expect_refusal(call(namespaced, "GET", path_of("quiet:1")), 400, 40011)
    assert api(namespaced, "DELETE", path_of("quiet:1")) == {"deleted": 1}


def test_a_namespace_may_store_nothing(namespaced):
    with Client(namespaced) as client:
        assert "sequence" not in client.publish("live:1", 1)
        client.send_json({"action": "history", "channel": "live:1"})
        client.expect_error(40011, channel="live:1")


def test_a_full_channel_keeps_the_newest(namespaced):
    fill(namespaced, "few:1", *[1] * 12)
    with Client(namespaced) as client:
        page = client.history("few:1", limit=100)
        assert (sequences(page["messages"]), page["hasMore"]) == ([12, 11, 10, 9, 8], False)


# -- removal ------------------------------------------------------------------------------------------------------------------


def test_removal_keeps_the_numbering(server, connect, channel):
    client = connect().subscribe(channel)
    fill(server, channel, 7)
    assert api(server, "DELETE", path_of(channel)) == {"deleted": 7}
    assert api(server, "DELETE", path_of(channel)) == {"deleted": 0}
    assert client.history(channel)["messages"] == []
    assert client.publish(channel, "next")["sequence"] == 8
    assert sequences(client.history(channel)["messages"]) == [8]
    assert api(server, "DELETE", "/api/admin/apps/dev" + path_of(channel).removeprefix("/api")) == {"deleted": 1}
    assert api(server, "DELETE", path_of(channel + ":never")) == {"deleted": 0}


def test_removal_is_seen_by_rewind_and_survives_a_restart(new_server, channel):
    server = new_server()
    fill(server, channel, 5)
    api(server, "DELETE", path_of(channel))
    with Client(server) as client:
        client.send_json({"action": "subscribe", "channel": channel, "rewind": 10})
        client.next_is(action="subscribed", channel=channel)
        client.nothing_waiting()
    server.kill()
    server.start()
    with Client(server, key=SERVER_KEY) as client:
        assert client.history(channel)["messages"] == []
        assert client.publish(channel, "next")["sequence"] == 6


# -- across a restart ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_history_and_dedup_survive_the_end_of_the_process(new_server, channel, ending):
    server = new_server()
    fill(server, channel, 3, 3)
    before = api(server, "GET", path_of(channel))
    server.stop() if ending == "stop" else server.kill()
    server.start()
    assert api(server, "GET", path_of(channel)) == before
    again = api(server, "POST", path_of(channel), {"data": "again", "id": "m2"})["messages"][0]
    stored = before["messages"][-2]
    assert (again["sequence"], again["timestamp"], again["duplicate"]) == (2, stored["timestamp"], True)
    after = api(server, "POST", path_of(channel), {"data": 7})["messages"][0]
    assert after["sequence"] == 7 and after["timestamp"] >= before["messages"][0]["timestamp"]


def test_channel_info_knows_the_last_sequence_after_a_restart(new_server, channel):
    server = new_server()
    fill(server, channel, 4)
    server.kill()
    server.start()
    assert api(server, "GET", path_of(channel).removesuffix("/messages"))["lastSequence"] == 4
