"""The admin API, call by call: who may, what it answers, what it does."""

import json
import socket

import pytest

from harness.admin import admin, admin_call, token
from harness.client import Client
from harness.rawws import RawSocket
from harness.rest import api, expect_refusal
from harness.server import CLIENT_KEY
from harness.wait import wait_until

APP = "/apps/dev"


# -- who may -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/apps", "/admin/nothing", "/admin/apps/dev/channels"])
def test_nothing_below_admin_is_answered_without_the_token(server, path):
    answer = admin_call(server, "GET", path, key="")
    expect_refusal(answer, 401, 40100)
    assert answer.headers["www-authenticate"].startswith("Bearer")
    expect_refusal(admin_call(server, "GET", path, key="at_wrong_0123456789"), 401, 40102)


def test_keys_are_no_admin_tokens(server, server_key):
    expect_refusal(admin_call(server, "GET", "/admin/apps", key=server_key), 401, 40102)


def test_probes_are_open_and_the_public_port_has_no_admin_api(server):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert admin_call(server, "GET", path, key="").status == 200
    with RawSocket(server.address) as public:
        public.send(f"GET /admin/apps HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token(server)}\r\n\r\n".encode())
        assert public.read_answer().status == 404


def test_guessing_at_the_token_is_limited_for_its_address(new_server):
    server = new_server(shards=1)
    for _ in range(20):
        expect_refusal(admin_call(server, "GET", "/admin/apps", key="at_guess_0123456789"), 401, 40102)
    answer = admin_call(server, "GET", "/admin/apps", key="at_guess_0123456789")
    expect_refusal(answer, 429, 42900)
    assert int(answer.headers["retry-after"]) >= 1
    assert admin_call(server, "GET", "/healthz", key="").status == 200
    wait_until(lambda: admin_call(server, "GET", "/admin/apps").status == 200, 30, "the address to be heard again", 0.2)


