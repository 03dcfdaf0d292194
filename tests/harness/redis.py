"""Real Redis servers for one test: a single one, or a cluster of three masters with a replica each.

Debian's `redis-server` as child processes on ports of their own, in temporary folders. Only processes started here are ever
signalled. Not a proxy (`proxy.py`) and not shardwire's nodes (`nodes.py`).
"""

import pathlib
import shutil
import socket
import subprocess
import time

import redis

from .wait import wait_until

START_TIMEOUT = 10.0
SLOTS = 16384
# ms without a word from a master until its replica takes over, of the test's cluster.
NODE_TIMEOUT_MS = 1000

ERRORS = (redis.exceptions.RedisError, OSError)


def available():
    return shutil.which("redis-server") is not None


class RedisServer:
    """One `redis-server`. `tls`: a `harness.tls.Authority`; `acl`: lines of an ACL file; `settings`: more of its
    configuration. What is acknowledged is on disk (`appendfsync always`), so that a kill loses nothing."""

    live = []

    def __init__(self, folder, tls=None, acl=None, settings=None, bus=False, user=(None, None)):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tls, self.acl, self.settings, self.bus = tls, acl, dict(settings or {}), bus
        self.port = self.bus_port = self.process = None
        self.certificate = tls and tls.issue("redis")
        self.username, self.password = user  # of the client that `client()` makes

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self):
        """Start, or start again on the port of before."""
        if self.port is None:
            self.port, self.bus_port = free_ports(2)
        file = self.folder / "redis.conf"
        file.write_text("".join(f"{name} {value}\n" for name, value in self.configuration()))
        with open(self.folder / "redis.log", "ab") as log:
            command = ["redis-server", str(file)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder)
        RedisServer.live.append(self)
        wait_until(self.answers, START_TIMEOUT, f"redis-server in {self.folder}", 0.02)
        return self

    def configuration(self):
        yield "bind", "127.0.0.1"
        yield "protected-mode", "no"
        yield "dir", self.folder
        yield "save", '""'
        yield "appendonly", "yes"
        yield "appendfsync", "always"
        if self.tls:
            certificate, key = self.certificate
            yield "port", 0
            yield "tls-port", self.port
            yield "tls-cert-file", certificate
            yield "tls-key-file", key
            yield "tls-ca-cert-file", self.tls.file
            yield "tls-auth-clients", "no"
        else:
            yield "port", self.port
        if self.acl:
            file = self.folder / "users.acl"
            file.write_text("".join(f"{line}\n" for line in self.acl))
            yield "aclfile", file
        if self.bus:
            yield "cluster-enabled", "yes"
            yield "cluster-port", self.bus_port
            yield "cluster-node-timeout", NODE_TIMEOUT_MS
            yield "cluster-replica-validity-factor", 0
            yield "cluster-require-full-coverage", "no"
            yield "repl-diskless-sync-delay", 0
        yield from self.settings.items()

    def answers(self):
        assert self.alive(), f"redis-server ended:\n{(self.folder / 'redis.log').read_text()[-2000:]}"
        try:
            with self.client() as client:
                return client.ping()
        except ERRORS:
            return False

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """SIGKILL, as at a crash."""
        if self.alive():
            self.process.kill()
            self.process.wait(10)
        if self in RedisServer.live:
            RedisServer.live.remove(self)

    def restart(self):
        self.kill()
        return self.start()

    # -- looking at it --------------------------------------------------------------------------------------------

    @property
    def address(self):
        return "127.0.0.1", self.port

    @property
    def url(self):
        return redis_url(self.address, self.tls, self.username, self.password)

    @property
    def urls(self):
        return [self.url]

    def client(self):
        options = {"ssl_ca_certs": str(self.tls.file)} if self.tls else {}
        return redis.Redis.from_url(self.url, socket_timeout=5, decode_responses=True, **options)

    def calls(self, *commands):
        """How often these commands have been called, of all that there are where none is given, scripts' calls among
        them."""
        with self.client() as client:
            stats = client.info("commandstats")
        counts = {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}
        return sum(counts.get(command, 0) for command in commands) if commands else counts


