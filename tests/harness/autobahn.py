"""Autobahn's fuzzing client on Python 3: the case definitions of the PyPI package `autobahntestsuite`, run unchanged.

The package itself needs Python 2 (and pins of that time). Its cases are small classes that call a protocol object, so
this module loads their sources with a handful of textual substitutions and gives them a protocol object of our own.
Strings keep their Python 2 meaning by way of Latin-1: one character is one byte, in the sources and on the wire.

What is *not* taken over: compression (cases 12 and 13), reports, the fuzzing server.
"""

import asyncio
import base64
import importlib.metadata
import os
import pathlib
import re
import struct
import types

from .rawws import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, encode_frame

# Seconds for the server to answer a Close and to close TCP; Autobahn's own 1 s leaves no room on a busy machine.
CLOSE_TIMEOUT = 5.0
# Cases by category, counted in the package: a case that fails to load must not go unnoticed.
EXPECTED_COUNTS = {1: 16, 2: 11, 3: 7, 4: 10, 5: 20, 6: 145, 7: 37, 9: 54, 10: 1}

SUBSTITUTIONS = [
    (r"^from (case|autobahn|zope|twisted)\S* import .*$", ""),  # names are provided below
    (r"^import pickle$", ""),
    (r"^(\s*)print\b.*$", r"\1pass"),
    (r"\(object, Case, \)", "(Case, )"),  # old-style classes have no MRO conflict
    (r"len\(self\.payload\) / ", "len(self.payload) // "),
    (r"pickle\.dumps\(obj1\) == pickle\.dumps\(obj2\)", "obj1 == obj2"),
]


class States:
    """The names that cases read from autobahn's `WebSocketProtocol`."""

    STATE_CLOSED, STATE_CONNECTING, STATE_CLOSING, STATE_OPEN = range(4)
    CLOSE_STATUS_CODE_NORMAL = 1000
    CLOSE_STATUS_CODE_GOING_AWAY = 1001
    CLOSE_STATUS_CODE_PROTOCOL_ERROR = 1002
    CLOSE_STATUS_CODE_INVALID_PAYLOAD = 1007
    MESSAGE_TYPE_TEXT, MESSAGE_TYPE_BINARY = 1, 2


class Utf8Validator:
    """As much of autobahn's validator as the construction of case 6.6 needs: valid so far, ends on a code point."""

    def reset(self):
        pass

    def validate(self, text):
        data = text.encode("latin-1")
        try:
            data.decode("utf-8")
            return True, True
        except UnicodeDecodeError as error:
            return error.end == len(data) and error.reason == "unexpected end of data", False


def load_cases(categories):
    """`{case id: class}` of the wanted categories, in Autobahn's order."""
    files = importlib.metadata.files("autobahntestsuite")
    anchor = next(f for f in files if str(f).endswith("case/case.py"))
    folder = pathlib.Path(anchor.locate()).parent
    shims = {
        "xrange": range,
        "unichr": chr,
        "WebSocketProtocol": States,
        "Utf8Validator": Utf8Validator,
    }
    hex_shim = types.SimpleNamespace(b2a_hex=lambda s: s.encode("latin-1").hex())
    exports = dict(shims)
    numbered = [p for p in folder.glob("case*.py") if file_category(p) in categories and p.name != "case9_9_1.py"]
    for path in [folder / "case.py", *sorted(numbered, key=file_order)]:
        source = path.read_text("latin-1")
        source = source.replace("\r\n", "\n").partition("\nif __name__ == ")[0]
        for pattern, replacement in SUBSTITUTIONS:
            source = re.sub(pattern, replacement, source, flags=re.M)
        source = re.sub(r"^import binascii$", "", source, flags=re.M)
        # Each file gets a namespace of its own: several define module-level `onOpen`, `__init__`, `tests`.
        namespace = {**exports, "binascii": hex_shim, "__name__": path.stem}
        exec(compile(source, str(path), "exec"), namespace)
        exports.update({n: v for n, v in namespace.items() if n.startswith("Case")})
    cases = {}
    for name, value in exports.items():
        for klass in value if isinstance(value, list) else [value]:
            if isinstance(klass, type) and re.fullmatch(r"Case\d+(_\d+)+", klass.__name__):
                cases[klass.__name__[4:].replace("_", ".")] = klass
    return dict(sorted(cases.items(), key=lambda item: [int(n) for n in item[0].split(".")]))


