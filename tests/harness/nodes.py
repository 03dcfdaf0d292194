"""Several shardwire processes on one Redis: a cluster of nodes, each with a data folder of its own."""

import json
import pathlib

from .server import Server


class Nodes:
    """`count` nodes on `redis` (a `RedisServer` or `RedisCluster`). `urls`: by node, where one is to reach Redis by
    another way (a proxy). `config`: more lines of `shardwire.toml`; `broker`: more of its `[broker.redis]`."""

    def __init__(self, folder, redis, count, urls=None, config="", broker="", shards=1, start=True):
        self.redis = redis
        self.servers = [
            Server(
                pathlib.Path(folder) / f"node-{number}", shards=shards,
                config=f"{config}\n[broker.redis]\nurls = {json.dumps((urls or {}).get(number, redis.urls))}\n{broker}",
            )
            for number in range(count)
        ]
        if start:
            self.start()

    def start(self):
        for server in self.servers:
            server.spawn()
        for server in self.servers:
            server.wait_ready()
        return self

    def __iter__(self):
        return iter(self.servers)

    def __getitem__(self, number):
        return self.servers[number]

    def __len__(self):
        return len(self.servers)

    def kill(self):
        for server in self.servers:
            server.kill()
