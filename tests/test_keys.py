"""API keys and apps that change while the server runs: made, disabled, rotated, removed; apps apart from each other."""

import struct
import time

import pytest

from harness.admin import admin
from harness.client import Client
from harness.fan import Fan
from harness.rawws import Refused
from harness.rest import call, expect_refusal
from harness.server import CLIENT_KEY, SERVER_KEY
from harness.wait import wait_until

CONNECTIONS = 1000  # on the key that is rotated
NOTICED_S = 1.5  # a change reaches every shard within a second; and some for a busy machine


def refused(server, **how):
    with pytest.raises(Refused) as refusal:
        Client(server, **how)
    return refusal.value.answer


def make_key(server, app="dev", kind="client", **fields):
    return admin(server, "POST", f"/apps/{app}/keys", {"kind": kind, **fields})


def test_a_key_is_shown_once_and_listed_by_its_first_characters(server):
    made = make_key(server, name="web")
    Client(server, key=made["key"]).close()
    listed = admin(server, "GET", "/apps/dev/keys?limit=1000")["keys"]
    mine = next(k for k in listed if k["id"] == made["id"])
    assert mine["prefix"] == made["key"][:6] and mine["name"] == "web" and mine["createdMs"] > 0
    assert made["key"] not in str(listed) and "hash" not in mine
    for file in server.data_dir.iterdir():
        if file.is_file():
            assert made["key"].encode() not in file.read_bytes(), file
    assert made["key"] not in server.log()


def test_disabled_and_removed_keys_end_their_connections_on_every_shard(server):
    for how in ("disable", "delete"):
        made = make_key(server)
        path = f"/apps/dev/keys/{made['id']}"
        clients = [Client(server, key=made["key"]).subscribe("t:keys") for _ in range(8)]
        stays = Client(server)
        began = time.monotonic()
        if how == "disable":
            admin(server, "PATCH", path, {"disabled": True})
        else:
            admin(server, "DELETE", path)
        for client in clients:
            client.expect_close(4003, timeout=NOTICED_S)
        assert time.monotonic() - began < NOTICED_S
        status, code = (403, 40301) if how == "disable" else (401, 40101)
        expect_refusal(refused(server, key=made["key"]), status, code)
        stays.nothing_waiting()
        stays.close()


def test_fewer_rights_take_channels_from_those_who_are_in_them(server):
    made = make_key(server)
    with Client(server, key=made["key"]) as client:
        client.subscribe("t:kept", "t:lost")
        admin(server, "PATCH", f"/apps/dev/keys/{made['id']}", {"capabilities": {"t:kept": ["subscribe"]}})
        client.expect(action="unsubscribed", channel="t:lost", timeout=NOTICED_S)
        client.expect_error(40300, channel="t:lost")
        client.send_json({"action": "publish", "channel": "t:kept", "data": 1, "id": "x"})
        client.expect_error(40300, channel="t:kept", id="x")
        with Client(server) as other:
            other.publish("t:kept", "still here")
        assert client.expect(action="message", channel="t:kept")["data"] == "still here"
        client.nothing_waiting()


def test_last_use_is_noted(server):
    made = make_key(server)
    path = f"/apps/dev/keys/{made['id']}"
    assert "lastUsedMs" not in admin(server, "GET", path)
    before = time.time() * 1000 - 1000
    Client(server, key=made["key"]).close()
    used = wait_until(lambda: admin(server, "GET", path).get("lastUsedMs"), what="the use to be noted")
    assert before <= used <= time.time() * 1000 + 1000


def test_rotation_under_load(new_server):
    server = new_server(shards=2)
    old = make_key(server)
    crowd = [Client(server, key=old["key"]).subscribe("t:load") for _ in range(CONNECTIONS)]
    bystander = Client(server).subscribe("t:load")
    publisher = Client(server, key=SERVER_KEY)
    rotated_at = time.monotonic()
    new = admin(server, "POST", f"/apps/dev/keys/{old['id']}/rotate", {"overlapSeconds": 3})
    assert new["key"] != old["key"]
    on_new = [Client(server, key=new["key"]).subscribe("t:load") for _ in range(20)]
    crowd.append(Client(server, key=old["key"]).subscribe("t:load"))
    fan = Fan(crowd)
    ending = struct.pack("!H", 4003)

    def ended():
        return sum(ending in stream.received[-64:] for stream in fan.streams)

    sent = 0
    while time.monotonic() < rotated_at + 10 and ended() < len(crowd):
        publisher.publish("t:load", sent)
        sent += 1
        fan.turn(0.01)
        assert ended() == 0 or time.monotonic() > rotated_at + 2.8, "ended before the overlap was over"
    assert ended() == len(crowd)
    assert time.monotonic() < rotated_at + 3 + NOTICED_S + 1
    fan.close()
    expect_refusal(refused(server, key=old["key"]), 403, 40301)
    publisher.publish("t:load", sent)
    for client in [bystander, *on_new]:
        got = [client.expect(action="message")["data"] for _ in range(sent + 1)]
        assert got == list(range(sent + 1)), "somebody else has noticed"
        client.nothing_waiting()