def file_category(path):
    match = re.match(r"case(\d+)_", path.name)
    return int(match[1]) if match else None


def file_order(path):
    return [int(n) if n.isdigit() else 999 for n in re.findall(r"\d+|[xX]", path.stem)]


class FuzzingClient(States):
    """The protocol object of one case: sends what the case says, judges the connection as autobahn's client does."""

    def __init__(self, case_class, address):
        self.address = address
        self.state = self.STATE_CONNECTING
        self.connectionWasOpen = False
        self.closedByMe = self.failedByMe = self.droppedByMe = self.wasClean = False
        self.remoteCloseCode = self.localCloseCode = self.localCloseReason = None
        self.autoFragmentSize = 0
        self.createWirelog = True
        self.txFrameStats = {}
        self.factory = types.SimpleNamespace(isServer=False)
        self.violation = None  # what the server did that RFC 6455 forbids
        self.handles = []
        self.message = None  # (opcode, parts) of a fragmented message being received
        self.sending = None  # opcode of a message being sent piece by piece
        self.case = case_class(self)

    # -- the run --------------------------------------------------------------------------------------------------

    async def run(self, timeout):
        """(behavior, behaviorClose, result text)."""
        try:
            async with asyncio.timeout(timeout):
                await self.converse()
        except TimeoutError:
            self.violation = f"not over after {timeout} s"
        self.state = self.STATE_CLOSED
        for handle in self.handles:
            handle.cancel()
        self.case.onConnectionLost(self.failedByMe)
        if self.violation:
            return "FAILED", "FAILED", self.violation
        return self.case.behavior, self.case.behaviorClose, f"{self.case.result} {self.case.resultClose}"

    async def converse(self):
        reader, self.writer = await asyncio.open_connection(*self.address, limit=1 << 25)
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            self.writer.write(
                (
                    f"GET / HTTP/1.1\r\nHost: {self.address[0]}:{self.address[1]}\r\nUpgrade: websocket\r\n"
                    f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
                ).encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101 "):
                self.violation = f"no upgrade: {head[:60]!r}"
                return
            self.state, self.connectionWasOpen = self.STATE_OPEN, True
            self.case.onOpen()
            while self.state != self.STATE_CLOSED:
                await self.receive(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the server closed TCP; whether that was right is the case's to say
        finally:
            self.writer.close()

    async def receive(self, reader):
        first, second = await reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            size = struct.unpack("!H", await reader.readexactly(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", await reader.readexactly(8))[0]
        payload = await reader.readexactly(size)
        if first & 0x70 or second & 0x80:
            return self.refuse(f"RSV bits or mask in {first:#x} {second:#x}")
        opcode, final = first & 0x0F, bool(first & 0x80)
        if opcode in (PING, PONG, CLOSE) and (size > 125 or not final):
            return self.refuse("control frame too long or fragmented")
        match opcode:
            case 0x1 | 0x2 | 0x0:
                self.on_data(opcode, final, payload)
            case 0x9:
                self.sendFrame(opcode=PONG, payload=payload.decode("latin-1"))
                self.case.onPing(payload.decode("latin-1"))
            case 0xA:
                self.case.onPong(payload.decode("latin-1"))
            case 0x8:
                self.on_close(payload)
            case _:
                self.refuse(f"opcode {opcode}")

    def on_data(self, opcode, final, payload):
        if (opcode == CONTINUATION) != (self.message is not None):
            return self.refuse("fragments out of order")
        if self.message is None:
            self.message = opcode, []
        self.message[1].append(payload)
        if not final:
            return None
        opcode, parts = self.message
        self.message = None
        data = b"".join(parts)
        if opcode == TEXT:
            try:
                data.decode("utf-8")
            except UnicodeDecodeError:
                return self.refuse("text that is not UTF-8")
        if not self.failedByMe:
            self.case.onMessage(data.decode("latin-1"), opcode == BINARY)
        return None

    def on_close(self, payload):
        if len(payload) == 1:
            return self.refuse("Close with one byte")
        if payload:
            self.remoteCloseCode = struct.unpack("!H", payload[:2])[0]
            code = self.remoteCloseCode
            if not (3000 <= code <= 4999 or code in range(1000, 1015) and code not in (1004, 1005, 1006)):
                return self.refuse(f"close code {code}")
            try:
                payload[2:].decode("utf-8")
            except UnicodeDecodeError:
                return self.refuse("close reason that is not UTF-8")
        if self.state == self.STATE_OPEN:
            self.send_close_frame(self.remoteCloseCode, None, reply=True)
        self.wasClean = True
        # It is the server's to close TCP (RFC 6455, 7.1.1).
        self.later(CLOSE_TIMEOUT, self.drop)
        return None

    def refuse(self, what):
        self.violation = what
        self.drop()

    def drop(self):
        if self.state != self.STATE_CLOSED:
            self.droppedByMe = True
            self.state = self.STATE_CLOSED
            self.writer.transport.abort()

    def later(self, delay, function, *arguments):
        self.handles.append(asyncio.get_running_loop().call_later(delay, function, *arguments))

    # -- what cases call ----------------------------------------------------------------------------------------------

    def enableWirelog(self, enable):
        self.createWirelog = enable

    def sendFrame(self, opcode, payload="", fin=True, rsv=0, mask=None, payload_len=None, chopsize=None, sync=False):
        data = payload.encode("latin-1")
        if payload_len is not None:
            data = (data * (payload_len // len(data) + 1))[:payload_len]
        self.txFrameStats[opcode] = self.txFrameStats.get(opcode, 0) + 1
        key = mask.encode("latin-1") if mask else True
        self.write(encode_frame(opcode, data, fin=fin, rsv=rsv, mask=key), chopsize)

    def sendMessage(self, payload, isBinary=False, fragmentSize=None, sync=False, doNotCompress=False):
        size = fragmentSize or self.autoFragmentSize or max(1, len(payload))
        pieces = [payload[i : i + size] for i in range(0, len(payload), size)] or [""]
        stream = []
        for position, piece in enumerate(pieces):
            opcode = (BINARY if isBinary else TEXT) if position == 0 else CONTINUATION
            self.txFrameStats[opcode] = self.txFrameStats.get(opcode, 0) + 1
            stream.append(encode_frame(opcode, piece.encode("latin-1"), fin=position == len(pieces) - 1))
        self.write(b"".join(stream))

    def beginMessage(self, isBinary=False):
        self.sending = BINARY if isBinary else TEXT

    def beginMessageFrame(self, length):
        self.write(encode_frame(self.sending, b"", fin=False, length=length, mask=b"\0\0\0\0"))
        self.sending = CONTINUATION

    def sendMessageFrameData(self, payload, sync=False):
        self.write(payload.encode("latin-1"))  # under the all-zero mask of `beginMessageFrame`

    def endMessage(self):
        self.write(encode_frame(CONTINUATION, b""))
        self.sending = None

    def sendClose(self, code=None, reason=None):
        self.sendCloseFrame(code, reason)

    def sendCloseFrame(self, code=None, reasonUtf8=None, isReply=False):
        self.send_close_frame(code, reasonUtf8, reply=isReply)

    def send_close_frame(self, code, reason, reply):
        if self.state != self.STATE_OPEN:
            return
        data = (struct.pack("!H", code) if code is not None else b"") + (reason or "").encode("latin-1")
        self.state = self.STATE_CLOSING
        self.closedByMe = not reply
        self.localCloseCode, self.localCloseReason = code, reason
        self.write(encode_frame(CLOSE, data))
        if not reply:
            self.later(CLOSE_TIMEOUT, self.drop)

    def continueLater(self, delay, function, tag=None):
        self.later(delay, lambda: self.state != self.STATE_CLOSED and function())

    def killAfter(self, delay):
        self.later(delay, self.fail)

    def closeAfter(self, delay):
        self.later(delay, self.sendClose)

    def fail(self):
        if self.state != self.STATE_CLOSED:
            self.failedByMe = True
            self.send_close_frame(self.CLOSE_STATUS_CODE_GOING_AWAY, "Going Away", reply=False)

    def write(self, data, chopsize=None):
        if self.state == self.STATE_CLOSED:
            return
        for start in range(0, len(data), chopsize or len(data)):
            self.writer.write(data[start : start + (chopsize or len(data))])


def run_cases(cases, address, at_once, timeout):
    """`{case id: (behavior, behaviorClose, text)}`, `at_once` cases side by side."""

    async def main():
        gate = asyncio.Semaphore(at_once)

        async def one(klass):
            async with gate:
                return await FuzzingClient(klass, address).run(timeout)

        results = await asyncio.gather(*(one(klass) for klass in cases.values()))
        return dict(zip(cases, results, strict=True))

    return asyncio.run(main())
