"""RFC 6455 towards a wSocket client: fragments, control frames, masks, limits, closing (contract 5.7, D11, D13)."""

import socket
import struct

import pytest

from harness.client import Client
from harness.rawws import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Ended, apply_mask, close_payload, encode_frame
from harness.wait import wait_until

pytestmark = pytest.mark.usefixtures("bystander")

PING_ACTION = b'{"action":"ping"}'
KIB = 1024


def expect_app_pong(client):
    client.next_is(action="pong")


# -- fragments ----------------------------------------------------------------------------------------------------------


def test_fragments_are_reassembled(connect):
    client = connect()
    for size in (1, 3, len(PING_ACTION)):
        parts = [PING_ACTION[i : i + size] for i in range(0, len(PING_ACTION), size)]
        for n, part in enumerate(parts):
            client.send_frame(TEXT if n == 0 else CONTINUATION, part, fin=n == len(parts) - 1)
        expect_app_pong(client)


def test_empty_fragments_are_allowed(connect):
    client = connect()
    client.send_frame(TEXT, b"", fin=False)
    client.send_frame(CONTINUATION, PING_ACTION, fin=False)
    client.send_frame(CONTINUATION, b"", fin=True)
    expect_app_pong(client)


def test_control_frames_between_fragments_are_answered_at_once(connect):
    client = connect()
    client.send_frame(TEXT, PING_ACTION[:5], fin=False)
    client.send_frame(PING, b"now")
    client.expect_pong(b"now")
    client.send_frame(PONG, b"unsolicited")
    client.send_frame(CONTINUATION, PING_ACTION[5:])
    expect_app_pong(client)


def test_fragment_boundary_inside_a_utf8_character(connect, channel):
    client = connect().subscribe(channel)
    text = f'{{"action":"publish","channel":"{channel}","id":"u","data":"é😀"}}'.encode()
    for n in range(len(text)):
        client.send_frame(TEXT if n == 0 else CONTINUATION, text[n : n + 1], fin=n == len(text) - 1)
    assert client.expect(action="message")["data"] == "é😀"


def test_large_fragmented_publish(connect, channel):
    """PHP fragments everything above 4096 bytes."""
    client = connect().subscribe(channel)
    body = f'{{"action":"publish","channel":"{channel}","id":"f","data":"{"y" * 60000}"}}'.encode()
    parts = [body[i : i + 4096] for i in range(0, len(body), 4096)]
    for n, part in enumerate(parts):
        client.send_frame(TEXT if n == 0 else CONTINUATION, part, fin=n == len(parts) - 1)
    assert client.expect(action="message")["data"] == "y" * 60000


def test_stream_in_single_bytes(connect):
    client = connect()
    stream = (
        encode_frame(PING, b"one") + encode_frame(TEXT, PING_ACTION[:4], fin=False)
        + encode_frame(PING, b"two") + encode_frame(CONTINUATION, PING_ACTION[4:]) + encode_frame(TEXT, PING_ACTION, form=64)
    )
    for byte in stream:
        client.send(bytes([byte]))
    client.expect_pong(b"one")
    client.expect_pong(b"two")
    expect_app_pong(client)
    expect_app_pong(client)


# -- control frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(125)), b"\xff" * 125])
def test_ping_payload_is_echoed(connect, payload):
    client = connect()
    client.send_frame(PING, payload)
    client.expect_pong(payload)


def test_unsolicited_pong_is_accepted(connect):
    client = connect()
    client.send_frame(PONG, b"keepalive")
    client.nothing_waiting()


def test_unmasked_pong_is_tolerated(connect):
    client = connect()
    client.send_frame(PONG, b"php", mask=None)
    client.nothing_waiting()


def test_unmasked_close_is_tolerated(connect):
    client = connect()
    client.send_frame(CLOSE, close_payload(1000), mask=None)
    frame = client.recv_frame()
    assert (frame.opcode, frame.close_code) == (CLOSE, 1000)
    client.expect_end()


