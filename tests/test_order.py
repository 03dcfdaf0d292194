"""Fifty publishers on both shards, twenty channels, ten seconds: nothing lost, doubled or reordered, per publisher and channel."""

import collections
import json
import time

import pytest

from harness.client import Client, open_on_every_shard
from harness.fan import Fan
from harness.rawws import TEXT, encode_frame
from harness.server import SERVER_KEY

PUBLISHERS = 50
CHANNELS = [f"order:{n}" for n in range(20)]
SECONDS = 10.0
WINDOW = 8  # publishes of one publisher that may be without ack


@pytest.mark.timeout(120)
def test_nothing_lost_or_reordered_between_shards(new_server):
    server = new_server(shards=2)
    make = lambda: Client(server, key=SERVER_KEY, timeout=30)  # noqa: E731
    subscribers = open_on_every_shard(server, make)  # {shard: client}, each subscribed to every channel
    for client in subscribers.values():
        client.subscribe(*CHANNELS)
    publishers = [make() for _ in range(PUBLISHERS)]
    spread = {shard: count - 1 for shard, count in server.connections().items()}
    assert sum(spread.values()) == PUBLISHERS and min(spread.values()) >= 5, f"publishers by shard: {spread}"

    fan = Fan([*subscribers.values(), *publishers])
    sinks, sources = fan.streams[: len(subscribers)], fan.streams[len(subscribers) :]
    number = {stream: position for position, stream in enumerate(sources)}
    sent = dict.fromkeys(sources, 0)
    acks = {stream: [] for stream in sources}
    seen = {stream: [] for stream in sinks}
    # The next count of each (publisher, channel); a publisher visits the channels in turn.
    counts = collections.Counter()

    def publish(stream):
        publisher = number[stream]
        channel = CHANNELS[(sent[stream] + publisher) % len(CHANNELS)]
        counts[publisher, channel] += 1
        n = counts[publisher, channel]
        body = f'{{"action":"publish","channel":"{channel}","data":{{"p":{publisher},"n":{n}}},"id":"{publisher}-{channel}-{n}"}}'
        sent[stream] += 1
        fan.send(stream, encode_frame(TEXT, body.encode(), mask=b"\x01\x02\x03\x04"))

    def take(stream):
        if stream in seen:
            seen[stream] += stream.frames()
        else:
            acks[stream] += stream.frames()

    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for stream in sources:
            while sent[stream] - len(acks[stream]) < WINDOW:
                publish(stream)
        for stream in fan.turn(1.0):
            take(stream)
    total = sum(sent.values())
    fan.run_until(
        lambda: sum(map(len, acks.values())) >= total and all(len(s) >= total for s in seen.values()), 30, take
    )
    # Nothing may follow: a last publish on each channel is the end mark, and the counts must be exact at that point.
    marks = sources[0]
    for channel in CHANNELS:
        body = json.dumps({"action": "publish", "channel": channel, "data": {"end": True}, "id": f"end-{channel}"})
        fan.send(marks, encode_frame(TEXT, body.encode()))
    fan.run_until(lambda: all(len(s) >= total + len(CHANNELS) for s in seen.values()), 30, take)

    # What the publishers were told: by channel, sequence -> (id, timestamp).
    told = collections.defaultdict(dict)
    for stream in sources:
        for payload in acks[stream]:
            ack = json.loads(payload)
            assert ack["action"] == "ack", ack
            if ack["id"].startswith("end-"):
                continue
            assert ack["sequence"] not in told[ack["channel"]], f"two publishes share {ack}"
            told[ack["channel"]][ack["sequence"]] = (ack["id"], ack["timestamp"])
    assert sum(map(len, told.values())) == total

    for shard, stream in zip(subscribers, sinks, strict=True):
        messages = [json.loads(payload) for payload in seen[stream]]
        assert len(messages) == total + len(CHANNELS), f"shard {shard}: {len(messages)} for {total} published"
        by_channel = collections.defaultdict(list)
        for message in messages:
            assert message["action"] == "message", message
            by_channel[message["channel"]].append(message)
        for channel in CHANNELS:
            *received, last = by_channel[channel]
            where = f"{channel} on shard {shard}"
            assert last["data"] == {"end": True}, f"{where}: {last} after the end"
            assert [m["sequence"] for m in received] == list(range(1, len(received) + 1)), where
            assert {m["sequence"]: (m["id"], m["timestamp"]) for m in received} == told[channel], where
            times = [m["timestamp"] for m in received]
            assert times == sorted(times), where
            per_publisher = collections.defaultdict(list)
            for message in received:
                per_publisher[message["data"]["p"]].append(message["data"]["n"])
            for publisher in range(PUBLISHERS):
                published = counts[publisher, channel]
                assert per_publisher[publisher] == list(range(1, published + 1)), f"{where}, publisher {publisher}"
    rate = total / SECONDS
    print(f"{total} publishes in {SECONDS:.0f} s ({rate:.0f}/s), {len(sinks) * total} deliveries compared, publishers by shard {spread}")
    assert total > PUBLISHERS * len(CHANNELS), "too little traffic to show anything"
    fan.close()
    assert server.stop() == 0
