"""TLS on both listeners, with OpenSSL as the peer: versions, names, tickets, refusals, and all that is sent over it."""

import json
import shutil
import signal
import socket
import ssl
import subprocess
import threading

import pytest

from harness.client import Client, open_on_every_shard
from harness.rawws import CLOSE, Ended, RawSocket, Refused
from harness.rest import api, call, request_bytes
from harness.server import BINARY, CLIENT_KEY, SERVER_KEY
from harness.tls import Authority, names_of, tls_config
from harness.wait import wait_until
from test_sdk_python import Peer

TLS12, TLS13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
VERSIONS = pytest.mark.parametrize("version", [TLS12, TLS13], ids=["1.2", "1.3"])


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "certs")


@pytest.fixture
def tls_server(new_server, authority):
    """Makes servers with one certificate for localhost, and no more than that."""

    def make(more="", **options):
        return new_server(config=tls_config(authority.issue("first"), more=more), **options)

    return make


def handshakes(server, result):
    return server.metrics().total("shardwire_tls_handshakes_total", result=result)


def wait_for_handshake(server, result, count=1):
    def counted():
        series = server.metrics().series("shardwire_tls_handshakes_total")
        return sum(value for labels, value in series if labels["result"] == result) >= count

    wait_until(counted, what=f"{count} handshakes counted as {result}")


# -- agreeing -------------------------------------------------------------------------------------------------------


@VERSIONS
def test_messages_and_calls_over_both_versions(tls_server, authority, version):
    server = tls_server(shards=2)
    context = authority.context(version)
    on_shard = open_on_every_shard(server, lambda: Client(server, tls=context))
    for client in on_shard.values():
        client.subscribe("room")
        assert client.socket.version() == {TLS12: "TLSv1.2", TLS13: "TLSv1.3"}[version]
        assert client.socket.selected_alpn_protocol() == "http/1.1"
    on_shard[0].publish("room", {"n": 1})
    api(server, "POST", "/api/channels/room/messages", {"data": {"n": 2}}, tls=context)
    for client in on_shard.values():
        assert [client.expect(action="message")["data"]["n"] for _ in range(2)] == [1, 2]
        client.close()
    assert handshakes(server, "full") >= 3
    assert server.stop() == 0


def test_certificate_by_name(new_server, authority):
    pairs = [
        authority.issue("default", "default.test", "localhost"),
        authority.issue("exact", "a.example.test"),
        authority.issue("wild", "*.example.test", "other.test"),
    ]
    server = new_server(shards=1, config=tls_config(*pairs))
    context = authority.context()
    context.check_hostname = False

    def shown(name):
        with RawSocket(server.address, tls=context, server_name=name) as one:
            return names_of(one.socket)

    assert shown("a.example.test") == {"a.example.test"}
    assert shown("b.example.test") == shown("Other.Test") == {"*.example.test", "other.test"}
    for stranger in ("example.test", "x.y.example.test", "nobody.test", "127.0.0.1", None):
        assert "default.test" in shown(stranger), stranger


def test_key_of_the_kind_the_client_takes(new_server, authority):
    pairs = [
        authority.issue("ec", "localhost", key_type=trustme_key("ECDSA")),
        authority.issue("rsa", "localhost", key_type=trustme_key("RSA")),
    ]
    server = new_server(shards=1, config=tls_config(*pairs))
    for kind in ("ECDSA", "RSA"):
        context = authority.context(TLS12)
        context.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
        with RawSocket(server.address, tls=context) as one:
            assert one.socket.cipher()[0] == f"ECDHE-{kind}-AES128-GCM-SHA256"


def trustme_key(name):
    import trustme

    return trustme.KeyType[name]


def test_protocol_negotiation(tls_server, authority):
    server = tls_server(shards=1)
    for offered, chosen in [(("h2", "http/1.1"), "http/1.1"), ((), None)]:
        with RawSocket(server.address, tls=authority.context(alpn=offered)) as one:
            assert one.socket.selected_alpn_protocol() == chosen
    with pytest.raises(ssl.SSLError, match="(?i)no.application.protocol"):
        RawSocket(server.address, tls=authority.context(alpn=("h2",)))
    wait_for_handshake(server, "incompatible")


@VERSIONS
def test_ticket_resumes_on_every_shard_and_across_a_reload(tls_server, authority, version):
    server = tls_server(shards=2)
    context = authority.context(version)

    def visit(ticket=None):
        client = Client(server, tls=context, session=ticket)
        got = client.socket.session, client.socket.session_reused
        client.drop()
        return got

    ticket, reused = visit()
    assert not reused and ticket.has_ticket
    for _ in range(6):
        assert visit(ticket)[1]
    server.signal(signal.SIGHUP)
    wait_until(lambda: "certificates loaded" in server.log(), what="the reload")
    assert visit(ticket)[1]
    wait_for_handshake(server, "resumed", 7)
    assert handshakes(server, "full") == 1


