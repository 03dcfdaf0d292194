"""Fixtures: one shared two-shard server for most tests, and servers of their own for those that end or tune theirs."""

import resource
import sys
import uuid

import pytest

from harness.client import Client
from harness.nodes import Nodes
from harness.proxy import Proxy
from harness.redis import RedisCluster, RedisServer, available as redis_available
from harness.server import BINARY, CLIENT_KEY, SERVER_KEY, Server
from harness.slow_clock import LIVENESS_MS, SlowClocks

# Fan-out tests hold over a thousand sockets.
SOFT, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (HARD if HARD != resource.RLIM_INFINITY else max(SOFT, 65536), HARD))

LOG_TAIL = 6000  # bytes of a server's log shown with a failed test


def pytest_sessionstart():
    if not BINARY.exists():
        pytest.exit(f"{BINARY} is not built: cargo build --release", returncode=2)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("shared")).start()
    yield server
    assert server.alive(), f"the shared server ended during the tests:\n{server.log()[-LOG_TAIL:]}"
    assert server.stop() == 0


@pytest.fixture
def server(shared_server):
    """The shared server; it must outlive the test."""
    assert shared_server.alive(), "the shared server has ended"
    yield shared_server
    assert shared_server.alive(), f"the server ended during this test:\n{shared_server.log()[-LOG_TAIL:]}"


@pytest.fixture
def new_server(tmp_path):
    """Makes servers of this test's own: `new_server(shards=1, …)`, started; `start=False` leaves that to the test."""
    made = []

    def make(name="server", start=True, **options):
        server = Server(tmp_path / f"{name}-{len(made)}", **options)
        made.append(server)
        return server.start() if start else server

    yield make
    for server in made:
        server.kill()


@pytest.fixture
def connect(server):
    """Opens clients of the shared server and drops them after the test."""
    made = []

    def open_client(**options):
        client = Client(options.pop("server", server), **options)
        made.append(client)
        return client

    yield open_client
    for client in made:
        client.drop()


@pytest.fixture
def channel():
    """A channel name that no other test uses."""
    return f"t:{uuid.uuid4().hex[:12]}"


@pytest.fixture
def client_key():
    return CLIENT_KEY


@pytest.fixture
def server_key():
    return SERVER_KEY


@pytest.fixture
def bystander(server):
    """Another client that is connected during the whole test and must not notice anything of it."""
    client = Client(server)
    client.subscribe("t:bystander")
    yield client
    client.publish("t:bystander", "still here")
    client.expect(action="message", channel="t:bystander")
    client.nothing_waiting()
    client.close()


# -- several nodes on one Redis -------------------------------------------------------------------------------------


@pytest.fixture
def new_redis(tmp_path):
    """Makes Redis servers of this test's own, started: `new_redis()`, `new_redis(cluster=True)`."""
    if not redis_available():
        pytest.skip("redis-server is not installed")
    made = []

    def make(cluster=False, **options):
        folder = tmp_path / f"redis-{len(made)}"
        one = RedisCluster(folder) if cluster else RedisServer(folder, **options)
        made.append(one)
        return one.start()

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def new_nodes(tmp_path):
    """Makes shardwire nodes on a Redis: `new_nodes(redis, 3, …)`, ready."""
    made = []

    def make(redis, count, **options):
        nodes = Nodes(tmp_path / f"nodes-{len(made)}", redis, count, start=False, **options)
        made.append(nodes)
        return nodes.start()

    yield make
    for nodes in made:
        nodes.kill()


@pytest.fixture
def new_proxy():
    made = []

    def make(*args, **options):
        made.append(Proxy(*args, **options))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


# -- tests that wait for the server's own deadlines: their clocks start first, they are looked at last ------------------


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow_clock") is not None)


@pytest.fixture(scope="session", autouse=True)
def slow_clocks(request, tmp_path_factory):
    if not any(item.get_closest_marker("slow_clock") for item in request.session.items):
        yield None
        return
    folder = tmp_path_factory.mktemp("clocks")
    (folder / "shardwire.toml").write_text(f"[limits]\nliveness_ms = {LIVENESS_MS}\n")
    clocks = SlowClocks(Server(folder).start())
    yield clocks
    clocks.end()


# -- failure reports ------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        for server in Server.live:
            text = (server.out() + server.log())[-LOG_TAIL:]
            report.sections.append((f"output of the server in {server.folder.name}", text))
    return report


def pytest_sessionfinish():
    for server in list(Server.live):
        print(f"ending a server left running: {server.folder}", file=sys.stderr)
        server.kill()
    for server in list(RedisServer.live):
        server.kill()
