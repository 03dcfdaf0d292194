"""Coming back: rewind (contract D18), resume with the token of every SDK (D19, 5.6), and the position form `since`."""

import base64
import json
import threading
import time
from urllib.parse import quote

import pytest

from harness.client import Client
from harness.keys import add_key
from harness.rest import api
from harness.server import CLIENT_KEY, SERVER_KEY
from harness.wait import wait_until

LIMITED = "ck_e2e_resume_0123456789"


def path_of(channel):
    return f"/api/channels/{quote(channel, safe='')}/messages"


def publish(server, channel, *data):
    """Publish each as a message with a timestamp of its own; returns the replies' items."""
    items = []
    for value in data:
        items.append(api(server, "POST", path_of(channel), {"data": value})["messages"][0])
        next_millisecond(items[-1]["timestamp"])
    return items


def publish_together(server, channel, *data):
    """Publish in one call: all messages have one timestamp."""
    items = api(server, "POST", path_of(channel), [{"data": value} for value in data])["messages"]
    assert len({item["timestamp"] for item in items}) == 1
    next_millisecond(items[-1]["timestamp"])
    return items


def next_millisecond(timestamp):
    wait_until(lambda: time.time_ns() // 1_000_000 > timestamp, interval=0.0002)


def pass_late_window(timestamp):
    """Until what was delivered at `timestamp` is not sent again as possibly late to a client that saw a later one."""
    next_millisecond(timestamp + 60)


# -- tokens -------------------------------------------------------------------------------------------------------------


def standard(raw):
    return base64.b64encode(raw).decode()


def url_safe(raw):
    return base64.urlsafe_b64encode(raw).decode()


def bare(encode):
    return lambda raw: encode(raw).rstrip("=")


def compact(content):
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def spaced(content):
    return json.dumps(content, ensure_ascii=False)


# name: field of the frame, key of the time, JSON text, its bytes, base64
FORMS = {
    "js": ("resumeToken", "lastTs", compact, "latin-1", standard),
    "python": ("resumeToken", "lastTs", spaced, "utf-8", bare(url_safe)),
    "go": ("resumeToken", "lastTs", compact, "utf-8", url_safe),
    "php-java-csharp": ("resumeToken", "lastTs", compact, "utf-8", bare(url_safe)),
    "ruby-elixir-kotlin": ("token", "since", compact, "utf-8", bare(url_safe)),
    "dart": ("token", "since", compact, "utf-8", url_safe),
    "swift": ("token", "since", compact, "utf-8", standard),
}


def resume(client, channels, last, form="python"):
    field, key, text, encoding, encode = FORMS[form]
    token = encode(text({"channels": channels, key: last}).encode(encoding))
    client.send_json({"action": "resume", field: token})
    return token


def read_resume(client):
    """All frames up to the resume's ack: `([frames], {channel: outcome})`."""
    frames = []
    while True:
        frame = client.recv_json()
        if frame["action"] == "ack" and frame["id"] == "resume":
            assert frame.keys() == {"action", "id", "data"} and frame["data"].keys() == {"channels"}
            return frames, frame["data"]["channels"]
        frames.append(frame)


def replay_of(frames, channel):
    """Data replayed on a channel; checks that `subscribed` comes first, and that the order is that of the sequences."""
    own = [f for f in frames if f.get("channel") == channel]
    assert own[0] == {"action": "subscribed", "channel": channel}, own[0]
    messages = own[1:]
    assert all(m["action"] == "message" and m["replay"] is True for m in messages)
    order = [m["sequence"] for m in messages]
    assert order == sorted(set(order))
    return [m["data"] for m in messages]


# -- rewind -------------------------------------------------------------------------------------------------------------


def test_rewind_comes_after_subscribed_oldest_first_and_before_live(server, connect, channel):
    items = publish(server, channel, *range(5))
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel, "rewind": 3})
    client.next_is(action="subscribed", channel=channel)
    for n in (2, 3, 4):
        assert client.recv_json() == {
            "action": "message", "channel": channel, "data": n, "id": items[n]["id"],
            "timestamp": items[n]["timestamp"], "sequence": n + 1, "replay": True,
        }
    publish(server, channel, "live")
    live = client.recv_json()
    assert live["data"] == "live" and "replay" not in live
    client.nothing_waiting()