# -- reloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["file", "signal"])
def test_certificates_are_exchanged_under_connected_clients(tls_server, authority, by):
    server = tls_server(shards=2)
    context = authority.context()
    stayer = Client(server, tls=context).subscribe("room")
    authority.issue("first", "localhost", "renewed.test")
    if by == "signal":
        server.signal(signal.SIGHUP)

    def renewed():
        with RawSocket(server.address, tls=context) as one:
            return "renewed.test" in names_of(one.socket)

    wait_until(renewed, 10, "the renewed certificate", interval=0.1)
    Client(server, tls=context).publish("room", "after")
    assert stayer.expect(action="message")["data"] == "after"
    stayer.close()


def test_what_cannot_be_used_changes_nothing_and_is_told_once(tls_server, authority):
    server = tls_server(shards=1)
    context = authority.context()
    cert, key = authority.folder / "first.pem", authority.folder / "first.key"
    old_key = key.read_bytes()
    authority.issue("first", "localhost", "renewed.test")
    good_key = key.read_bytes()
    # A certificate without its key: as if a renewal had got no further.
    key.write_bytes(old_key)
    wait_until(lambda: "certificates in use stay" in server.log(), what="the refusal")
    assert str(key) in server.log()
    with RawSocket(server.address, tls=context) as one:
        assert "renewed.test" not in names_of(one.socket)
    server.signal(signal.SIGHUP)
    wait_until(lambda: server.log().count("certificates in use stay") >= 2, what="the refusal of the reload")
    assert server.log().count("certificates in use stay") <= 3, "told per change, not per look"
    key.write_bytes(good_key)

    def renewed():
        with RawSocket(server.address, tls=context) as one:
            return "renewed.test" in names_of(one.socket)

    wait_until(renewed, 10, "the renewed certificate", interval=0.1)


def test_other_certificates_by_reload_of_the_configuration(tls_server, authority):
    server = tls_server(shards=1)
    pair = authority.issue("second", "localhost", "second.test")
    (server.folder / "shardwire.toml").write_text(tls_config(pair))
    server.signal(signal.SIGHUP)
    wait_until(lambda: "tls.certificates" in server.log(), what="the reload")
    with RawSocket(server.address, tls=authority.context()) as one:
        assert "second.test" in names_of(one.socket)
    (server.folder / "shardwire.toml").write_text("")
    server.signal(signal.SIGHUP)
    wait_until(lambda: "needs a restart: tls.certificates" in server.log(), what="the refusal to switch TLS off")
    Client(server, tls=authority.context()).close()


def test_start_and_check_name_the_file_that_is_wrong(new_server, authority):
    cert, _ = authority.issue("first")
    _, other_key = authority.issue("second")
    server = new_server(start=False, config=tls_config((cert, other_key)))
    server.spawn()
    assert server.wait() == 2
    assert str(other_key) in server.log()
    checked = subprocess.run(
        [str(BINARY), "--config", "shardwire.toml", "check"], cwd=server.folder, capture_output=True, text=True, timeout=20
    )
    assert checked.returncode == 2 and str(other_key) in checked.stdout


# -- the admin listener -----------------------------------------------------------------------------------------------


@VERSIONS
def test_admin_listener_asks_for_a_certificate(new_server, authority, tmp_path, version):
    cert, key = authority.issue("admin")
    of_clients = Authority(tmp_path / "clients")
    config = f'[admin.tls]\ncert = "{cert}"\nkey = "{key}"\nclient_ca = "{of_clients.file}"\n'
    server = new_server(shards=1, config=config)
    server.admin_tls = authority.context(version, identity=of_clients.issue("operator", "operator.test"))
    assert server.admin_get("/healthz")[0] == 200
    for identity in (None, authority.issue("stranger", "stranger.test")):
        context = authority.context(version, identity=identity)
        with pytest.raises((ssl.SSLError, ConnectionError)), RawSocket(server.admin, tls=context) as one:
            # In TLS 1.3 the client is through before the server has looked.
            one.send(request_bytes(server.admin, "GET", "/healthz"))
            one.read_answer()
    wait_for_handshake(server, "client_certificate", 2)
    # The public listener stays plain.
    Client(server).close()


# -- refusing ---------------------------------------------------------------------------------------------------------


def test_plain_http_is_told_in_plain_text(tls_server):
    server = tls_server(shards=1)
    answer = call(server, "GET", "/api/channels")
    assert answer.status == 400 and b"TLS" in answer.body, answer
    with RawSocket(server.address) as garbage:
        garbage.send(b"\x00\x01\x02 hello")
        garbage.read_to_end()
    wait_for_handshake(server, "plain_http")
    wait_for_handshake(server, "not_tls")


