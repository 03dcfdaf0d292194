"""The HTTP API of contract D23 that needs no history or presence: publish, channels, disconnect, unsubscribe; CORS D29; errors D10."""

import json
import re
from urllib.parse import quote

import pytest

from harness.rawws import RawSocket
from harness.rest import api, call, expect_refusal, request_bytes
from harness.server import CLIENT_KEY, SERVER_KEY
from harness.wait import wait_until

ULID = "[0-9A-HJKMNP-TV-Z]{26}"


def path_of(channel):
    return f"/api/channels/{quote(channel, safe='')}"


# -- publish --------------------------------------------------------------------------------------------------------------


def test_publish_one(server, connect, channel):
    client = connect().subscribe(channel)
    body = api(server, "POST", f"{path_of(channel)}/messages", {"data": {"text": "hi"}, "id": "h-1"})
    (item,) = body["messages"]
    message = client.expect(action="message")
    assert body.keys() == {"messages"}
    assert item == {"id": "h-1", "channel": channel, "timestamp": message["timestamp"], "sequence": 1}
    assert message == {
        "action": "message", "channel": channel, "data": {"text": "hi"}, "id": "h-1",
        "timestamp": item["timestamp"], "sequence": 1,
    }


def test_publish_array_keeps_its_order(server, connect, channel):
    client = connect().subscribe(channel)
    body = api(server, "POST", f"{path_of(channel)}/messages", [{"data": n} for n in range(100)])
    assert [m["sequence"] for m in body["messages"]] == list(range(1, 101))
    assert all(re.fullmatch(ULID, m["id"]) for m in body["messages"])
    assert [client.expect(action="message")["data"] for _ in range(100)] == list(range(100))


def test_publish_to_several_channels(server, connect, channel):
    channels = [f"{channel}:{n}" for n in range(100)]
    client = connect().subscribe(*channels)
    body = api(server, "POST", "/api/publish", {"channels": channels, "data": "all", "id": "many"})
    assert [m["channel"] for m in body["messages"]] == channels
    assert {m["id"] for m in body["messages"]} == {"many"}
    assert {client.expect(action="message")["channel"] for _ in channels} == set(channels)


def test_publish_batch(server, connect, channel):
    client = connect().subscribe(channel + ":a", channel + ":b")
    batch = [
        {"channel": channel + ":a", "data": 1, "id": "b1"},
        {"channel": channel + ":b", "data": 2, "persist": False},
        {"channel": channel + ":a", "data": 3},
    ]
    messages = api(server, "POST", "/api/publish", {"batch": batch})["messages"]
    assert [m["channel"] for m in messages] == [b["channel"] for b in batch]
    assert messages[0]["id"] == "b1"
    assert [m.get("sequence") for m in messages] == [1, None, 2]
    seen = [client.expect(action="message") for _ in range(3)]
    assert [m["data"] for m in seen if m["channel"].endswith("a")] == [1, 3]
    assert [m["data"] for m in seen if m["channel"].endswith("b")] == [2]


def test_batch_reports_each_failure_by_item(server, channel):
    batch = [
        {"channel": channel, "data": 1},
        {"channel": "bad name", "data": 2},
        {"channel": channel, "data": "x" * 65536},
        {"channel": channel, "data": 4},
    ]
    messages = api(server, "POST", "/api/publish", {"batch": batch})["messages"]
    assert [m.get("code") for m in messages] == [None, 40009, 41300, None]
    assert all(isinstance(messages[i]["error"], str) for i in (1, 2))
    assert [messages[0]["sequence"], messages[3]["sequence"]] == [1, 2]


def test_repeated_id_is_reported_as_duplicate(server, connect, channel):
    client = connect().subscribe(channel)
    first = api(server, "POST", f"{path_of(channel)}/messages", {"data": 1, "id": "same"})["messages"][0]
    again = api(server, "POST", f"{path_of(channel)}/messages", {"data": 2, "id": "same"})["messages"][0]
    assert "duplicate" not in first
    assert again == {**first, "duplicate": True}
    ack = client.publish(channel, 3, id="same")  # the window is one for HTTP and the socket
    assert ack["sequence"] == first["sequence"]
    client.expect(action="message", data=1)
    client.nothing_waiting()


def test_idempotency_key_is_an_alias_of_id(server, channel):
    header = [("Idempotency-Key", "order-17")]
    first = api(server, "POST", f"{path_of(channel)}/messages", {"data": 1}, headers=header)["messages"][0]
    again = api(server, "POST", f"{path_of(channel)}/messages", {"data": 1}, headers=header)["messages"][0]
    assert first["id"] == "order-17" and again["sequence"] == first["sequence"] and again["duplicate"] is True