def test_rewind_again_replays_again_and_a_plain_subscribe_does_not(server, connect, channel):
    publish(server, channel, 1, 2)
    client = connect().subscribe(channel)
    for _ in range(2):
        client.send_json({"action": "subscribe", "channel": channel, "rewind": 1})
        client.next_is(action="subscribed", channel=channel)
        client.next_is(action="message", data=2, replay=True)
    client.subscribe(channel)
    publish(server, channel, 3)
    client.next_is(action="message", data=3)
    client.nothing_waiting()


@pytest.mark.parametrize("count,expected", [(1, [4]), (4, [1, 2, 3, 4]), (50, [1, 2, 3, 4]), (0, []), (10**12, [1, 2, 3, 4])])
def test_rewind_gives_what_there_is(server, connect, channel, count, expected):
    publish(server, channel, 1, 2, 3, 4)
    connect().publish(channel, "fleeting", persist=False)
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel, "rewind": count})
    client.next_is(action="subscribed", channel=channel)
    assert [client.recv_json()["data"] for _ in expected] == expected
    client.nothing_waiting()


def test_rewind_is_at_most_100(server, connect, channel):
    for n in range(3):
        publish_together(server, channel, *range(n * 50, n * 50 + 50))
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel, "rewind": 1000})
    client.next_is(action="subscribed", channel=channel)
    assert [client.recv_json()["data"] for _ in range(100)] == list(range(50, 150))
    client.nothing_waiting()


@pytest.mark.parametrize("wrong", [-1, 1.5, "3", True, [], {}])
def test_wrong_rewind(connect, channel, wrong):
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel, "rewind": wrong})
    client.expect_error(40003, channel=channel)


@pytest.mark.parametrize("config", [None, "[history]\nring_bytes_max = 1000\n"], ids=["ring", "store"])
def test_rewind_after_a_restart_and_beyond_the_ring(new_server, channel, config):
    server = new_server(config=config)
    publish_together(server, channel, *range(60))
    for _ in range(2):
        with Client(server) as client:
            client.send_json({"action": "subscribe", "channel": channel, "rewind": 50})
            client.next_is(action="subscribed", channel=channel)
            assert [client.recv_json()["data"] for _ in range(50)] == list(range(10, 60))
        server.kill()
        server.start()


class Stream:
    """Publishes 0, 1, 2, … into a channel with one connection until stopped; `sent` were acknowledged."""

    def __init__(self, server, channel):
        self.client = Client(server, key=SERVER_KEY)
        self.channel, self.sent, self.stopping = channel, 0, False
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopping:
            self.client.publish(self.channel, self.sent)
            self.sent += 1

    def stop(self):
        self.stopping = True
        self.thread.join(20)
        self.client.close()
        return self.sent

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def read_until(client, channel, sequence):
    """Messages of a channel up to a sequence."""
    messages = []
    while not messages or messages[-1]["sequence"] < sequence:
        frame = client.recv_json()
        if frame["action"] == "message" and frame["channel"] == channel:
            messages.append(frame)
    return messages


def test_live_messages_follow_a_rewind_without_gap_or_repeat(server, connect, channel):
    clients = []
    with Stream(server, channel) as stream:
        for n in range(40):
            wait_until(lambda: stream.sent > 10 * n, what="messages")
            client = connect()
            client.send_json({"action": "subscribe", "channel": channel, "rewind": 20})
            client.next_is(action="subscribed")
            clients.append(client)
    for client in clients:
        messages = read_until(client, channel, stream.sent)
        first = messages[0]["sequence"]
        assert [m["sequence"] for m in messages] == list(range(first, stream.sent + 1))
        marks = [m.get("replay", False) for m in messages]
        assert marks == sorted(marks, reverse=True), "replayed ones come first"
        client.nothing_waiting()


