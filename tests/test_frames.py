"""The frames of contract section 9, byte for byte where order matters, and payload bytes that pass through untouched."""

import json
import re
import time

import pytest

from harness.client import Client
from harness.rawws import BINARY
from harness.rest import call

TIME = r"1[0-9]{12}"  # ms since 1970, a plain integer (contract 4.3)


def assert_frame(pattern, text):
    assert re.fullmatch(pattern, text), f"{text!r} is not {pattern!r}"


def recv_action(client, action):
    """The next frame as text; it must be of `action`."""
    text = client.recv_text()
    assert json.loads(text)["action"] == action, text
    return text


def test_connected_frame(server, client_key):
    before = time.time() * 1000
    client = Client(server, key=client_key, hello=False)
    text = client.recv_text()
    after = time.time() * 1000
    assert_frame(
        r'\{"action":"connected","id":"[^"]{1,64}",'
        r'"data":\{"clientId":"anon-[A-Za-z0-9_-]{22}","serverTime":' + TIME + r"\}\}", text,
    )
    assert before - 50 <= json.loads(text)["data"]["serverTime"] <= after + 50
    client.close()


def test_connected_frame_names_each_connection_apart(connect):
    one, two = connect(), connect()
    assert one.hello["id"] != two.hello["id"]
    assert one.client_id != two.client_id


def test_subscribed_and_unsubscribed_frames(connect, channel):
    client = connect()
    client.send_json({"action": "subscribe", "channel": channel})
    assert client.recv_text() == f'{{"action":"subscribed","channel":"{channel}"}}'
    client.send_json({"action": "unsubscribe", "channel": channel})
    assert client.recv_text() == f'{{"action":"unsubscribed","channel":"{channel}"}}'


def test_message_and_ack_frames(connect, channel):
    subscriber, publisher = connect().subscribe(channel), connect()
    for sequence in (1, 2, 3):
        publisher.publish_raw(channel, '{"text":"hi"}', f"id-{sequence}")
        message = recv_action(subscriber, "message")
        ack = recv_action(publisher, "ack")
        assert_frame(
            rf'\{{"action":"message","channel":"{channel}","data":\{{"text":"hi"\}},'
            rf'"id":"id-{sequence}","timestamp":{TIME},"sequence":{sequence}\}}', message,
        )
        assert_frame(
            rf'\{{"action":"ack","id":"id-{sequence}","channel":"{channel}","timestamp":{TIME},"sequence":{sequence}\}}',
            ack,
        )
        assert json.loads(message)["timestamp"] == json.loads(ack)["timestamp"]


def test_ephemeral_message_and_ack_have_no_sequence(connect, channel):
    subscriber, publisher = connect().subscribe(channel), connect()
    publisher.send_json({"action": "publish", "channel": channel, "data": 1, "id": "e", "persist": False})
    assert_frame(
        rf'\{{"action":"message","channel":"{channel}","data":1,"id":"e","timestamp":{TIME}\}}',
        recv_action(subscriber, "message"),
    )
    assert_frame(
        rf'\{{"action":"ack","id":"e","channel":"{channel}","timestamp":{TIME}\}}', recv_action(publisher, "ack")
    )
    # An ephemeral message takes no number: the next stored one is the first.
    assert publisher.publish(channel, 2)["sequence"] == 1


def test_pong_frame(connect):
    client = connect()
    client.send_text('{"action":"ping"}')
    assert_frame(rf'\{{"action":"pong","timestamp":{TIME}\}}', client.recv_text())


def test_error_frame(connect):
    client = connect()
    client.send_json({"action": "subscribe", "channel": "has space"})
    text = client.recv_text()
    assert_frame(
        r'\{"action":"error","error":"[^"\\]+ \[40009\]","code":40009(,"channel":"has space")?\}', text
    )
    client.send_json({"action": "publish", "channel": "has*star", "data": 1, "id": "p1"})
    assert_frame(
        r'\{"action":"error","error":"[^"\\]+ \[40009\]","code":40009(,"channel":"has\*star")?,"id":"p1"\}',
        client.recv_text(),
    )