def test_ephemeral_publish_has_no_sequence(server, channel):
    item = api(server, "POST", f"{path_of(channel)}/messages", {"data": 1, "persist": False})["messages"][0]
    assert "sequence" not in item


@pytest.mark.parametrize("name", ["a/b", "a?b#c", "a%2Fb", "a:b:c", "~!@$^()_+-[]{}|;',.<>", "100%"])
def test_channel_names_are_url_encoded(server, connect, name):
    client = connect().subscribe(name)
    api(server, "POST", f"{path_of(name)}/messages", {"data": 1})
    client.expect(action="message", channel=name)


def test_repeated_slashes_collapse(server, channel):
    """Several SDKs append `/api/…` to a base URL that ends in a slash."""
    api(server, "POST", f"//api/channels/{quote(channel)}/messages", {"data": 1})
    api(server, "GET", "//api//channels")


# -- who may ----------------------------------------------------------------------------------------------------------------

CALLS = [
    ("POST", "/api/channels/c/messages", {"data": 1}),
    ("POST", "/api/publish", {"channels": ["c"], "data": 1}),
    ("GET", "/api/channels", None),
    ("GET", "/api/channels/c", None),
    ("POST", "/api/clients/x/disconnect", {}),
    ("POST", "/api/clients/x/unsubscribe", {"channel": "c"}),
]


@pytest.mark.parametrize("method,path,body", CALLS)
def test_credentials_are_needed(server, method, path, body):
    expect_refusal(call(server, method, path, body, key=None), 401, 40100)
    expect_refusal(call(server, method, path, body, key="sk_" + "y" * 30), 401, 40101)


@pytest.mark.parametrize("method,path,body", CALLS)
def test_client_keys_are_refused(server, method, path, body):
    """A client key is public: what it may do over HTTP would be anybody's (D4)."""
    expect_refusal(call(server, method, path, body, key=CLIENT_KEY), 403, 40300)


def test_other_authorization_schemes_are_not_credentials(server):
    answer = call(server, "GET", "/api/channels", key=None, headers=[("Authorization", "Basic YTpi")])
    assert answer.status == 401
    assert answer.json()["code"] in (40100, 40101, 40102)


# -- malformed calls ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", ["", "nonsense", "{", '{"data":1}x', "\xff"])
def test_body_that_is_not_json(server, channel, body):
    expect_refusal(call(server, "POST", f"{path_of(channel)}/messages", body.encode("latin-1")), 400, 40001)


@pytest.mark.parametrize(
    "path,body,code",
    [
        ("/api/channels/c/messages", "1", (40001, 40003)),
        ("/api/channels/c/messages", "[]", (40000, 40003)),
        ("/api/channels/c/messages", [1], (40001, 40003)),
        ("/api/channels/c/messages", {"data": 1, "persist": "yes"}, (40003,)),
        ("/api/channels/c/messages", [{"data": 1}] * 101, (40000, 40003)),
        ("/api/channels/bad%20name/messages", {"data": 1}, (40009,)),
        ("/api/channels/%24sys/messages", {"data": 1}, (40009,)),
        ("/api/publish", {}, (40003,)),
        ("/api/publish", {"data": 1}, (40003,)),
        ("/api/publish", {"channels": "c", "data": 1}, (40003,)),
        ("/api/publish", {"channels": [], "data": 1}, (40000, 40003)),
        ("/api/publish", {"channels": [1], "data": 1}, (40003,)),
        ("/api/publish", {"channels": ["c"] * 101, "data": 1}, (40000, 40003)),
        ("/api/publish", {"batch": {}}, (40003,)),
        ("/api/publish", {"batch": [{"channel": "c", "data": 1}] * 101}, (40000, 40003)),
        ("/api/clients/x/unsubscribe", {}, (40003,)),
        ("/api/clients/x/unsubscribe", {"channel": 7}, (40003,)),
        ("/api/clients/x/disconnect", {"code": "4010"}, (40003,)),
        ("/api/clients/x/disconnect", {"code": 1000}, (40000, 40003)),
    ],
)
def test_malformed_calls(server, path, body, code):
    answer = call(server, "POST", path, body)
    assert answer.json()["code"] in code, answer
    expect_refusal(answer, 400, answer.json()["code"])


def test_data_over_64_kib(server, channel):
    expect_refusal(call(server, "POST", f"{path_of(channel)}/messages", {"data": "x" * 65536}), 413, 41300)


def test_body_beyond_every_limit_is_refused_before_it_is_read(server, channel):
    with RawSocket(server.address) as raw:
        head = f"POST {path_of(channel)}/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SERVER_KEY}\r\n"
        raw.send(head.encode() + b"Content-Length: 1000000000\r\n\r\n")
        answer = raw.read_answer()
    expect_refusal(answer, 413, 41300)