# -- resume -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0, 0.75])
@pytest.mark.parametrize("form", FORMS)
def test_token_of_every_sdk(server, connect, channel, form, fraction):
    name = f"{channel}:?>~?>~?>~"  # gives the characters in which the two alphabets differ
    had = publish(server, name, 1, 2)
    publish(server, name, 3, 4)
    client = connect()
    last = had[-1]["timestamp"] + fraction if fraction else had[-1]["timestamp"]
    token = resume(client, [name], last, form)
    assert any(character in token for character in "+/-_")
    frames, outcome = read_resume(client)
    assert replay_of(frames, name) == [3, 4]
    assert outcome == {name: {"recovered": True, "replayed": 2}}
    publish(server, name, 5)
    live = client.recv_json()
    assert live["data"] == 5 and "replay" not in live
    client.nothing_waiting()
    shape = client.history(name).keys()
    assert shape == ({"action", "channel", "messages", "hasMore"} if FORMS[form][0] == "token" else shape | {"data"})


@pytest.mark.parametrize("form,encoding", [("js", "latin-1"), ("js", "utf-8"), ("python", "utf-8"), ("python", "latin-1")])
def test_names_beyond_ascii(new_server, form, encoding):
    """`btoa` makes a byte of each character: Latin-1, which is no UTF-8."""
    server = new_server(config="[websocket]\nutf8_channel_names = true\n")
    name = "straße:é"
    (had,) = publish(server, name, 1)
    publish(server, name, 2)
    with Client(server) as client:
        field, key, text, _, encode = FORMS[form]
        token = encode(text({"channels": [name], key: had["timestamp"]}).encode(encoding))
        client.send_json({"action": "resume", field: token})
        frames, _ = read_resume(client)
        assert replay_of(frames, name) == [2]


@pytest.mark.parametrize(
    "token",
    [
        "", "!!!", standard(b"nonsense"), standard(b"[]"), standard(b"{}"), standard(b'{"channels":[]}'),
        standard(b'{"channels":"a","lastTs":1}'), standard(b'{"channels":[1],"lastTs":1}'),
        standard(b'{"channels":["a"],"lastTs":"1"}'), standard(b'{"channels":["a"],"lastTs":-1}'),
        standard(b'{"channels":["a"],"lastTs":1e99}'), standard(b"\xff\xfe"), "A",
    ],
)
@pytest.mark.parametrize("field", ["resumeToken", "token"])
def test_unreadable_token(connect, channel, field, token):
    client = connect()
    client.send_json({"action": "resume", field: token})
    client.expect_error(40020)
    client.subscribe(channel)
    client.nothing_waiting()


@pytest.mark.parametrize("frame", [{}, {"resumeToken": None}, {"resumeToken": 7}, {"token": {}}])
def test_resume_without_a_token(connect, frame):
    client = connect()
    client.send_json({"action": "resume", **frame})
    client.expect_error(40003)


def test_several_channels_each_by_itself_and_the_ack_last(server, connect, channel):
    names = [f"{channel}:{n}" for n in range(12)]
    had = [publish(server, name, "had")[0] for name in names]
    pass_late_window(had[-1]["timestamp"])
    (seen,) = publish(server, names[0], "seen")
    next_millisecond(seen["timestamp"])
    for n, name in enumerate(names):
        publish(server, name, *range(n))
    client = connect()
    resume(client, names + [names[0]], seen["timestamp"])
    frames, outcome = read_resume(client)
    for n, name in enumerate(names):
        assert replay_of(frames, name) == list(range(n))
        assert outcome[name] == {"recovered": True, "replayed": n}
    assert len(outcome) == 12 and len(frames) == 12 + sum(range(12))
    for name in names:
        publish(server, name, "live")
        client.next_is(action="message", channel=name, data="live")


def test_no_channels_are_answered(connect):
    client = connect()
    resume(client, [], 1)
    assert read_resume(client) == ([], {})


def test_a_channel_that_never_was_is_restored_too(server, connect, channel):
    client = connect()
    resume(client, [channel], 1)
    frames, outcome = read_resume(client)
    assert frames == [{"action": "subscribed", "channel": channel}]
    assert outcome == {channel: {"recovered": True, "replayed": 0}}
    publish(server, channel, "first")
    client.next_is(action="message", data="first")


