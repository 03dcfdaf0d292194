"""Many channels with history: what is held in memory is bounded by the budget, what is stored is all there."""

import random
import time

import pytest

from harness.client import Client
from harness.rest import api, call
from harness.rawws import RawSocket
from harness.server import SERVER_KEY

MIB = 1 << 20
CHANNELS = 100_000
MESSAGES = 10
PER_CALL = 1000
RING_BYTES = 8 * MIB  # per shard
DATA = "x" * 180
# What 100,000 channels, the ids of the dedup window and the store's caches take; the messages themselves are 300 MiB.
USED_MAX = 420 * MIB


def resident(server):
    return server.metrics().total("process_resident_memory_bytes")


@pytest.mark.timeout(150)
def test_100_000_channels_with_10_messages_stay_within_the_ring_budget(new_server):
    server = new_server(
        config=f"[limits]\npublish_batch_max = {PER_CALL}\n[history]\nring_bytes_max = {RING_BYTES}\n"
    )
    before, started = resident(server), time.monotonic()
    with RawSocket(server.address, timeout=30) as connection:
        for round in range(MESSAGES):
            for start in range(0, CHANNELS, PER_CALL):
                body = {"channels": [f"c:{n}" for n in range(start, start + PER_CALL)], "data": [round, DATA]}
                answer = call(server, "POST", "/api/publish", body, connection=connection)
                items = answer.json()["messages"]
                assert len(items) == PER_CALL and all(item.get("sequence") == round + 1 for item in items), items[:3]
    took = time.monotonic() - started
    metrics = server.metrics()
    used = resident(server) - before
    rings = metrics.total("shardwire_ring_bytes")
    print(f"{CHANNELS * MESSAGES} messages in {took:.1f} s; RSS {before / MIB:.0f} MiB + {used / MIB:.0f} MiB, rings {rings / MIB:.1f} MiB")
    assert metrics.total("shardwire_home_channels") == CHANNELS
    for labels, value in metrics.series("shardwire_ring_bytes"):
        assert value <= RING_BYTES, labels
    assert used < USED_MAX

    with Client(server, key=SERVER_KEY) as client:
        for channel in random.sample(range(CHANNELS), 50):
            name = f"c:{channel}"
            assert [m["sequence"] for m in client.history(name)["messages"]] == list(range(10, 0, -1))
            client.send_json({"action": "subscribe", "channel": name, "rewind": MESSAGES})
            client.next_is(action="subscribed", channel=name)
            assert [client.recv_json()["data"][0] for _ in range(MESSAGES)] == list(range(MESSAGES))