def test_masks_of_all_kinds(connect):
    client = connect()
    for mask in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x03\x04"):
        client.send_frame(TEXT, PING_ACTION, mask=mask)
        expect_app_pong(client)


# -- violations -----------------------------------------------------------------------------------------------------------

VIOLATIONS = {
    "unmasked text": encode_frame(TEXT, PING_ACTION, mask=None),
    "unmasked binary": encode_frame(BINARY, PING_ACTION, mask=None),
    "unmasked ping": encode_frame(PING, b"x", mask=None),
    "rsv1": encode_frame(TEXT, PING_ACTION, rsv=4),
    "rsv2": encode_frame(TEXT, PING_ACTION, rsv=2),
    "rsv3 on ping": encode_frame(PING, b"", rsv=1),
    "opcode 3": encode_frame(3, b"x"),
    "opcode 7": encode_frame(7),
    "opcode 11": encode_frame(11, b"x"),
    "opcode 15": encode_frame(15),
    "ping in fragments": encode_frame(PING, b"x", fin=False),
    "close in fragments": encode_frame(CLOSE, close_payload(1000), fin=False),
    "ping of 126 bytes": encode_frame(PING, b"x" * 126),
    "continuation of nothing": encode_frame(CONTINUATION, b"x"),
    "unfinished continuation of nothing": encode_frame(CONTINUATION, b"x", fin=False),
    "text inside a message": encode_frame(TEXT, b"{", fin=False) + encode_frame(TEXT, PING_ACTION),
    "binary inside a message": encode_frame(TEXT, b"{", fin=False) + encode_frame(BINARY, b"x", fin=False),
    "close of one byte": encode_frame(CLOSE, b"\x03"),
    "close 0": encode_frame(CLOSE, close_payload(0)),
    "close 999": encode_frame(CLOSE, close_payload(999)),
    "close 1004": encode_frame(CLOSE, close_payload(1004)),
    "close 1005": encode_frame(CLOSE, close_payload(1005)),
    "close 1006": encode_frame(CLOSE, close_payload(1006)),
    "close 1015": encode_frame(CLOSE, close_payload(1015)),
    "close 2999": encode_frame(CLOSE, close_payload(2999)),
    "close 5000": encode_frame(CLOSE, close_payload(5000)),
    "close 65535": encode_frame(CLOSE, close_payload(65535)),
}


