"""What a key may do: capability maps (contract D7), disabled keys, keys that change while the server runs."""

import signal

import pytest

from harness.client import Client
from harness.keys import add_key
from harness.rawws import Refused
from harness.rest import api, call, expect_refusal
from harness.server import SERVER_KEY, Server
from harness.wait import wait_until

RIGHTS = {
    "sub:*": ["subscribe"],
    "pub:*": ["publish"],
    "mid:*:end": ["subscribe", "publish"],
    "exact": ["*"],
    "union:*": ["subscribe"],
    "union:both": ["publish"],
    "none:*": [],
}
KEY = "ck_e2e_limited_0123456789"
SERVER_LIMITED = "sk_e2e_limited_0123456789"
DISABLED = "ck_e2e_disabled_012345678"


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    """A server with a client key of `RIGHTS`, a server key that publishes to `orders:*` only, and a disabled key."""
    server = Server(tmp_path_factory.mktemp("rights")).start()
    assert server.stop() == 0
    add_key(server, KEY, RIGHTS)
    add_key(server, SERVER_LIMITED, {"orders:*": ["publish"]}, kind="server")
    add_key(server, DISABLED, {"*": ["*"]}, disabled=True)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(limited):
    with Client(limited, key=KEY) as one:
        yield one
        one.nothing_waiting()


@pytest.mark.parametrize("channel", ["sub:a", "sub:a:b:c", "sub:", "mid:x:end", "exact", "union:both", "union:other"])
def test_subscribe_allowed(client, channel):
    client.subscribe(channel)


@pytest.mark.parametrize(
    "channel", ["sub", "subs:a", "other", "pub:a", "mid:x", "mid:x:y:end", "mid:end", "mid:x:end:y", "exact:a", "exac", "none:a", "Sub:a"]
)
def test_subscribe_refused(client, channel):
    client.send_json({"action": "subscribe", "channel": channel})
    client.expect_error(40300, channel=channel)


@pytest.mark.parametrize("channel", ["pub:a", "pub:a:b", "mid:x:end", "exact", "union:both"])
def test_publish_allowed(client, channel):
    client.publish(channel, 1)


@pytest.mark.parametrize("channel", ["pub", "sub:a", "other", "union:other", "none:a"])
def test_publish_refused_and_not_delivered(limited, client, channel):
    watcher = Client(limited, key=SERVER_KEY).subscribe(channel)
    client.send_json({"action": "publish", "channel": channel, "data": "forbidden", "id": "no"})
    client.expect_error(40300, channel=channel, id="no")
    watcher.publish(channel, "sentinel")
    assert watcher.expect(action="message")["data"] == "sentinel"
    watcher.close()


def test_refused_publish_does_not_use_up_its_id(limited, client):
    """The checks come in order: shape, name, right, rate, size, dedup (D15)."""
    client.send_json({"action": "publish", "channel": "sub:dedup", "data": 1, "id": "reused"})
    client.expect_error(40300, id="reused")
    watcher = Client(limited, key=SERVER_KEY).subscribe("sub:dedup")
    watcher.publish("sub:dedup", "first", id="reused")
    assert watcher.expect(action="message")["data"] == "first"
    watcher.close()


def test_server_key_with_less_than_all_rights(limited):
    api(limited, "POST", "/api/channels/orders:1/messages", {"data": 1}, key=SERVER_LIMITED)
    answer = call(limited, "POST", "/api/channels/other/messages", {"data": 1}, key=SERVER_LIMITED)
    expect_refusal(answer, 403, 40300)
    batch = {"batch": [{"channel": "orders:2", "data": 1}, {"channel": "other", "data": 2}]}
    messages = api(limited, "POST", "/api/publish", batch, key=SERVER_LIMITED)["messages"]
    assert [m.get("code") for m in messages] == [None, 40300]


def test_disabled_key_is_refused_by_status(limited):
    with pytest.raises(Refused) as refusal:
        Client(limited, key=DISABLED)
    expect_refusal(refusal.value.answer, 403, 40301)


def test_keys_are_read_again_on_sighup(new_server):
    server = new_server(shards=2)
    fresh = "ck_e2e_fresh_01234567890"
    stays = Client(server)
    with pytest.raises(Refused):
        Client(server, key=fresh)
    add_key(server, fresh, {"*": ["*"]})
    server.signal(signal.SIGHUP)

    def accepted():
        try:
            Client(server, key=fresh).close()
            return True
        except Refused:
            return False

    wait_until(accepted, what="the new key to be accepted")
    add_key(server, fresh, {"*": ["*"]}, disabled=True)
    server.signal(signal.SIGHUP)
    wait_until(lambda: not accepted(), what="the disabled key to be refused")
    stays.nothing_waiting()