def test_connections_of_the_port_are_bounded(new_server):
    server = new_server(shards=1)
    held = []
    try:
        for _ in range(256):
            held.append(socket.create_connection(server.admin))
        held[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert held[-1].recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection(server.admin) as one_more:
            one_more.settimeout(10)
            assert one_more.recv(1) == b""
    finally:
        for one in held:
            one.close()
    wait_until(lambda: admin(server, "GET", "/apps")["apps"], what="places to be free again")


@pytest.mark.parametrize(
    "method,path,allow",
    [
        ("PUT", "/admin/apps", "GET, HEAD, POST"),
        ("DELETE", "/admin/nodes", "GET, HEAD"),
        ("GET", "/admin/apps/dev/tokens", "POST"),
        ("PATCH", "/admin/drain", "GET, HEAD, POST"),
        ("POST", "/admin/connections/0-0-0", "GET, HEAD, DELETE"),
    ],
)
def test_methods_that_a_path_does_not_have(server, method, path, allow):
    answer = admin_call(server, method, path)
    assert answer.status == 405 and answer.headers["allow"] == allow


@pytest.mark.parametrize(
    "method,path",
    [
        ("GET", "/admin/nothing"), ("GET", "/admin/apps/none"), ("PATCH", "/admin/apps/none"), ("DELETE", "/admin/apps/none"),
        ("GET", "/admin/apps/none/keys"), ("GET", "/admin/apps/dev/keys/none"), ("DELETE", "/admin/apps/dev/keys/none"),
        ("POST", "/admin/apps/dev/keys/none/rotate"), ("GET", "/admin/apps/dev/signing-keys/none"),
        ("DELETE", "/admin/apps/dev/signing-keys/none"), ("DELETE", "/admin/apps/dev/revocations/none"),
        ("POST", "/admin/apps/none/tokens"), ("GET", "/admin/apps/none/channels"), ("GET", "/admin/connections/0-4000000-1"),
        ("DELETE", "/admin/connections/nobody"), ("GET", "/admin/connections/60000-0-0"),
    ],
)
def test_what_is_not_there(server, method, path):
    body = {} if method in ("POST", "PATCH") else None
    expect_refusal(admin_call(server, method, path, body), 404, 40400)


@pytest.mark.parametrize("body,code", [("", 40001), ("[]", 40001), ("{", 40001), ('{"kind":"other"}', 40003), ('{"kind":"client","more":1}', 40003), ('{"kind":"client","expiresMs":"soon"}', 40003)])
def test_wrong_bodies(server, body, code):
    expect_refusal(admin_call(server, "POST", "/admin/apps/dev/keys", body), 400, code)


def test_a_body_above_the_limit(server):
    expect_refusal(admin_call(server, "POST", "/admin/apps", json.dumps({"name": "x" * 300_000})), 413, 41300)


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=1.5"])
def test_wrong_limits(server, query):
    for path in ("/admin/apps", "/admin/connections", "/admin/apps/dev/keys"):
        expect_refusal(admin_call(server, "GET", f"{path}?{query}"), 400, 40003)


def test_ids_that_are_taken(server):
    admin(server, "POST", "/apps", {"id": "taken"}, status=201)
    expect_refusal(admin_call(server, "POST", "/admin/apps", {"id": "taken"}), 409, 40003)
    admin(server, "POST", f"{APP}/signing-keys", {"algorithm": "HS256", "kid": "taken"}, status=201)
    body = {"algorithm": "HS256", "kid": "taken"}
    expect_refusal(admin_call(server, "POST", "/admin/apps/taken/signing-keys", body), 409, 40003)


# -- lists -------------------------------------------------------------------------------------------------------------------


def test_lists_are_paged_and_lose_nothing(server):
    made = {admin(server, "POST", "/apps", {"id": f"page-{n}"}, status=201)["id"] for n in range(7)}
    found, cursor = [], ""
    while cursor is not None:
        page = admin(server, "GET", f"/apps?limit=3{cursor}")
        assert len(page["apps"]) <= 3
        found += [app["id"] for app in page["apps"]]
        cursor = f"&cursor={page['cursor']}" if "cursor" in page else None
    assert found == sorted(set(found)) and made < set(found)


# -- connections ---------------------------------------------------------------------------------------------------------------


def test_a_connection_is_found_by_the_id_of_its_hello_and_ended(new_server):
    server = new_server(config="[websocket]\nself_asserted_ids = true\n")
    other = Client(server, target=f"/?key={CLIENT_KEY}&clientId=bob")
    mine = [Client(server, target=f"/?key={CLIENT_KEY}&clientId=ann").subscribe("t:a", "t:b") for _ in range(5)]
    ids = [client.hello["id"] for client in mine]

    listed = admin(server, "GET", "/connections?app=dev&clientId=ann")["connections"]
    assert sorted(c["id"] for c in listed) == sorted(ids)
    assert all(c["clientId"] == "ann" and c["app"] == "dev" and c["subscriptions"] == 2 for c in listed)
    assert all(c["remote"] == "127.0.0.1" and c["connectedMs"] > 0 for c in listed)
    assert len(admin(server, "GET", "/connections")["connections"]) == 6
    assert admin(server, "GET", "/connections?app=none")["connections"] == []

    found, cursor = [], ""
    while cursor is not None:
        page = admin(server, "GET", f"/connections?limit=2{cursor}")
        found += [c["id"] for c in page["connections"]]
        cursor = f"&cursor={page['cursor']}" if "cursor" in page else None
    assert sorted(found) == sorted(ids + [other.hello["id"]])

    one = admin(server, "GET", f"/connections/{ids[0]}")
    assert sorted(one["channels"]) == ["t:a", "t:b"]
    assert admin(server, "DELETE", f"/connections/{ids[0]}") == {"disconnected": 1}
    mine[0].expect_close(4010)
    wait_until(lambda: admin_call(server, "GET", f"/admin/connections/{ids[0]}").status == 404, what="it to be gone")
    expect_refusal(admin_call(server, "DELETE", f"/admin/connections/{ids[0]}"), 404, 40400)
    for client in mine[1:] + [other]:
        client.nothing_waiting()


# -- what the public API has -----------------------------------------------------------------------------------------------------


def test_the_app_scoped_api_is_served_with_every_right(server, channel):
    client = Client(server).subscribe(channel)
    sent = admin(server, "POST", f"{APP}/channels/{channel}/messages", {"data": {"n": 1}, "clientId": "ops"}, status=200)
    assert client.expect(action="message", channel=channel)["data"] == {"n": 1}
    assert admin(server, "GET", f"{APP}/channels/{channel}")["lastSequence"] == sent["messages"][0]["sequence"] == 1
    assert channel in [c["channel"] for c in admin(server, "GET", f"{APP}/channels?prefix={channel}")["channels"]]
    history = admin(server, "GET", f"{APP}/channels/{channel}/messages")["messages"]
    assert [m["publisherId"] for m in history] == ["ops"]
    admin(server, "POST", f"{APP}/publish", {"channels": [channel], "data": 2}, status=200)
    assert client.expect(action="message", channel=channel)["data"] == 2
    who = client.client_id
    assert admin(server, "POST", f"{APP}/clients/{who}/unsubscribe", {"channel": channel}) == {"unsubscribed": 1}
    assert admin(server, "DELETE", f"{APP}/channels/{channel}/messages") == {"deleted": 2}
    assert admin(server, "POST", f"{APP}/clients/{who}/disconnect", {"code": 4321}) == {"disconnected": 1}


def test_apps_do_not_meet(server, channel):
    admin(server, "POST", "/apps", {"id": "apart"}, status=201)
    admin(server, "POST", f"{APP}/channels/{channel}/messages", {"data": 1}, status=200)
    assert admin(server, "GET", f"/apps/apart/channels/{channel}/messages")["messages"] == []


def test_a_minted_token_connects(server, channel):
    made = admin(server, "POST", f"{APP}/tokens", {"clientId": "ann", "capabilities": {channel: ["subscribe"]}, "ttlS": 60}, status=201)
    client = Client(server, target=f"/?token={made['token']}").subscribe(channel)
    assert client.client_id == "ann"
    client.send_json({"action": "publish", "channel": channel, "data": 1, "id": "x"})
    client.expect_error(40300)


# -- the process ------------------------------------------------------------------------------------------------------------------


def test_nodes_say_what_the_shards_do(new_server, channel):
    server = new_server(shards=2)
    clients = [Client(server).subscribe(channel) for _ in range(6)]
    for n in range(20):
        api(server, "POST", f"/api/channels/{channel}/messages", {"data": n})
    for client in clients:
        for n in range(20):
            assert client.expect(action="message")["data"] == n

    def settled():
        node = admin(server, "GET", "/nodes")["nodes"][0]
        return sum(s["deliveries"] for s in node["shards"]) >= 120 and node

    node = wait_until(settled, what="the deliveries to be counted")
    assert node["pid"] == server.process.pid and node["stage"] == "serving"
    assert node["listen"] == "%s:%d" % server.address and node["adminListen"] == "%s:%d" % server.admin
    shards = node["shards"]
    assert [s["shard"] for s in shards] == [0, 1] and all(s["up"] for s in shards)
    total = lambda field: sum(s[field] for s in shards)
    assert (total("connections"), total("subscriptions"), total("published"), total("deliveries")) == (6, 6, 20, 120)
    assert all(0 < s["cpuSeconds"] < 60 for s in shards)
    assert total("cpuSeconds") <= node["cpuSeconds"] + 0.1
    # Of each message one per shard with subscribers.
    assert 20 <= sum(s["delivery"]["count"] for s in shards) <= 40
    assert len(node["latencyBoundsUs"]) + 1 == len(shards[0]["delivery"]["buckets"])
    cpu = {l["shard"]: v for l, v in server.metrics().series("shardwire_shard_cpu_seconds_total")}
    assert sorted(cpu) == ["0", "1"] and all(v > 0 for v in cpu.values())


def test_config_is_the_one_in_force(new_server):
    server = new_server(config="[limits]\npublish_bytes_max = 1000\n")
    assert admin(server, "GET", "/config")["limits"]["publish_bytes_max"] == 1000
    (server.folder / "shardwire.toml").write_text("[limits]\npublish_bytes_max = 2000\n")
    server.signal(1)
    wait_until(lambda: admin(server, "GET", "/config")["limits"]["publish_bytes_max"] == 2000, what="the reload")
    assert token(server) not in json.dumps(admin(server, "GET", "/config"))


def test_drain_ends_the_process_as_sigterm_does(new_server):
    server = new_server(config="[drain]\nrate = 10\ndeadline_s = 20\n")
    clients = [Client(server) for _ in range(12)]
    assert admin(server, "GET", "/drain") == {"draining": False, "connections": 12, "rate": 10, "deadlineS": 20}
    began = admin(server, "POST", "/drain", status=202)
    assert began["draining"]
    # Asked again it is the same drain, and is not cut short.
    assert admin(server, "POST", "/drain", status=202)["draining"]
    wait_until(lambda: not 200 <= server.admin_get("/readyz")[0] < 300, what="it to be no longer ready")
    assert 0 < admin(server, "GET", "/drain")["connections"] <= 12
    for client in clients:
        client.expect_bare_end()
    assert server.wait() == 0
    assert "second signal" not in server.log()
