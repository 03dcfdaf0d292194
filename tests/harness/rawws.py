"""A WebSocket client over a plain blocking socket: it sends exactly the bytes it is told to.

It is *not* tolerant: any server frame that RFC 6455 or the contract forbids (masked, RSV bits, fragments) is an
assertion failure, so every test that reads through it also checks the server's framing.
"""

import base64
import dataclasses
import hashlib
import json
import os
import socket
import struct
import time

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TIMEOUT = 10.0


class Ended(Exception):
    """The peer closed TCP. `reset` tells RST from FIN."""

    def __init__(self, reset=False):
        super().__init__("connection reset" if reset else "end of stream")
        self.reset = reset


class Refused(Exception):
    """The upgrade was answered with another status than 101."""

    def __init__(self, answer):
        super().__init__(f"{answer.status} {answer.body!r}")
        self.answer = answer


@dataclasses.dataclass
class Answer:
    """An HTTP response: header names in lower case, the last value wins."""

    status: int
    reason: str
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)


@dataclasses.dataclass
class Frame:
    opcode: int
    payload: bytes

    @property
    def text(self):
        return self.payload.decode("utf-8")

    @property
    def close_code(self):
        return struct.unpack("!H", self.payload[:2])[0] if len(self.payload) >= 2 else None

    @property
    def close_reason(self):
        return self.payload[2:].decode("utf-8")


def apply_mask(payload, mask):
    if not payload:
        return b""
    size = len(payload)
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def encode_frame(opcode, payload=b"", fin=True, rsv=0, mask=True, length=None, form=None):
    """One frame as bytes.

    mask: True for a random mask, four bytes for that one, None for none. length: the length announced, if it is not
    the payload's. form: 7, 16 or 64 to force the length's encoding.
    """
    announced = len(payload) if length is None else length
    form = form or (7 if announced < 126 else 16 if announced < 1 << 16 else 64)
    masked = 0x80 if mask is not None else 0
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if form == 7:
        head += bytes([masked | announced])
    elif form == 16:
        head += bytes([masked | 126]) + struct.pack("!H", announced)
    else:
        head += bytes([masked | 127]) + struct.pack("!Q", announced)
    if mask is None:
        return head + payload
    key = os.urandom(4) if mask is True else mask
    return head + key + apply_mask(payload, key)


def close_payload(code, reason=""):
    return struct.pack("!H", code) + reason.encode()