def test_half_a_handshake_is_ended_by_the_deadline(tls_server, authority):
    server = tls_server("[limits]\nhandshake_deadline_ms = 300\n", shards=1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    hello_bytes = outgoing.read()
    with RawSocket(server.address) as silent, RawSocket(server.address) as half, RawSocket(server.address) as mute:
        half.send(hello_bytes[:100])
        mute.send(hello_bytes)
        mute.fill(100)  # the server's part, which stays unanswered
        for one in (silent, half, mute):
            one.read_to_end(5)
    wait_for_handshake(server, "incomplete", 3)
    # Those that are through but ask for nothing are ended too.
    with RawSocket(server.address, tls=authority.context()) as idle:
        idle.expect_end(5)


def test_client_that_does_not_trust_is_counted(tls_server):
    server = tls_server(shards=1)
    with pytest.raises(ssl.SSLCertVerificationError):
        RawSocket(server.address, tls=ssl.create_default_context())
    wait_for_handshake(server, "refused_by_peer")


def test_handshake_cut_at_every_byte(tls_server, authority):
    """The bytes of a whole visit, one by one: wherever a read ends, the next one goes on."""
    server = tls_server(shards=1)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = authority.context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    request = request_bytes(server.address, "GET", "/api/channels", key=SERVER_KEY)
    answer, step = b"", "handshake"
    with RawSocket(server.address) as one:
        while True:
            try:
                if step == "handshake":
                    peer.do_handshake()
                    peer.write(request)
                    step = "answer"
                data = peer.read()
                if not data:
                    break
                answer += data
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    one.send(bytes([byte]))
                one.fill(1)
                incoming.write(one.take(len(one.buffer)))
    assert answer.startswith(b"HTTP/1.1 200 "), answer


# -- what is sent -----------------------------------------------------------------------------------------------------


@VERSIONS
def test_large_messages_both_ways_through_small_buffers(tls_server, authority, version):
    more = "[limits]\npublish_bytes_max = 524288\ninbound_message_bytes_max = 1048576\noutbox_bytes_max = 16777216\n"
    server = tls_server(more, shards=1)
    context = authority.context(version)
    reader = Client(server, tls=context, receive_buffer=8192).subscribe("room")
    writer = Client(server, tls=context)
    texts = [f"{n}:" + "x" * (524_000 + n) for n in range(16)]
    for text in texts:
        writer.publish("room", text)
    for text in texts:
        assert reader.expect(action="message", timeout=30)["data"] == text
    assert server.metrics().total("shardwire_sends_blocked_total") > 0, "the kernel took all at once: nothing was tried"
    reader.publish("room", "small")
    assert reader.expect(action="message", timeout=30)["data"] == "small"
    reader.close()


def test_api_keeps_a_connection_and_takes_a_large_body(tls_server, authority):
    server = tls_server(shards=1)
    with RawSocket(server.address, tls=authority.context()) as one:
        batch = [{"data": "x" * 60_000, "id": f"m{n}"} for n in range(100)]
        made = api(server, "POST", "/api/channels/big/messages", batch, connection=one)
        assert len(made["messages"]) == 100
        page = api(server, "GET", "/api/channels/big/messages?limit=10", connection=one)
        # A page may be longer, as it is not cut inside of a millisecond.
        assert [m["id"] for m in page["messages"]][:10] == [f"m{n}" for n in range(99, 89, -1)]


@pytest.mark.timeout(120)
def test_slow_reader_is_ended_and_others_get_all_in_order(tls_server, authority):
    server = tls_server(shards=2)
    context = authority.context()
    readers = [Client(server, tls=context).subscribe("room") for _ in range(20)]
    stalled = Client(server, tls=context, receive_buffer=4096).subscribe("room")
    publisher = Client(server, key=SERVER_KEY, tls=context)
    count, pad = 2000, "y" * 4000
    got = {}

    def read(position):
        got[position] = [readers[position].expect(action="message", timeout=60)["data"]["n"] for _ in range(count)]

    threads = [threading.Thread(target=read, args=(n,)) for n in range(len(readers))]
    for thread in threads:
        thread.start()
    for n in range(count):
        publisher.publish_raw("room", json.dumps({"n": n, "pad": pad}), f"m{n}")
        if n >= 16:
            publisher.expect(action="ack")
    for thread in threads:
        thread.join(90)
    assert [got.get(n) for n in range(len(readers))] == [list(range(count))] * len(readers)
    wait_until(lambda: server.metrics().total("shardwire_slow_consumers_total") == 1, what="the stalled reader to be ended")
    # What it had taken is whole and in order; the end comes in the middle of a record.
    numbers = []
    with pytest.raises((Ended, ssl.SSLEOFError, ConnectionResetError)):
        while True:
            frame = stalled.recv_frame(10)
            assert frame.opcode != CLOSE
            numbers += [json.loads(frame.payload)["data"]["n"]]
    assert numbers == list(range(len(numbers))) and len(numbers) < count
    for reader in readers:
        reader.close()


def test_drain_ends_without_a_close_frame_and_with_tls_said_goodbye(tls_server, authority):
    server = tls_server(shards=1)
    client = Client(server, tls=authority.context())
    server.signal(signal.SIGTERM)
    client.expect_bare_end()  # an end of TCP alone would be an SSLEOFError
    assert server.wait() == 0


@VERSIONS
def test_peer_that_ends_tls_but_not_tcp_is_let_go(tls_server, authority, version):
    server = tls_server(shards=1)
    client = Client(server, tls=authority.context(version))
    plain = client.socket.unwrap()  # sends close_notify and waits for the server's
    plain.settimeout(10)
    assert plain.recv(1) == b"", "TCP has ended too"
    wait_until(lambda: sum(server.connections().values()) == 0, what="the connection to be freed")
    plain.close()


def test_reset_of_the_peer_frees_the_connection(tls_server, authority):
    server = tls_server(shards=1)
    client = Client(server, tls=authority.context())
    socket.socket(fileno=client.socket.detach()).close()
    wait_until(lambda: sum(server.connections().values()) == 0, what="the connection to be freed")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
def test_key_updates_of_the_peer(tls_server, authority):
    """`K` makes s_client change its keys and ask the server to change its own."""
    server = tls_server(shards=1)
    peer = subprocess.Popen(
        ["openssl", "s_client", "-connect", "%s:%d" % server.address, "-CAfile", str(authority.file), "-tls1_3",
         "-servername", "localhost", "-verify_return_error"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
    )
    try:
        seen = b""

        def expect(text):
            nonlocal seen
            while text not in seen:
                data = peer.stdout.read(4096)
                assert data, f"s_client ended:\n{seen[-2000:].decode(errors='replace')}"
                seen += data
            seen = seen.partition(text)[2]

        expect(b"Verify return code: 0 (ok)")
        for n in range(3):
            peer.stdin.write(b"K\n")
            expect(b"KEYUPDATE")
            request = request_bytes(server.address, "GET", f"/api/channels?limit={n + 1}", key=SERVER_KEY, close=False)
            peer.stdin.write(request)
            expect(b'"channels"')
    finally:
        peer.kill()
        peer.wait()
        peer.stdout.close()
        peer.stdin.close()


# -- the SDK ----------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_sdk_over_wss_comes_back_and_resumes(tls_server, authority):
    server = tls_server(shards=2)
    env = {"SSL_CERT_FILE": str(authority.file)}
    peer = Peer(server, key=CLIENT_KEY, url="wss://localhost:%d" % server.address[1], env=env)
    try:
        peer.expect("state", state="connected")
        peer.listen("chat")
        peer.do("publish", channel="chat", data={"text": "hello"})
        assert peer.expect("message")["data"] == {"text": "hello"}
        server.kill()
        server.restart_on_same_port()
        api(server, "POST", "/api/channels/chat/messages", {"data": "missed"}, tls=authority.context())
        peer.expect("state", state="reconnecting")
        peer.expect("state", state="connected")
        peer.expect("message", data="missed")
        peer.end()
    finally:
        peer.kill()
    assert server.stop() == 0


# -- a server that is full --------------------------------------------------------------------------------------------


def test_a_full_server_says_so_to_as_many_as_it_has_room_for(new_server, authority):
    config = tls_config(authority.issue("one"), more="[runtime]\nconnections_max = 1\n")
    server = new_server(shards=1, config=config)
    context = authority.context()
    first = Client(server, tls=context)
    for _ in range(3):
        with pytest.raises(Refused) as refused:
            Client(server, tls=context)
        answer = refused.value.answer
        assert (answer.status, answer.json()["code"]) == (429, 42910)
        assert 1 <= int(answer.headers["retry-after"]) <= 5
    # Those that begin no handshake hold the places of refusals, and no more than there are.
    idle = [socket.create_connection(server.address) for _ in range(200)]
    wait_until(lambda: any(is_ended(one) for one in idle), what="the end of those beyond")
    assert server.connections() == {0: 1}
    for one in idle:
        one.close()
    first.close()
    wait_until(lambda: server.connections() == {0: 0}, what="the first to go")
    Client(server, tls=context).close()


def is_ended(one):
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