class RedisCluster:
    """Three masters and a replica of each."""

    def __init__(self, folder, masters=3):
        folder = pathlib.Path(folder)
        self.servers = [RedisServer(folder / f"redis-{number}", bus=True) for number in range(2 * masters)]
        self.masters = masters

    def start(self):
        for server in self.servers:
            server.start()
        ids = [self.ask(server, "CLUSTER", "MYID") for server in self.servers]
        first, *others = self.servers
        for number, server in enumerate(self.servers[: self.masters]):
            low, high = SLOTS * number // self.masters, SLOTS * (number + 1) // self.masters - 1
            self.ask(server, "CLUSTER", "ADDSLOTSRANGE", low, high)
            self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for server in others:
            self.ask(server, "CLUSTER", "MEET", "127.0.0.1", first.port, first.bus_port)
        for number, server in enumerate(self.servers[self.masters :]):
            wait_until(lambda s=server, n=number: ids[n] in self.nodes(s), START_TIMEOUT, "a replica to know its master", 0.02)
            self.ask(server, "CLUSTER", "REPLICATE", ids[number])
        for server in self.servers:
            wait_until(lambda s=server: self.is_whole(s), START_TIMEOUT, "the cluster to be whole", 0.02)
        for server in self.servers[self.masters :]:
            wait_until(lambda s=server: self.follows(s), START_TIMEOUT, "a replica to follow", 0.02)
        return self

    @staticmethod
    def ask(server, *command):
        with server.client() as client:
            return client.execute_command(*command)

    def nodes(self, server):
        """What a server knows of the others: flags by id."""
        lines = self.ask(server, "CLUSTER", "NODES").splitlines()
        return {line.split()[0]: line.split()[2] for line in lines}

    def is_whole(self, server):
        info = dict(line.split(":", 1) for line in self.ask(server, "CLUSTER", "INFO").splitlines())
        return (
            info["cluster_state"] == "ok" and int(info["cluster_slots_ok"]) == SLOTS
            and int(info["cluster_known_nodes"]) == len(self.servers)
            and not any("handshake" in flags for flags in self.nodes(server).values())
        )

    @staticmethod
    def follows(server):
        with server.client() as client:
            replication = client.info("replication")
        return replication["role"] == "slave" and replication["master_link_status"] == "up"

    @property
    def urls(self):
        """The seeds that a node is given."""
        return [server.url for server in self.servers[: self.masters]]

    def client(self):
        host, port = next(server.address for server in self.servers if server.alive())
        return redis.RedisCluster(host=host, port=port, decode_responses=True)

    def master_of(self, key):
        """The living server that has the slot of `key`."""
        for server in self.servers:
            if not server.alive():
                continue
            slot = self.ask(server, "CLUSTER", "KEYSLOT", key)
            with server.client() as client:
                if client.info("replication")["role"] != "master":
                    continue
            for low, high, (_, port, *_), *_ in self.ask(server, "CLUSTER", "SLOTS"):
                if low <= slot <= high and port == server.port:
                    return server
        return None

    def replica_of(self, master):
        """A living replica of a master."""
        for server in self.servers:
            if server.alive():
                with server.client() as client:
                    replication = client.info("replication")
                if replication.get("master_port") == master.port:
                    return server
        return None

    def move_slot(self, key, lasts=0):
        """Moves the slot of `key`, with all that is in it, to another master. `lasts`: the seconds between its first key's
        leaving and the end, as where there are many."""
        source = self.master_of(key)
        slot = self.ask(source, "CLUSTER", "KEYSLOT", key)
        target = next(s for s in self.servers[: self.masters] if s is not source and s.alive())
        ids = [self.ask(server, "CLUSTER", "MYID") for server in (source, target)]
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
        many = 1 if lasts else 100
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, many):
            self.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            time.sleep(lasts / 2)
            lasts /= 2
        time.sleep(lasts)
        for server in (target, source, *self.servers[: self.masters]):
            if server.alive():
                self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])

    def wait_failover(self, key, before, timeout=15):
        """Until another than `before` has the slot of `key`."""
        return wait_until(
            lambda: (server := self.master_of(key)) is not None and server is not before and server,
            timeout, "a replica to take over", 0.05,
        )

    def calls(self, *commands):
        return sum(server.calls(*commands) for server in self.servers if server.alive())

    def kill(self):
        for server in self.servers:
            server.kill()


def redis_url(address, tls=None, username=None, password=None):
    user = f"{username or ''}:{password}@" if password else ""
    return "%s://%s%s:%d" % ("rediss" if tls else "redis", user, *address)


def free_ports(count):
    """Ports that were free a moment ago: redis-server takes none from the kernel."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