@pytest.mark.parametrize("stream", VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_framing_errors_close_1002(connect, stream):
    client = connect()
    client.send(stream)
    client.expect_close(1002)


BAD_UTF8 = {
    "lone continuation": [b"\x80"],
    "overlong": [b"\xc0\xaf"],
    "surrogate": [b"\xed\xa0\x80"],
    "above U+10FFFF": [b"\xf4\x90\x80\x80"],
    "cut at the end": [b'{"a":"\xe2\x82'],
    "cut between fragments": [b"\xe2\x82", b"\x28"],
    "latin-1": [b'{"action":"p\xefng"}'],
}


@pytest.mark.parametrize("parts", BAD_UTF8.values(), ids=BAD_UTF8.keys())
def test_bad_utf8_closes_1007(connect, parts):
    client = connect()
    for n, part in enumerate(parts):
        client.send_frame(TEXT if n == 0 else CONTINUATION, part, fin=n == len(parts) - 1)
    client.expect_close(1007)


def test_bad_utf8_fails_before_the_message_ends(connect):
    client = connect()
    client.send_frame(TEXT, b"\xf4\x90\x80\x80", fin=False)
    client.expect_close(1007)


def test_bad_utf8_in_a_close_reason_closes_1007(connect):
    client = connect()
    client.send_frame(CLOSE, struct.pack("!H", 1000) + b"\xff\xfe")
    client.expect_close(1007)


def test_binary_message_that_is_not_utf8_is_not_a_framing_error(connect):
    """Binary has no UTF-8 rule in RFC 6455; here it is merely not JSON."""
    client = connect()
    client.send_frame(BINARY, b"\xff\xfe\x80")
    client.expect_error(40001)
    client.nothing_waiting()


# -- sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128 * KIB + 1, 1 << 20, 1 << 32, (1 << 63) - 1])
def test_giant_length_closes_1009_without_its_payload(connect, size):
    client = connect()
    client.send(encode_frame(TEXT, b"", length=size))
    client.expect_close(1009)


def test_length_with_the_top_bit_is_refused(connect):
    client = connect()
    client.send(encode_frame(TEXT, b"", length=(1 << 63) | 5))
    frame = client.recv_frame()
    assert frame.opcode == CLOSE and frame.close_code in (1002, 1009), frame


def test_fragments_that_add_up_to_too_much_close_1009(connect):
    client = connect()
    client.send_frame(TEXT, b"x" * (100 * KIB), fin=False)
    client.send(encode_frame(CONTINUATION, b"", fin=True, length=29 * KIB))
    client.expect_close(1009)


def test_endless_fragments_are_bounded(connect):
    client = connect()
    client.send_frame(TEXT, b"", fin=False)
    try:
        for _ in range(5000):
            client.send_frame(CONTINUATION, b"x" * 100, fin=False)
    except Ended:
        return  # the server has closed while bytes were still coming: its Close may be lost with the reset
    client.expect_close(1009)


def test_text_right_at_the_limit_passes(connect):
    client = connect()
    text = '{"action":"ping","x":"' + "x" * (128 * KIB - 24) + '"}'
    assert len(text) == 128 * KIB
    client.send_text(text)
    expect_app_pong(client)


# -- closing --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 3000, 3999, 4000, 4999])
def test_close_code_is_echoed(connect, code):
    connect().close(code)


def test_empty_close_is_answered(connect):
    client = connect()
    client.send_frame(CLOSE)
    frame = client.recv_frame()
    assert frame.opcode == CLOSE and frame.close_code in (None, 1000), frame
    client.expect_end()


def test_close_with_the_longest_reason(connect):
    client = connect()
    client.send_frame(CLOSE, close_payload(1000, "r" * 123))
    frame = client.recv_frame()
    assert (frame.opcode, frame.close_code) == (CLOSE, 1000)
    client.expect_end()


def test_frames_after_close_are_ignored(connect, channel):
    subscriber, client = connect().subscribe(channel), connect()
    publish = f'{{"action":"publish","channel":"{channel}","data":"late","id":"l"}}'.encode()
    client.send(encode_frame(CLOSE, close_payload(1000)) + encode_frame(TEXT, publish) + encode_frame(PING, b"x"))
    assert client.recv_frame().opcode == CLOSE
    assert client.read_to_end() == b""
    subscriber.publish(channel, "sentinel")
    assert subscriber.expect(action="message")["data"] == "sentinel"


def test_work_before_close_is_done(connect, channel):
    subscriber, client = connect().subscribe(channel), connect()
    publish = f'{{"action":"publish","channel":"{channel}","data":"last words","id":"l"}}'.encode()
    client.send(encode_frame(TEXT, publish) + encode_frame(CLOSE, close_payload(1000)))
    assert subscriber.expect(action="message")["data"] == "last words"


@pytest.mark.parametrize("way", ["fin", "reset", "half-close", "mid-frame"])
def test_lost_connections_are_freed(new_server, way):
    server = new_server(shards=1)
    client = Client(server).subscribe("c")
    assert sum(server.connections().values()) == 1
    if way == "fin":
        client.drop()
    elif way == "reset":
        client.reset()
    elif way == "half-close":
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.send(encode_frame(TEXT, PING_ACTION)[:7])
        client.drop()
    wait_until(lambda: sum(server.connections().values()) == 0, what="the connection to be freed")
    client.drop()


def test_apply_mask_of_the_harness():
    """The harness itself: masking by big integers equals masking by bytes."""
    data, mask = bytes(range(11)), b"\x01\x80\xff\x00"
    assert apply_mask(data, mask) == bytes(b ^ mask[i % 4] for i, b in enumerate(data))
