"""Calls of the admin API with the token of the server's data folder."""

import json
import urllib.error
import urllib.request

from . import rest


def admin(server, method, path, body=None, status=None):
    """One call below `/admin`; returns the parsed answer, which must have `status` (absent: 200 or 201)."""
    request = urllib.request.Request(
        "http://%s:%d/admin%s" % (*server.admin, path), method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": "Bearer " + token(server),
            "Content-Type": "application/json",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            got, text = answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            got, text = refused.code, refused.read()
    assert got in ((200, 201) if status is None else (status,)), f"{method} {path}: {got} {text!r}"
    return json.loads(text)


class Listener:
    """A server's admin listener, as `rest.call` takes a server."""

    def __init__(self, server):
        self.address = server.admin


def token(server):
    return (server.data_dir / "admin-token").read_text().strip()


def admin_call(server, method, path, body=None, key=None, **how):
    """One call of any path on the admin listener with the admin token, or with `key` (`""`: none); the whole answer."""
    return rest.call(Listener(server), method, path, body, key=(token(server) if key is None else key) or None, **how)