def test_wrong_keys_are_limited_by_address_and_good_ones_are_not_when_it_is_over(new_server):
    limit = "[limits]\nfailed_auth_per_address_rate = { per_window = 5, window_ms = 1000, burst = 5 }\n"
    server = new_server(shards=1, config=limit)
    stays = Client(server)
    answers = [refused(server, key=f"ck_wrong_key_{n:08}") for n in range(20)]
    statuses = [answer.status for answer in answers]
    assert statuses[:4] == [401] * 4 and statuses[-1] == 429, statuses
    assert int(answers[-1].headers["retry-after"]) > 0
    expect_refusal(answers[-1], 429, 42900)
    assert call(server, "GET", "/api/channels").status == 429

    def accepted():
        try:
            Client(server).close()
            return True
        except Refused:
            return False

    wait_until(accepted, timeout=5, what="the address to be heard again")
    stays.nothing_waiting()


# -- apps ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shop(server):
    app = admin(server, "POST", "/apps", {"name": "shop"})["id"]
    yield app
    admin(server, "DELETE", f"/apps/{app}")


def test_channels_of_different_apps_never_meet(server, shop):
    key = make_key(server, shop)["key"]
    back_end = make_key(server, shop, kind="server")["key"]
    with Client(server) as ours, Client(server, key=key) as theirs:
        ours.subscribe("t:same")
        theirs.subscribe("t:same")
        theirs.publish("t:same", "theirs")
        call(server, "POST", "/api/channels/t:same/messages", {"data": "by http"}, key=back_end)
        ours.publish("t:same", "ours")
        assert theirs.expect(action="message")["data"] == "theirs"
        assert theirs.expect(action="message")["data"] == "by http"
        assert ours.expect(action="message")["data"] == "ours"
        assert [m["data"] for m in theirs.history("t:same")["messages"]] == ["by http", "theirs"]
        ours.nothing_waiting(), theirs.nothing_waiting()
    path = f"/api/admin/apps/{shop}/channels"
    expect_refusal(call(server, "GET", path, key=SERVER_KEY), 403, 40300)


def test_settings_of_an_app_count_at_once_and_for_it_alone(server, shop):
    key = make_key(server, shop)["key"]

    def change(**settings):
        admin(server, "PATCH", f"/apps/{shop}", {"settings": settings})

    with Client(server, key=key) as stays:
        stays.subscribe("t:quiet")
        stays.publish("t:quiet", 1)
        change(namespaces=[{"pattern": "t:quiet", "history": False}], selfAssertedIds=True,
               allowedOrigins=["https://shop.example"], limits={"channelsPerConnMax": 1, "connectionsMax": 100})
        stays.send_json({"action": "history", "channel": "t:quiet"})
        stays.expect_error(40011, channel="t:quiet")
        stays.send_json({"action": "subscribe", "channel": "t:other"})
        stays.expect_error(42911, channel="t:other")
        with Client(server, target=f"/?key={key}&clientId=ann") as named:
            assert named.client_id == "ann"
        with Client(server, target=f"/?key={CLIENT_KEY}&clientId=ann") as other:
            assert other.client_id != "ann"
        evil = [("Origin", "https://evil.example")]
        expect_refusal(refused(server, key=key, headers=evil), 403, 40300)
        Client(server, headers=evil).close()
        change(allowedOrigins=None, hello=False, limits={"channelsPerConnMax": None})
        with Client(server, key=key, headers=evil, hello=False) as silent:
            silent.nothing_waiting()
        stays.subscribe("t:other")
    assert admin(server, "PATCH", f"/apps/{shop}", {"settings": {"helo": 1}}, status=400)["code"] == 40003


def test_a_channel_in_use_gets_its_apps_changed_settings(server, shop):
    key = make_key(server, shop)["key"]
    with Client(server, key=key) as client:
        client.subscribe("t:live")
        assert "sequence" in client.publish("t:live", 1)
        admin(server, "PATCH", f"/apps/{shop}", {"settings": {"namespaces": [{"pattern": "t:*", "persist": False}]}})
        wait_until(lambda: "sequence" not in client.publish("t:live", 2), timeout=NOTICED_S, what="the setting to count")


def test_a_disabled_app_ends_its_connections_and_refuses(server, shop):
    key = make_key(server, shop)["key"]
    client = Client(server, key=key)
    admin(server, "PATCH", f"/apps/{shop}", {"disabled": True})
    client.expect_close(4003, timeout=NOTICED_S)
    expect_refusal(refused(server, key=key), 403, 40301)
    admin(server, "PATCH", f"/apps/{shop}", {"disabled": False})
    wait_until(lambda: Client(server, key=key), what="the app to be served again").close()


def test_apps_and_keys_survive_kill_9(new_server):
    server = new_server(shards=1)
    app = admin(server, "POST", "/apps", {"settings": {"hello": False}})["id"]
    key = make_key(server, app)["key"]
    server.kill()
    server.start()
    Client(server, key=key, hello=False).nothing_waiting()
    assert admin(server, "GET", f"/apps/{app}")["settings"] == {"hello": False}


@pytest.mark.parametrize("id", ["a/b", "..", "a%2Fb", "", "x" * 65, "a b"])
def test_ids_that_are_paths_are_refused(server, id):
    assert admin(server, "POST", "/apps", {"id": id}, status=400)["code"] == 40003