def test_deeply_nested_body(server, channel):
    answer = call(server, "POST", f"{path_of(channel)}/messages", '{"data":' + "[" * 20000 + "]" * 20000 + "}")
    assert answer.status == 400, answer
    assert answer.json()["code"] in (40000, 40001, 40003)


@pytest.mark.parametrize("path", ["/", "/nope", "/api", "/api/nope", "/api/channels/a/b/c", "/api/support/conversations", "/metrics", "/admin/status", "/healthz"])
def test_unknown_paths(server, path):
    """Metrics and administration are on the admin listener only; the support widget is out of scope (D30)."""
    expect_refusal(call(server, "GET", path), 404, 40400)


@pytest.mark.parametrize("method,path", [("PUT", "/api/publish"), ("GET", "/api/publish"), ("DELETE", "/api/channels")])
def test_wrong_method(server, method, path):
    answer = call(server, method, path)
    assert answer.status in (404, 405), answer
    assert answer.json()["status"] == answer.status


# -- channels -------------------------------------------------------------------------------------------------------------------


def test_channel_info(server, connect, channel):
    empty = api(server, "GET", path_of(channel))
    assert empty["channel"] == channel
    assert (empty["occupied"], empty["subscribers"], empty["members"]) == (False, 0, 0)
    assert empty.get("lastSequence", 0) == 0
    one, two = connect().subscribe(channel), connect().subscribe(channel)
    one.publish(channel, 1)
    assert api(server, "GET", path_of(channel)) == {
        "channel": channel, "occupied": True, "subscribers": 2, "members": 0, "lastSequence": 1,
    }
    one.unsubscribe(channel)
    two.close()
    wait_until(lambda: not api(server, "GET", path_of(channel))["occupied"], what="the channel to be empty")
    after = api(server, "GET", path_of(channel))
    assert (after["subscribers"], after["lastSequence"]) == (0, 1)


def test_subscribers_are_counted_over_all_shards(server, connect, channel):
    for _ in range(20):
        connect().subscribe(channel)
    wait_until(lambda: api(server, "GET", path_of(channel))["subscribers"] == 20, what="20 subscribers")


def test_channel_list_pages_over_all_occupied_channels_once(server, connect, channel):
    names = {f"{channel}:{n}" for n in range(23)}
    connect().subscribe(*names)
    connect().publish(f"{channel}:empty", 1)
    seen, cursor, pages = [], None, 0
    while True:
        query = f"?prefix={quote(channel + ':', safe='')}&limit=5" + (f"&cursor={quote(cursor, safe='')}" if cursor else "")
        page = api(server, "GET", "/api/channels" + query)
        assert len(page["channels"]) <= 5
        seen += page["channels"]
        pages += 1
        cursor = page.get("cursor")
        if not cursor:
            break
        assert pages < 20, "the cursor never ends"
    assert sorted(item["channel"] for item in seen) == sorted(names)
    assert all(item == {"channel": item["channel"], "subscribers": 1, "members": 0} for item in seen)
    assert pages >= 5


def test_channel_list_prefix_without_match(server, channel):
    assert api(server, "GET", f"/api/channels?prefix={channel}:none") == {"channels": []}


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "limit=0", "cursor=%ff"])
def test_channel_list_with_bad_query(server, query):
    answer = call(server, "GET", f"/api/channels?{query}")
    assert answer.status in (200, 400), answer
    if answer.status == 400:
        assert answer.json()["code"] in (40000, 40003)


# -- clients ----------------------------------------------------------------------------------------------------------------------


def test_disconnect_ends_a_client_with_4010(server, connect, channel):
    client, other = connect(), connect()
    assert api(server, "POST", f"/api/clients/{client.client_id}/disconnect", {}) == {"disconnected": 1}
    client.expect_close(4010)
    other.nothing_waiting()


def test_disconnect_with_code_and_reason(server, connect):
    client = connect()
    api(server, "POST", f"/api/clients/{client.client_id}/disconnect", {"code": 4321, "reason": "bye é"})
    assert client.expect_close(4321).close_reason == "bye é"


def test_disconnect_works_without_a_body(server, connect):
    client = connect()
    assert api(server, "POST", f"/api/clients/{client.client_id}/disconnect") == {"disconnected": 1}
    client.expect_close(4010)


def test_disconnect_finds_clients_on_every_shard(server, connect):
    for _ in range(8):
        client = connect()
        assert api(server, "POST", f"/api/clients/{client.client_id}/disconnect", {}) == {"disconnected": 1}
        client.expect_close(4010)


