"""Opening a connection: URL forms, credentials, refusals by HTTP status (contract D1, D2, D4, D5, D8), and bad requests."""

import re

import pytest

from harness.client import Client
from harness.rawws import PING, RawSocket, RawWs, Refused, accept_for, encode_frame, upgrade_head
from harness.rest import call, expect_refusal
from harness.server import CLIENT_KEY, SERVER_KEY

pytestmark = pytest.mark.usefixtures("bystander")

OTHER_KEY = "ck_" + "x" * 30


def refused(server, target, headers=(), **how):
    with pytest.raises(Refused) as refusal:
        RawWs(server.address, target, headers, **how).drop()
    return refusal.value.answer


def exchange(server, request, timeout=None):
    """The answer to raw request bytes, and the rest of the stream up to its end."""
    with RawSocket(server.address) as raw:
        raw.send(request)
        answer = raw.read_answer(timeout)
        return answer, raw


TARGETS = [
    "/?key={k}",
    "//?key={k}",
    "///?key={k}",
    "/ws?key={k}",
    "//ws?key={k}",
    "/?key={k}&echo=false",
    "/?key={k}&ack=0",
    "/?shape=standard?key={k}",
    "/?shape=flat&key={k}",
    "/?key={k}?shape=flat",
    "/?key={k}&unknown=1&x",
    "/?&key={k}&",
    "/?key={p}",
    "/?key={k}&key=other",
]


@pytest.mark.parametrize("target", TARGETS)
def test_accepted_targets(server, target):
    percent = "".join(f"%{ord(c):02x}" for c in CLIENT_KEY)
    Client(server, target=target.format(k=CLIENT_KEY, p=percent)).close()


def test_bearer_header_instead_of_query(server):
    Client(server, target="/", headers=[("Authorization", f"Bearer {CLIENT_KEY}")]).close()
    Client(server, target="/ws", headers=[("authorization", f"bearer {SERVER_KEY}")]).close()


def test_server_key_may_open_a_socket(server):
    Client(server, key=SERVER_KEY).close()


def test_header_names_and_tokens_are_case_insensitive(server):
    headers = [("UPGRADE", "WebSocket"), ("connection", "keep-alive, upgrade"), ("Origin", "https://app.example")]
    RawWs(server.address, f"/?key={CLIENT_KEY}", headers).drop()


def test_extensions_and_subprotocols_are_not_selected(server):
    offers = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"), ("Sec-WebSocket-Protocol", "a, b")]
    RawWs(server.address, f"/?key={CLIENT_KEY}", offers).drop()  # `check_accept` fails on a selection


def test_frames_sent_with_the_head_are_not_lost(server):
    """A client may write its first frames without waiting for the 101."""
    with RawSocket(server.address) as raw:
        key = "dGhlIHNhbXBsZSBub25jZQ=="
        head = upgrade_head(server.address, f"/?key={CLIENT_KEY}", key=key)
        raw.send(head + encode_frame(PING, b"early"))
        answer = raw.read_answer()
        assert answer.status == 101 and answer.headers["sec-websocket-accept"] == accept_for(key)
        ws = RawWs.__new__(RawWs)
        ws.__dict__.update(raw.__dict__)
        frames = [ws.recv_frame(), ws.recv_frame()]
        assert (PING + 1, b"early") in [(f.opcode, f.payload) for f in frames]


def test_head_in_single_bytes(server):
    with RawSocket(server.address) as raw:
        for byte in upgrade_head(server.address, f"/?key={CLIENT_KEY}"):
            raw.send(bytes([byte]))
        assert raw.read_answer().status == 101


# -- credentials -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/", "//", "/ws", "/?x=1"])
def test_missing_credentials(server, target):
    expect_refusal(refused(server, target), 401, 40100)


def test_empty_key(server):
    answer = refused(server, "/?key=")
    expect_refusal(answer, 401, 40101 if answer.json()["code"] == 40101 else 40100)


@pytest.mark.parametrize("key", [OTHER_KEY, "short", CLIENT_KEY + "x", CLIENT_KEY[:-1], CLIENT_KEY.upper(), "a" * 500, "%20"])
def test_unknown_key(server, key):
    expect_refusal(refused(server, f"/?key={key}"), 401, 40101)


def test_unknown_bearer_key(server):
    expect_refusal(refused(server, "/", [("Authorization", f"Bearer {OTHER_KEY}")]), 401, 40101)


def test_plus_is_not_a_space_and_keys_are_not_trimmed(server):
    expect_refusal(refused(server, f"/?key=+{CLIENT_KEY}"), 401, 40101)
    expect_refusal(refused(server, f"/?key={CLIENT_KEY}%20"), 401, 40101)


