"""HTTP calls to the server, one connection each unless a connection is given."""

import json

from .rawws import RawSocket
from .server import SERVER_KEY


def request_bytes(address, method, path, body=None, key=None, headers=(), close=True):
    lines = [f"{method} {path} HTTP/1.1", "Host: %s:%d" % address]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if close:
        lines.append("Connection: close")
    lines += [f"{n}: {v}" for n, v in headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b"")


def call(server, method, path, body=None, key=SERVER_KEY, headers=(), connection=None, tls=None):
    """One call. `body`: bytes or str as they are, anything else as JSON. Returns the `Answer`."""
    if body is not None and not isinstance(body, (bytes, str)):
        body = json.dumps(body)
    if isinstance(body, str):
        body = body.encode()
    request = request_bytes(server.address, method, path, body, key, headers, close=connection is None)
    if connection is not None:
        connection.send(request)
        return connection.read_answer(head_only=method == "HEAD")
    with RawSocket(server.address, tls=tls) as one:
        one.send(request)
        return one.read_answer(head_only=method == "HEAD")


def api(server, method, path, body=None, status=200, **how):
    """A call whose answer must be JSON with `status`; returns the parsed body."""
    answer = call(server, method, path, body, **how)
    assert answer.status == status, f"{answer.status} {answer.body!r}, expected {status}"
    assert answer.headers["content-type"].split(";")[0] == "application/json", answer.headers
    return answer.json()


def expect_refusal(answer, status, code):
    """The D10 error form: `{"error": text, "code": code, "status": status}` and nothing more."""
    assert answer.status == status, f"{answer.status} {answer.body!r}, expected {status}/{code}"
    assert answer.headers["content-type"].split(";")[0] == "application/json", answer.headers
    body = answer.json()
    assert sorted(body) == ["code", "error", "status"], body
    assert (body["code"], body["status"]) == (code, status), body
    assert isinstance(body["error"], str) and body["error"], body
    return body
