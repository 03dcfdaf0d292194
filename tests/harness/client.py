"""The wSocket protocol over `RawWs`: subscribe, publish, and waiting for one frame among others."""

import collections
import json
import time
import uuid

from .rawws import RawWs
from .server import CLIENT_KEY
from .wait import wait_until


class Client(RawWs):
    """A connected client that has read its hello frame."""

    def __init__(self, server, key=CLIENT_KEY, target=None, hello=True, **options):
        address = server.address if hasattr(server, "address") else server
        super().__init__(address, target if target is not None else f"/?key={key}", **options)
        self.backlog = collections.deque()
        self.hello = self.expect(action="connected") if hello else None

    @property
    def client_id(self):
        return self.hello["data"]["clientId"]

    # -- frames ---------------------------------------------------------------------------------------------------

    def send_json(self, value):
        self.send_text(value if isinstance(value, str) else json.dumps(value))

    def recv_json(self, timeout=None):
        """The next text frame, from the backlog first."""
        if self.backlog:
            return self.backlog.popleft()
        return json.loads(self.recv_text(timeout))

    def expect(self, timeout=None, **fields):
        """The next frame that has `fields`; others are kept for later."""
        for position, frame in enumerate(self.backlog):
            if matches(frame, fields):
                del self.backlog[position]
                return frame
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            try:
                frame = json.loads(self.recv_text(max(0.0, deadline - time.monotonic())))
            except TimeoutError:
                raise AssertionError(f"no frame with {fields}; have {list(self.backlog)[-10:]}") from None
            if matches(frame, fields):
                return frame
            self.backlog.append(frame)

    def next_is(self, **fields):
        """The very next frame must have `fields`."""
        frame = self.recv_json()
        assert matches(frame, fields), f"{frame} where {fields} was expected"
        return frame

    def nothing_waiting(self):
        """All that the server has sent to this connection so far is read: a ping's pong comes next."""
        self.send_json({"action": "ping"})
        frame = self.recv_json()
        assert frame["action"] == "pong", f"unexpected {frame}"

    # -- actions --------------------------------------------------------------------------------------------------

    def subscribe(self, *channels):
        for channel in channels:
            self.send_json({"action": "subscribe", "channel": channel})
        for channel in channels:
            self.expect(action="subscribed", channel=channel)
        return self

    def unsubscribe(self, channel):
        self.send_json({"action": "unsubscribe", "channel": channel})
        return self.expect(action="unsubscribed", channel=channel)

    def publish(self, channel, data, id=None, **fields):
        """Publish and return the ack."""
        id = id or str(uuid.uuid4())
        self.send_json({"action": "publish", "channel": channel, "data": data, "id": id, **fields})
        return self.expect(action="ack", id=id)

    def publish_raw(self, channel, data, id):
        """Publish with `data` as a literal JSON token; no ack is awaited."""
        self.send_text(f'{{"action":"publish","channel":{json.dumps(channel)},"data":{data},"id":{json.dumps(id)}}}')

    def history(self, channel, **fields):
        """Ask for a page and return its frame."""
        self.send_json({"action": "history", "channel": channel, **fields})
        return self.expect(action="history", channel=channel)

    def expect_error(self, code, **fields):
        frame = self.expect(action="error", code=code, **fields)
        assert isinstance(frame["error"], str) and frame["error"].endswith(f" [{code}]"), frame
        return frame


def matches(frame, fields):
    return all(frame.get(k) == v for k, v in fields.items())


def wait_for_shard(server, before):
    """The shard whose gauge rose over `before` (a reading of `server.connections()`)."""

    def risen():
        return next((s + 1 for s, n in server.connections().items() if n > before.get(s, 0)), None)

    return wait_until(risen, what="a connection gauge to rise") - 1


def open_on_every_shard(server, make, tries=40):
    """`{shard: client}` with one client per shard of `server`; `make()` opens one.

    The server deals connections to its shards in turn; they are opened until each shard has one.
    Nothing else may connect meanwhile.
    """
    found, spare = {}, []
    baseline = sum(server.connections().values())
    for _ in range(tries):
        before = server.connections()
        client = make()
        shard = wait_for_shard(server, before)
        if shard in found:
            spare.append(client)
        else:
            found[shard] = client
        if len(found) == server.shards:
            break
    for client in spare:
        client.drop()
    expected = baseline + len(found)
    # Fewer where a connection of an earlier test was still being counted.
    wait_until(lambda: sum(server.connections().values()) <= expected, what="spare connections to be gone")
    assert len(found) == server.shards, f"only shards {sorted(found)} got one of {tries} connections"
    return found