def test_a_refused_channel_does_not_keep_the_others(new_server, channel):
    server = new_server()
    assert server.stop() == 0
    add_key(server, LIMITED, {"may:*": ["subscribe"]})
    server.start()
    (had,) = publish(server, "may:1", 1)
    publish(server, "may:1", 2)
    publish(server, "not:1", "secret")
    with Client(server, key=LIMITED) as client:
        resume(client, ["not:1", "bad name", "may:1", "$sys"], had["timestamp"])
        frames, outcome = read_resume(client)
        errors = {f["channel"]: f["code"] for f in frames if f["action"] == "error"}
        assert errors == {"not:1": 40300, "bad name": 40009, "$sys": 40009}
        assert replay_of(frames, "may:1") == [2], "its replay does not need the right to history"
        assert outcome == {"may:1": {"recovered": True, "replayed": 1}}
        publish(server, "not:1", "secret")
        client.nothing_waiting()


def test_more_channels_than_a_connection_may_have(server, connect, channel):
    names = [f"{channel}:{n}" for n in range(258)]
    client = connect()
    resume(client, names, 1)
    frames, outcome = read_resume(client)
    assert [f["code"] for f in frames if f["action"] == "error"] == [42911] * 2
    assert list(outcome) == names[:256]


def test_messages_of_one_timestamp_come_again_when_there_are_several(server, connect, channel):
    """The client may have seen only some of them: at least once is the promise (D19)."""
    (old,) = publish(server, channel, "old")
    pass_late_window(old["timestamp"])
    items = publish_together(server, channel, "a", "b", "c")
    publish(server, channel, "new")
    client = connect()
    resume(client, [channel], items[0]["timestamp"])
    frames, outcome = read_resume(client)
    assert replay_of(frames, channel) == ["a", "b", "c", "new"]
    assert outcome[channel] == {"recovered": True, "replayed": 4}


def test_one_timestamp_on_several_channels_of_a_token(new_server):
    server = new_server(shards=1)
    publish(server, "a", 0)
    (old,) = publish(server, "b", 0)
    pass_late_window(old["timestamp"])
    items = api(server, "POST", "/api/publish", {"channels": ["a", "b"], "data": "both"})["messages"]
    assert items[0]["timestamp"] == items[1]["timestamp"]
    next_millisecond(items[0]["timestamp"])
    for channels, expected in ((["a"], []), (["b"], []), (["a", "b"], ["both"])):
        with Client(server) as client:
            resume(client, channels, items[0]["timestamp"])
            frames, _ = read_resume(client)
            assert all(replay_of(frames, name) == expected for name in channels)


def test_what_may_have_been_delivered_late_comes_again_on_other_channels(new_server):
    """A token has one time for all channels, which commit at their own pace: at least once, never less."""
    server = new_server(shards=1)
    publish(server, "a", "just before")
    (seen,) = publish(server, "b", "seen")
    next_millisecond(seen["timestamp"])
    with Client(server) as client:
        resume(client, ["a", "b"], seen["timestamp"])
        frames, _ = read_resume(client)
        assert replay_of(frames, "a") == ["just before"]
        assert replay_of(frames, "b") == [], "of this channel the client has all before"


def test_the_overlap_sends_more(new_server, channel):
    server = new_server(config="[history]\nrecovery_overlap_ms = 60000\n")
    items = publish(server, channel, 1, 2, 3)
    with Client(server) as client:
        resume(client, [channel], items[-1]["timestamp"])
        frames, outcome = read_resume(client)
        assert replay_of(frames, channel) == [1, 2, 3]
        assert outcome[channel]["recovered"] is True


GAPS = {
    "trimmed": ('[[namespace]]\npattern = "*"\nmessages_max = 5\n', list(range(15, 20))),
    "limit": ("[limits]\nresume_messages_max = 10\n", list(range(10, 20))),
    "removed": ("", []),
}