def test_refused_key_is_not_logged(server):
    secret = "ck_secret_never_in_the_log_4711"
    refused(server, f"/?key={secret}")
    assert secret not in server.log() + server.out()


@pytest.mark.parametrize("target", [f"/?key={CLIENT_KEY}&shape=round", "/?key=%zz", "/?key=%", f"/?key={CLIENT_KEY}&echo=%ff", f"/?key={CLIENT_KEY}&ack=no"])
def test_malformed_query(server, target):
    expect_refusal(refused(server, target), 400, 40000)


# -- the upgrade request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/other", "/wsx", "/ws/x", "/api/publish"])
def test_other_paths_are_not_sockets(server, target):
    answer = refused(server, f"{target}?key={CLIENT_KEY}")
    assert answer.status in (404, 405), answer
    assert answer.json()["status"] == answer.status


def test_other_version_gets_426_and_the_version(server):
    answer = refused(server, f"/?key={CLIENT_KEY}", [("Sec-WebSocket-Version", "8")])
    assert answer.status == 426
    assert answer.headers["sec-websocket-version"] == "13"


@pytest.mark.parametrize("name", ["Sec-WebSocket-Key", "Connection"])
def test_missing_upgrade_header(server, name):
    answer, _ = exchange(server, upgrade_head(server.address, f"/?key={CLIENT_KEY}", drop=[name]))
    assert answer.status == 400, answer


def test_missing_version_header(server):
    answer, _ = exchange(server, upgrade_head(server.address, f"/?key={CLIENT_KEY}", drop=["Sec-WebSocket-Version"]))
    assert answer.status in (400, 426), answer


@pytest.mark.parametrize("value", ["", "abc", "dGhlIHNhbXBsZQ==", "!" * 24, "dGhlIHNhbXBsZSBub25jZQ=="[:-2]])
def test_bad_websocket_key(server, value):
    answer, _ = exchange(
        server, upgrade_head(server.address, f"/?key={CLIENT_KEY}", [("Sec-WebSocket-Key", value)])
    )
    assert answer.status == 400, answer


def test_upgrade_over_http_1_0(server):
    answer, _ = exchange(server, upgrade_head(server.address, f"/?key={CLIENT_KEY}", version="HTTP/1.0"))
    assert answer.status in (400, 426, 505), answer


@pytest.mark.parametrize("method", ["POST", "PUT", "get"])
def test_upgrade_by_another_method(server, method):
    answer, _ = exchange(server, upgrade_head(server.address, f"/?key={CLIENT_KEY}", method=method))
    assert 400 <= answer.status < 500, answer


# -- not HTTP, or too much of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad\x00Name: x\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
    ],
)
def test_garbage_is_answered_400_and_closed(server, junk):
    with RawSocket(server.address) as raw:
        raw.send(junk)
        seen = raw.read_to_end()
    assert re.match(rb"HTTP/1\.1 (400|505) ", seen), seen[:100]
    assert seen.count(b"HTTP/1.1 ") == 1


def test_oversize_head_gets_431(server):
    for target, filler in (("/", b"X-Filler: " + b"a" * 20000), ("/" + "a" * 20000, b"X: y")):
        with RawSocket(server.address) as raw:
            raw.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n".encode() + filler + b"\r\n\r\n")
            assert raw.read_answer().status in ((431,) if target == "/" else (414, 431))


def test_endless_head_is_cut_before_its_end(server):
    """The bound holds while the head is still coming: no blank line is ever sent."""
    with RawSocket(server.address) as raw:
        raw.send(b"GET / HTTP/1.1\r\nHost: x\r\nX-Filler: " + b"a" * 20000)
        assert raw.read_answer().status == 431


def test_clients_that_vanish_in_the_handshake_are_forgotten(server):
    for cut in (0, 1, 20, 60):
        raw = RawSocket(server.address)
        raw.send(upgrade_head(server.address, f"/?key={CLIENT_KEY}")[:cut])
        raw.reset() if cut % 2 else raw.drop()
    Client(server).close()


def test_http_and_websocket_share_the_port(server):
    answer = call(server, "GET", "/api/channels")
    assert answer.status == 200, answer
    Client(server).close()


def test_plain_http_on_the_socket_path(server):
    """No upgrade asked for: an ordinary HTTP answer, in JSON."""
    answer = call(server, "GET", f"/?key={CLIENT_KEY}", key=None)
    assert answer.status in (200, 400, 404, 426), answer
    assert answer.json()


def test_one_byte_requests_do_not_hold_other_clients_up(server):
    """A hundred half-open handshakes at once; another client connects meanwhile."""
    half_open = [RawSocket(server.address) for _ in range(100)]
    for raw in half_open:
        raw.send(b"G")
    Client(server).close()
    for raw in half_open:
        raw.drop()
