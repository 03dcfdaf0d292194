"""People who use the dashboard: browsers' cookies and calls of its API, without a browser."""

import contextlib
import dataclasses
import http.client
import json
import re

from . import ctl
from .wait import wait_until

PASSWORD = "wide lamp seven roots"


@dataclasses.dataclass
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: str

    def json(self):
        return json.loads(self.body)


class Person:
    """One browser: keeps cookies and the form token, as a page of the dashboard does."""

    def __init__(self, server, address=None):
        self.server, self.cookies, self.form_token, self.access = server, {}, None, None
        self.address = address or server.admin

    def request(self, method, path, body=None, headers=(), kind="application/json"):
        """One request with the cookies there are; takes those that come."""
        sent = {"User-Agent": "tests", "Connection": "close"}
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{k}={v}" for k, v in self.cookies.items())
        data = None
        if body is not None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["Content-Type"] = kind
        sent.update(headers)
        with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=15)) as connection:
            connection.request(method, path, data, sent)
            got = connection.getresponse()
            answer = Answer(got.status, got.headers, got.read().decode())
        for line in answer.headers.get_all("set-cookie") or ():
            name, _, rest = line.partition("=")
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = rest.split(";")[0]
        return answer

    def call(self, method, path, body=None, status=None, headers=()):
        """A call of the API as a page's script makes it; the parsed answer, which must have `status`."""
        if self.form_token and method != "GET":
            headers = [("X-CSRF-Token", self.form_token), *headers]
        answer = self.request(method, "/dashboard/api" + path, body if method == "GET" or body is not None else {}, headers)
        expected = (200, 201) if status is None else (status,)
        assert answer.status in expected, f"{method} {path}: {answer.status} {answer.body}"
        return answer.json()

    def sign_in(self, email, password=PASSWORD, status=None):
        answer = self.call("POST", "/login", {"email": email, "password": password}, status)
        self.took(answer)
        return answer

    def took(self, answer):
        """Keeps what a sign-in has given."""
        self.form_token = answer.get("formToken", self.form_token)
        self.access = answer.get("accessToken", self.access)


def letter(server, to, subject, after=0):
    """The link of the last letter to somebody: without a mail server they are in the log."""
    def found():
        for line in reversed(server.log()[after:].splitlines()):
            if to in line and subject in line and "?token=" in line:
                return re.search(r"https?://\S+\?token=[\w-]+", line).group(0)
        return None

    return wait_until(found, 10, f"a letter to {to}: {subject}")


def link_token(link):
    return link.split("token=")[1]


def operator(server, email="ann@example.com", name="Ann"):
    """The first account, made on the command line; signed in."""
    ctl.ctl(server, "accounts", "create", email, "--name", name, "--operator", "--password-file", "-", stdin=PASSWORD + "\n")
    person = Person(server)
    person.sign_in(email)
    return person


def member(owner, team, email, role, name="Somebody"):
    """Somebody who is invited to a team and joins it; signed in."""
    before = len(owner.server.log())
    owner.call("POST", f"/teams/{team}/invitations", {"email": email, "role": role})
    token = link_token(letter(owner.server, email, "Invitation", before))
    person = Person(owner.server)
    person.took(person.call("POST", "/join", {"token": token, "name": name, "password": PASSWORD}))
    return person