@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_is_told(new_server, channel, gap, restart):
    config, expected = GAPS[gap]
    server = new_server(config=config)
    (had,) = publish(server, channel, "had")
    publish(server, channel, *range(20))
    if gap == "removed":
        api(server, "DELETE", path_of(channel))
    if restart:
        server.kill()
        server.start()
    with Client(server) as client:
        resume(client, [channel], had["timestamp"])
        frames, outcome = read_resume(client)
        assert replay_of(frames, channel) == expected
        assert outcome == {channel: {"recovered": False, "replayed": len(expected)}}
        (live,) = publish(server, channel, "live")
        client.next_is(action="message", data="live")
    with Client(server) as client:
        resume(client, [channel], live["timestamp"])
        frames, outcome = read_resume(client)
        assert outcome == {channel: {"recovered": True, "replayed": 0}}, "nothing is missed since"


def test_resumed_and_subscribed_is_one_subscription_and_one_replay(server, connect, channel):
    (had,) = publish(server, channel, 1)
    publish(server, channel, 2)
    client = connect()
    resume(client, [channel], had["timestamp"])
    client.send_json({"action": "subscribe", "channel": channel})
    frames, _ = read_resume(client)
    assert [f["data"] for f in frames if f["action"] == "message"] == [2]
    publish(server, channel, 3)
    client.expect(action="message", data=3)
    assert not [f for f in client.backlog if f["action"] == "message"]
    client.backlog.clear()
    client.nothing_waiting()


def test_unsubscribe_during_a_resume(server, connect, channel):
    (had,) = publish(server, channel, 1)
    publish_together(server, channel, *range(100))
    client = connect()
    resume(client, [channel], had["timestamp"])
    client.send_json({"action": "unsubscribe", "channel": channel})
    client.expect(action="unsubscribed", channel=channel)
    client.backlog.clear()
    publish(server, channel, "not seen")
    sentinel = channel + ":sentinel"
    client.subscribe(sentinel)
    publish(server, sentinel, "seen")
    client.expect(action="message", data="seen")
    assert not [f for f in client.backlog if f.get("data") == "not seen"]


def test_live_messages_follow_a_resume_without_gap_or_repeat(server, connect, channel):
    """Clients that come back again and again while the channel is busy: each sees every message from its token on."""
    had = publish(server, channel, "had")[0]
    with Stream(server, channel) as stream:
        clients = []
        for n in range(40):
            wait_until(lambda: stream.sent > 5 * n, what="messages")
            client = connect()
            resume(client, [channel], had["timestamp"], list(FORMS)[n % len(FORMS)])
            clients.append(client)
    for client in clients:
        messages = read_until(client, channel, stream.sent + 1)
        assert [m["data"] for m in messages] == list(range(stream.sent))
        assert [m["sequence"] for m in messages] == list(range(2, stream.sent + 2))


def test_a_long_replay_waits_for_a_slow_reader(server, connect, channel):
    """1000 messages of 4 KiB are above the bound of an outbox; live ones published meanwhile follow them."""
    had = publish(server, channel, "had")[0]
    for n in range(0, 999, 27):
        publish_together(server, channel, *[f"{k:04}" + "x" * 4096 for k in range(n, n + 27)])
    client = connect(receive_buffer=16 * 1024)
    resume(client, [channel], had["timestamp"])
    time.sleep(0.3)  # nothing is read: socket buffers fill
    publish(server, channel, "live 1", "live 2")
    frames, outcome = read_resume(client)
    messages = [f for f in frames if f["action"] == "message"]
    assert outcome == {channel: {"recovered": True, "replayed": 999}}
    assert [int(m["data"][:4]) for m in messages if m.get("replay")] == list(range(999))
    rest = [m["data"] for m in messages if not m.get("replay")]
    while len(rest) < 2:
        rest.append(client.recv_json()["data"])
    assert rest == ["live 1", "live 2"]
    client.nothing_waiting()


@pytest.mark.parametrize("form", FORMS)
def test_resume_after_the_server_was_killed(new_server, form):
    server = new_server()
    (had,) = publish(server, "a", 1)
    publish(server, "a", 2)
    publish(server, "b", 1)
    server.kill()
    server.start()
    publish(server, "a", 3)
    with Client(server) as client:
        resume(client, ["a", "b"], had["timestamp"], form)
        frames, outcome = read_resume(client)
        assert (replay_of(frames, "a"), replay_of(frames, "b")) == ([2, 3], [1])
        assert all(o["recovered"] for o in outcome.values())


