"""One channel, a thousand subscribers, a reader that has stopped: nobody else notices (design: delivery guarantees 2 and 4)."""

import json
import time

import pytest

from harness.client import Client
from harness.fan import Fan
from harness.rawws import CLOSE, TEXT, Ended, encode_frame
from harness.server import SERVER_KEY
from harness.wait import wait_until

SUBSCRIBERS = 1000
MESSAGES = 1000


def publish_frame(channel, number, data, persist=True):
    body = {"action": "publish", "channel": channel, "id": f"m{number}", "data": data}
    if not persist:
        body["persist"] = False
    return encode_frame(TEXT, json.dumps(body, separators=(",", ":")).encode())


def subscribe_all(server, channel, count):
    """`count` clients subscribed to `channel`; handshakes are sent one by one, answers are read as they come."""
    clients = [Client(server, key=SERVER_KEY, timeout=30) for _ in range(count)]
    for client in clients:
        client.send_json({"action": "subscribe", "channel": channel})
    for client in clients:
        client.next_is(action="subscribed")
    return clients


def numbers_of(stream):
    """The `data.n` of all messages a stream has received."""
    messages = [json.loads(payload) for payload in stream.frames()]
    assert all(m["action"] == "message" for m in messages), messages[:3]
    return [m["data"]["n"] for m in messages]


@pytest.mark.timeout(180)
def test_stalled_reader_is_ended_and_a_thousand_others_get_all_in_order(new_server):
    server = new_server(shards=2)
    assert server.metrics().total("shardwire_slow_consumers_total") == 0
    clients = subscribe_all(server, "room", SUBSCRIBERS)
    assert min(server.connections().values()) > 300, "the kernel spreads connections over the shards"

    # The stalled reader also listens to a channel of its own with large messages, so that its bound is passed during
    # the fan-out whatever the kernel's socket buffers hold.
    stalled = Client(server, key=SERVER_KEY, receive_buffer=4096).subscribe("room", "ballast")
    publisher = Client(server, key=SERVER_KEY)
    fan = Fan([publisher, *clients])
    source, sinks = fan.streams[0], fan.streams[1:]

    filler = "x" * 60000
    acked = {"count": 0}
    started = time.monotonic()
    sent = {"room": 0, "ballast": 0}

    def count_acks(stream):
        if stream is not source:
            return
        for payload in stream.frames():
            frame = json.loads(payload)
            assert frame["action"] == "ack", frame
            acked["count"] += 1

    # Closed loop with 16 publishes in flight; every tenth is followed by ballast for the stalled reader (6 MB in all).
    while acked["count"] < MESSAGES + sent["ballast"] or sent["room"] < MESSAGES:
        while sent["room"] < MESSAGES and sent["room"] + sent["ballast"] - acked["count"] < 16:
            fan.send(source, publish_frame("room", sent["room"], {"n": sent["room"], "pad": "y" * 80}))
            sent["room"] += 1
            if sent["room"] % 10 == 0:
                fan.send(source, publish_frame("ballast", f"b{sent['ballast']}", filler))
                sent["ballast"] += 1
        for stream in fan.turn(1.0):
            count_acks(stream)
        assert time.monotonic() - started < 120, (sent, acked)

    # Each sink has all when it has as many bytes as the first one has with 1,000 messages; one more message follows the
    # rest, so a lost or doubled one shows as a hole or a surplus rather than as a missing end.
    fan.send(source, publish_frame("room", "end", {"n": MESSAGES}))
    marker = b'"data":{"n":%d' % MESSAGES
    pending = set(sinks)

    def tick_off(stream):
        if stream in pending and marker in stream.received[-400:]:
            pending.discard(stream)

    for stream in sinks:
        tick_off(stream)
    fan.run_until(lambda: not pending, 60, tick_off)
    seconds = time.monotonic() - started

    expected = list(range(MESSAGES + 1))
    first = bytes(sinks[0].received)
    assert numbers_of(sinks[0]) == expected
    for position, stream in enumerate(sinks[1:], 1):
        if bytes(stream.received) != first:  # heartbeats aside the streams are the same bytes: the frame is encoded once
            assert numbers_of(stream) == expected, f"subscriber {position}"
        assert stream.ended is None
    print(f"{SUBSCRIBERS * (MESSAGES + 1)} deliveries in {seconds:.1f} s")

    # The stalled one: ended by a bare TCP close after what the kernel had taken, counted once, nobody else counted.
    wait_until(lambda: server.metrics().total("shardwire_slow_consumers_total") == 1, what="the stalled reader to be counted")
    wait_until(lambda: sum(server.connections().values()) == SUBSCRIBERS + 1, what="its connection to be freed")
    read = 0
    with pytest.raises(Ended):
        while True:
            frame = stalled.recv_frame(30)
            assert frame.opcode == TEXT and frame.opcode != CLOSE
            read += 1
    assert read < MESSAGES, "the stalled reader got everything: it was not ended"
    fan.close()
    assert server.stop(60) == 0


@pytest.mark.timeout(120)
def test_reader_that_is_slow_but_within_the_bound_keeps_its_connection(new_server):
    server = new_server(shards=1)
    slow = Client(server, key=SERVER_KEY).subscribe("room")
    publisher = Client(server, key=SERVER_KEY)
    for n in range(2000):
        publisher.publish_raw("room", f'{{"n":{n}}}', f"m{n}")
    for _ in range(2000):
        publisher.expect(action="ack")
    assert [slow.expect(action="message")["data"]["n"] for _ in range(2000)] == list(range(2000))
    slow.nothing_waiting()
    assert server.metrics().total("shardwire_slow_consumers_total") == 0


@pytest.mark.timeout(120)
def test_frame_bound_ends_a_reader_of_many_small_messages(new_server):
    """4096 frames or 1 MiB, whichever is first: small messages hit the bound of frames or of bytes, and end one reader only."""
    server = new_server(shards=1)
    stalled = Client(server, key=SERVER_KEY, receive_buffer=4096).subscribe("room")
    reader = Client(server, key=SERVER_KEY).subscribe("room")
    publisher = Client(server, key=SERVER_KEY)
    fan = Fan([publisher, reader])
    source, sink = fan.streams
    sent = acked = got = 0
    payload = {"pad": "z" * 1000}

    def ended():
        return server.metrics().total("shardwire_slow_consumers_total") == 1

    deadline = time.monotonic() + 90
    while not ended():
        goal = sent + 500
        while got < goal or acked < goal:
            while sent < goal and sent - acked < 32:
                fan.send(source, publish_frame("room", sent, payload))
                sent += 1
            for stream in fan.turn(1.0):
                if stream is source:
                    acked += len(stream.frames())
                else:
                    got += len(stream.frames())
            assert time.monotonic() < deadline, (sent, acked, got)
        assert sent < 60000, "60 MB for a reader that reads nothing, and it was not ended"
    assert sink.ended is None and got == sent
    assert len(stalled.expect_bare_end(30)) < sent
    fan.close()
