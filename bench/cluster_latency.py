#!/usr/bin/env python3
"""Latency from a publish on one node to its delivery on another, beside a bare Redis round trip at the same time.

    cargo build --release -p shardwire -p shardwire-loadtest
    tests/.venv/bin/python bench/cluster_latency.py [--rate 10000] [--seconds 10] [--cluster]

Starts a Redis of its own (Debian's redis-server, without persistence), two nodes with a shard each, and shardwire-loadtest
that publishes to the one and subscribes at the other. Meanwhile one connection publishes to a sharded topic and another
hears it, 200 times a second: what the same Redis under the same load takes without Shardwire.
"""

import argparse
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from harness.nodes import Nodes  # noqa: E402
from harness.redis import RedisCluster, RedisServer  # noqa: E402
from harness.server import CLIENT_KEY, SERVER_KEY, TARGET  # noqa: E402
from harness.wait import wait_until  # noqa: E402

LOADTEST = os.environ.get("SHARDWIRE_LOADTEST_BIN", str(TARGET / "release" / "shardwire-loadtest"))
TOPIC = b"{bare}"


def command(*parts):
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Bare(threading.Thread):
    """Round trips over a topic of the same Redis."""

    def __init__(self, address):
        super().__init__(daemon=True)
        self.publisher, self.subscriber = (socket.create_connection(address) for _ in range(2))
        for one in (self.publisher, self.subscriber):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.subscriber.sendall(command(b"SSUBSCRIBE", TOPIC))
        self.subscriber.recv(4096)
        self.took, self.stopping = [], threading.Event()

    def run(self):
        message = command(b"SPUBLISH", TOPIC, b"x" * 110)
        while not self.stopping.wait(0.005):
            began = time.perf_counter()
            self.publisher.sendall(message)
            self.subscriber.recv(4096)
            self.took.append(time.perf_counter() - began)
            self.publisher.recv(4096)

    def quantile(self, q):
        took = sorted(self.took)
        return took[min(len(took) - 1, int(len(took) * q))] * 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=int, default=10_000, help="publishes per second")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--channels", type=int, default=200)
    parser.add_argument("--cluster", action="store_true", help="three masters with replicas in place of one Redis")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.cluster:
            redis = RedisCluster(pathlib.Path(folder) / "redis").start()
            bare = Bare(redis.master_of(TOPIC.decode()).address)
        else:
            settings = {"appendonly": "no", "appendfsync": "no"}
            redis = RedisServer(pathlib.Path(folder) / "redis", settings=settings).start()
            bare = Bare(redis.address)
        nodes = Nodes(folder, redis, 2)
        try:
            for node in nodes:
                wait_until(lambda n=node: n.metrics().total("shardwire_cluster_nodes") == 2, 10, "the nodes")
            bare.start()
            subprocess.run(
                [
                    LOADTEST, "channels", "--url", nodes[0].url, "--subscribe-url", nodes[1].url,
                    "--key", CLIENT_KEY, "--server-key", SERVER_KEY, "--channels", str(options.channels),
                    "--shared-publishers", "20", "--rate", str(options.rate), "--duration", str(options.seconds),
                ],
                check=True,
            )
            bare.stopping.set()
            bare.join()
            print(
                f"bare Redis, publish to hearing it, {len(bare.took)} round trips meanwhile: "
                f"p50 {bare.quantile(0.5):.3f} ms, p99 {bare.quantile(0.99):.3f} ms"
            )
        finally:
            nodes.kill()
            redis.kill()


if __name__ == "__main__":
    main()