@pytest.mark.timeout(120)
def test_everybody_comes_back_at_once(new_server):
    """After a restart nothing is in memory: 30,000 channels are loaded, far more than the store takes questions at once."""
    clients, each = 150, 200
    server = new_server(config="[limits]\npublish_batch_max = 1000\n")
    names = [f"c:{n}" for n in range(clients * each)]
    for start in range(0, len(names), 1000):
        items = api(server, "POST", "/api/publish", {"channels": names[start : start + 1000], "data": 1})["messages"]
        assert all(item.get("sequence") == 1 for item in items)
    server.kill()
    server.start()
    back = [Client(server, timeout=60) for _ in range(clients)]
    for n, client in enumerate(back):
        resume(client, names[n * each : (n + 1) * each], 1)
    for n, client in enumerate(back):
        frames, outcome = read_resume(client)
        assert list(outcome) == names[n * each : (n + 1) * each]
        assert all(o == {"recovered": True, "replayed": 1} for o in outcome.values())
        assert len(frames) == 2 * each
        client.close()


# -- since ----------------------------------------------------------------------------------------------------------------


def since(client, channel, **position):
    client.send_json({"action": "subscribe", "channel": channel, "since": position})
    return client.expect(action="subscribed", channel=channel)


def test_since_goes_on_from_a_position(server, connect, channel):
    client = connect()
    start = since(client, channel)
    assert (start["recovered"], start["sequence"]) == (False, 0) and start["epoch"]
    publish(server, channel, 1)
    assert client.recv_json()["sequence"] == 1
    client.close()
    publish(server, channel, 2, 3)
    client = connect()
    back = since(client, channel, sequence=1, epoch=start["epoch"])
    assert (back["recovered"], back["epoch"], back["sequence"]) == (True, start["epoch"], 3)
    assert [(m["data"], m["replay"]) for m in (client.recv_json(), client.recv_json())] == [(2, True), (3, True)]
    publish(server, channel, 4)
    client.next_is(action="message", data=4, sequence=4)
    client.nothing_waiting()


def test_since_is_all_or_nothing(new_server, channel):
    server = new_server(config='[limits]\nresume_messages_max = 10\n[[namespace]]\npattern = "few:*"\nmessages_max = 3\n')
    for name in (channel, "few:1"):
        publish(server, name, *range(12))
    for _ in range(2):
        with Client(server) as client:
            epoch = since(client, channel)["epoch"]
            few = since(client, "few:1")["epoch"]
            for name, sequence, of, expected in [
                (channel, 2, epoch, 10), (channel, 1, epoch, None), (channel, 12, epoch, 0), (channel, 13, epoch, None),
                (channel, 11, "another", None), (channel, 11, few, None), ("few:1", 9, few, 3), ("few:1", 8, few, None),
            ]:
                answer = since(client, name, sequence=sequence, epoch=of)
                assert answer["recovered"] is (expected is not None), (name, sequence)
                assert answer["sequence"] == 12
                for n in range(expected or 0):
                    assert client.recv_json()["sequence"] == sequence + n + 1
            client.nothing_waiting()
        server.kill()
        server.start()


def test_the_epoch_changes_when_the_history_was_lost(new_server, channel):
    server = new_server()
    publish(server, channel, 1, 2)
    with Client(server) as client:
        epoch = since(client, channel)["epoch"]
    server.kill()
    for file in server.data_dir.glob("messages.db*"):
        file.unlink()
    server.start()
    publish(server, channel, "other")
    with Client(server) as client:
        answer = since(client, channel, sequence=1, epoch=epoch)
        assert answer["recovered"] is False and answer["epoch"] != epoch and answer["sequence"] == 1
        client.nothing_waiting()


@pytest.mark.parametrize("wrong", [1, "x", [], {"sequence": "1", "epoch": "e"}, {"sequence": -1, "epoch": "e"}, {"sequence": 1, "epoch": 2}])
def test_wrong_since(connect, channel, wrong):
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel, "since": wrong})
    client.expect_error(40003, channel=channel)