def test_unknown_client(server):
    assert api(server, "POST", "/api/clients/anon-nobody/disconnect", {}) == {"disconnected": 0}
    assert api(server, "POST", "/api/clients/anon-nobody/unsubscribe", {"channel": "c"}) == {"unsubscribed": 0}


def test_forced_unsubscribe(server, connect, channel):
    client = connect().subscribe(channel, channel + ":other")
    body = api(server, "POST", f"/api/clients/{client.client_id}/unsubscribe", {"channel": channel})
    assert body == {"unsubscribed": 1}
    client.expect(action="unsubscribed", channel=channel)
    publisher = connect()
    publisher.publish(channel, "not seen")
    publisher.publish(channel + ":other", "seen")
    assert client.expect(action="message")["data"] == "seen"
    assert not [f for f in client.backlog if f["action"] == "message"]
    again = api(server, "POST", f"/api/clients/{client.client_id}/unsubscribe", {"channel": channel})
    assert again == {"unsubscribed": 0}


# -- HTTP itself --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/publish", "/api/channels", "/api/channels/c/messages", "/api/push/register"])
def test_cors_preflight(server, path):
    answer = call(
        server, "OPTIONS", path, key=None,
        headers=[
            ("Origin", "https://app.example"), ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", "authorization,content-type"),
        ],
    )
    assert answer.status in (200, 204), answer
    assert answer.headers["access-control-allow-origin"] == "*"
    listed = lambda name: {v.strip().lower() for v in answer.headers[name].split(",")}  # noqa: E731
    assert {"get", "post", "delete"} <= listed("access-control-allow-methods")
    assert {"authorization", "content-type", "x-app-id", "idempotency-key"} <= listed("access-control-allow-headers")
    assert "access-control-allow-credentials" not in answer.headers


def test_cors_on_answers_and_refusals(server):
    origin = [("Origin", "https://app.example")]
    assert call(server, "GET", "/api/channels", headers=origin).headers["access-control-allow-origin"] == "*"
    refusal = call(server, "GET", "/api/channels", key=None, headers=origin)
    assert refusal.status == 401 and refusal.headers["access-control-allow-origin"] == "*"


def test_keep_alive_and_pipelining(server, channel):
    with RawSocket(server.address) as raw:
        for n in range(20):
            body = api(server, "POST", f"{path_of(channel)}/messages", {"data": n}, connection=raw)
            assert body["messages"][0]["sequence"] == n + 1
        one = request_bytes(server.address, "GET", path_of(channel), key=SERVER_KEY, close=False)
        raw.send(one * 5)
        assert [raw.read_answer().json()["lastSequence"] for _ in range(5)] == [20] * 5


def test_refusal_of_one_call_does_not_spoil_the_next(server, channel):
    """The refused call's body must be read or the connection ended: never parsed as the next request."""
    with RawSocket(server.address) as raw:
        smuggled = request_bytes(server.address, "POST", "/api/publish", b'{"channels":["x"],"data":1}', SERVER_KEY)
        raw.send(request_bytes(server.address, "POST", "/api/publish", smuggled, None, close=False))
        assert raw.read_answer().status == 401
        rest = b""
        try:
            raw.send(request_bytes(server.address, "GET", "/api/channels", key=SERVER_KEY))
            rest = raw.read_to_end()
        except Exception:  # the server may have ended the connection already
            pass
        assert rest.count(b"HTTP/1.1 ") <= 1


def test_chunked_body(server, channel):
    body = json.dumps({"data": "chunked"}).encode()
    with RawSocket(server.address) as raw:
        raw.send(
            f"POST {path_of(channel)}/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SERVER_KEY}\r\n"
            f"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"5\r\n" + body[:5] + b"\r\n" + b"%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n"
        )
        answer = raw.read_answer()
    assert answer.status == 200, answer


def test_body_in_single_bytes(server, channel):
    with RawSocket(server.address) as raw:
        for byte in request_bytes(server.address, "POST", f"{path_of(channel)}/messages", b'{"data":1}', SERVER_KEY):
            raw.send(bytes([byte]))
        assert raw.read_answer().status == 200


def test_expect_continue_as_curl_sends_it(server, channel):
    body = json.dumps({"data": "x" * 2000}).encode()
    with RawSocket(server.address) as raw:
        request = request_bytes(
            server.address, "POST", f"{path_of(channel)}/messages", body, SERVER_KEY, [("Expect", "100-continue")]
        )
        head = request[: -len(body)]
        raw.send(head)
        while b"\r\n\r\n" not in raw.buffer:
            raw.fill(len(raw.buffer) + 1)
        assert raw.buffer.startswith(b"HTTP/1.1 100 "), bytes(raw.buffer[:60])
        raw.buffer.clear()
        raw.send(body)
        assert raw.read_answer().status == 200