def test_publisher_that_subscribes_gets_its_own_message(connect, channel):
    client = connect().subscribe(channel)
    client.publish_raw(channel, '"mine"', "own")
    kinds = sorted(json.loads(client.recv_text())["action"] for _ in range(2))
    assert kinds == ["ack", "message"]
    client.nothing_waiting()


PAYLOADS = [
    "null",
    "true",
    "0",
    "-0",
    "-0.0",
    "1.0e+2",
    "1E400",
    "1e-400",
    "123456789012345678901234567890.10",
    '""',
    r'"\u00e9\u0000\ud83d\ude00 \/ \b\f\n\r\t \" \\"',
    r'"\ud800"',
    '"é😀\u2028\x7f"',
    "[]",
    "{}",
    "[1,2,[3,[]],{}]",
    '{"z":1,"a":{"10":1,"9":2},"m":[1.50,2.00]}',
    '{"a":1,"a":2}',
    '{"__proto__":null,"constructor":{"x":1}}',
    '{"action":"subscribe","channel":"x","id":"y","data":{}}',
    '"]}\\",\\"id\\":\\"forged"',
    '"<script>&amp;</script>"',
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payload_bytes_pass_through_untouched(connect, channel, payload):
    """Key order, number spelling, escapes and repeated keys are the application's: they are copied, not re-encoded."""
    client = connect().subscribe(channel)
    client.publish_raw(channel, payload, "raw")
    texts = [client.recv_text(), client.recv_text()]
    message = next(t for t in texts if t.startswith('{"action":"message"'))
    start = f'{{"action":"message","channel":"{channel}","data":'
    assert message.startswith(start + payload + ',"id":"raw","timestamp":'), message


def test_whitespace_inside_the_payload_is_kept(connect, channel):
    client = connect().subscribe(channel)
    payload = '{ "a" :\t[ 1 ,\n 2 ] }'
    client.send_text(f' {{ "id" : "ws", "data" : {payload} ,\r\n"channel":"{channel}", "action":"publish" }} ')
    texts = [client.recv_text(), client.recv_text()]
    message = next(t for t in texts if '"message"' in t)
    assert f'"data":{payload},"id"' in message


def test_payload_over_http_passes_through_untouched(server, connect, channel):
    client = connect().subscribe(channel)
    payload = '{"z":1.0e+2,"a":1E400,"u":"\\u00e9é"}'
    answer = call(server, "POST", f"/api/channels/{channel}/messages", f'{{"data":{payload},"id":"h"}}')
    assert answer.status == 200, answer.body
    assert f'"data":{payload},"id":"h"' in client.recv_text()


def test_strings_of_the_envelope_are_escaped_as_json(connect, channel):
    """Ids may hold quotes and backslashes in escaped form; what comes back must parse to the same string."""
    client = connect().subscribe(channel)
    identifier = 'a"b\\c/'
    ack = client.publish(channel, 1, id=identifier)
    message = client.expect(action="message")
    assert ack["id"] == identifier
    assert message["id"] == identifier


def test_binary_message_with_json_is_accepted_as_text(connect, channel):
    client = connect()
    client.send_frame(BINARY, json.dumps({"action": "subscribe", "channel": channel}).encode())
    assert client.recv_text() == f'{{"action":"subscribed","channel":"{channel}"}}'


def test_integers_are_plain_and_timestamps_do_not_fall(connect, channel):
    """C# and Rust clients read `timestamp` and `sequence` as integers (contract 4.3)."""
    client = connect(key="sk_e2e_server_0123456789").subscribe(channel)
    last = 0
    for n in range(50):
        client.publish_raw(channel, str(n), f"t{n}")
    for n in range(50):
        message = client.expect(action="message")
        assert type(message["timestamp"]) is int and type(message["sequence"]) is int
        assert message["timestamp"] >= last and message["sequence"] == n + 1 and message["data"] == n
        last = message["timestamp"]