def upgrade_head(address, target, headers=(), key=None, drop=(), method="GET", version="HTTP/1.1"):
    """The bytes of an upgrade request. `drop`: names of standard headers to leave out; `headers`: (name, value) more."""
    standard = [
        ("Host", "%s:%d" % address),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key or base64.b64encode(os.urandom(16)).decode()),
        ("Sec-WebSocket-Version", "13"),
    ]
    replaced = {name.lower() for name, _ in headers}
    lines = [f"{method} {target} {version}"]
    lines += [f"{n}: {v}" for n, v in standard if n not in drop and n.lower() not in replaced]
    lines += [f"{n}: {v}" for n, v in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class RawSocket:
    """A TCP connection with a receive buffer and deadlines."""

    def __init__(
        self, address, timeout=TIMEOUT, receive_buffer=None, bind=None, tls=None, server_name="localhost", session=None
    ):
        self.timeout = timeout
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if bind:
            self.socket.bind((bind, 0))
        self.socket.settimeout(timeout)
        self.socket.connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            # An end without TLS's own goodbye is an error then.
            self.socket = tls.wrap_socket(
                self.socket, server_hostname=server_name, suppress_ragged_eofs=False, session=session
            )
        self.address = address
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.drop()

    def send(self, data):
        self.socket.settimeout(self.timeout)
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as gone:
            raise Ended(reset=True) from gone

    def fill(self, size, timeout=None):
        """Have at least `size` bytes in the buffer."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while len(self.buffer) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"nothing from the server (have {bytes(self.buffer[:80])!r})")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError as gone:
                raise Ended(reset=True) from gone
            if not data:
                raise Ended()
            self.buffer += data

    def take(self, size, timeout=None):
        self.fill(size, timeout)
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_answer(self, timeout=None, head_only=False):
        """Read one HTTP response with Content-Length, chunked, or up-to-end framing."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while b"\r\n\r\n" not in self.buffer:
            self.fill(len(self.buffer) + 1, max(0.0, deadline - time.monotonic()))
        head, _, _ = bytes(self.buffer).partition(b"\r\n\r\n")
        del self.buffer[: len(head) + 4]
        first, *rest = head.decode("latin-1").split("\r\n")
        version, status, *reason = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        headers = {}
        for line in rest:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        status = int(status)
        if head_only or status == 101 or status == 204 or status == 304:
            body = b""
        elif "content-length" in headers:
            body = self.take(int(headers["content-length"]), max(0.0, deadline - time.monotonic()))
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(self._line(), 16)
                chunk = self.take(size + 2)[:-2]
                if size == 0:
                    break
                body += chunk
        else:
            body = self.read_to_end(max(0.0, deadline - time.monotonic()))
        return Answer(status, "".join(reason), headers, body)

    def _line(self):
        while b"\r\n" not in self.buffer:
            self.fill(len(self.buffer) + 1)
        line, _, _ = bytes(self.buffer).partition(b"\r\n")
        del self.buffer[: len(line) + 2]
        return line

    def read_to_end(self, timeout=None):
        """Everything up to the peer's FIN or RST."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        try:
            while True:
                self.fill(len(self.buffer) + 1, max(0.0, deadline - time.monotonic()))
        except Ended:
            data = bytes(self.buffer)
            self.buffer.clear()
            return data

    def expect_end(self, timeout=None):
        """The peer must close TCP without another byte."""
        rest = self.read_to_end(timeout)
        assert rest == b"", f"bytes before the end: {rest[:200]!r}"

    def local_port(self):
        return self.socket.getsockname()[1]

    def drop(self):
        self.socket.close()

    def reset(self):
        """Close with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


class RawWs(RawSocket):
    """An open WebSocket. Construction performs the handshake or raises `Refused`."""

    def __init__(self, address, target="/", headers=(), **options):
        super().__init__(address, **options)
        try:
            self.handshake(target, headers)
        except BaseException:
            self.drop()
            raise

    def handshake(self, target, headers=()):
        key = base64.b64encode(os.urandom(16)).decode()
        self.send(upgrade_head(self.address, target, headers, key))
        self.answer = self.read_answer()
        if self.answer.status != 101:
            raise Refused(self.answer)
        check_accept(self.answer, key)

    # -- sending --------------------------------------------------------------------------------------------------

    def send_frame(self, opcode, payload=b"", **how):
        self.send(encode_frame(opcode, payload, **how))

    def send_text(self, text, **how):
        self.send_frame(TEXT, text.encode() if isinstance(text, str) else text, **how)

    # -- receiving ------------------------------------------------------------------------------------------------

    def recv_frame(self, timeout=None):
        """The next frame of any kind; raises `Ended` at the end of the stream."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        left = lambda: max(0.001, deadline - time.monotonic())  # noqa: E731
        self.fill(2, left())
        first, second = self.buffer[0], self.buffer[1]
        assert first & 0x70 == 0, f"RSV bits from the server: {first:#x}"
        assert second & 0x80 == 0, "masked frame from the server"
        assert first & 0x80, "fragment from the server"
        size, offset = second & 0x7F, 2
        if size == 126:
            self.fill(4, left())
            size, offset = struct.unpack("!H", self.buffer[2:4])[0], 4
            assert size > 125, "length not in the shortest form"
        elif size == 127:
            self.fill(10, left())
            size, offset = struct.unpack("!Q", self.buffer[2:10])[0], 10
            assert size > 0xFFFF, "length not in the shortest form"
        self.fill(offset + size, left())
        payload = bytes(self.buffer[offset : offset + size])
        del self.buffer[: offset + size]
        opcode = first & 0x0F
        assert opcode in (TEXT, BINARY, CLOSE, PING, PONG), f"opcode {opcode:#x} from the server"
        return Frame(opcode, payload)

    def recv_text(self, timeout=None):
        frame = self.recv_frame(timeout)
        assert frame.opcode == TEXT, f"{frame} where text was expected (close code {frame.close_code})"
        return frame.text

    def expect_pong(self, payload=b"", timeout=None):
        frame = self.recv_frame(timeout)
        assert (frame.opcode, frame.payload) == (PONG, payload)

    def expect_close(self, code, timeout=None, skip_text=True):
        """The server must send a Close frame with `code` and then close TCP. Returns the Close frame."""
        while True:
            frame = self.recv_frame(timeout)
            if frame.opcode != TEXT or not skip_text:
                break
        assert frame.opcode == CLOSE, f"{frame} where Close {code} was expected"
        assert frame.close_code == code, f"close code {frame.close_code} {frame.payload[2:]!r}, expected {code}"
        _ = frame.close_reason  # must be UTF-8
        try:
            self.send_frame(CLOSE, frame.payload[:2])
        except Ended:
            pass
        self.expect_end(timeout)
        return frame

    def expect_bare_end(self, timeout=None):
        """The server must close TCP without a Close frame; text before it is returned."""
        texts = []
        while True:
            try:
                frame = self.recv_frame(timeout)
            except Ended:
                return texts
            assert frame.opcode != CLOSE, f"Close {frame.close_code} where a bare TCP close was expected"
            texts.append(frame.payload)

    def close(self, code=1000):
        """The clean way out: Close, its echo, the end of the stream."""
        self.send_frame(CLOSE, close_payload(code) if code else b"")
        while True:
            frame = self.recv_frame()
            if frame.opcode == CLOSE:
                break
        assert frame.close_code == code, f"echoed {frame.close_code}, sent {code}"
        self.expect_end()
        self.drop()


def accept_for(key):
    return base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()


def check_accept(answer, key):
    """The 101 answer must be right, and select neither extension nor subprotocol (contract 2.1)."""
    assert answer.headers.get("upgrade", "").lower() == "websocket", answer.headers
    assert answer.headers.get("connection", "").lower() == "upgrade", answer.headers
    assert answer.headers.get("sec-websocket-accept") == accept_for(key), answer.headers
    assert "sec-websocket-extensions" not in answer.headers, answer.headers
    assert "sec-websocket-protocol" not in answer.headers, answer.headers
