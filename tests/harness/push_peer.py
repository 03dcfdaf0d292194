"""Stand-in providers: one HTTP/1.1 and HTTP/2 server over TLS that is a push service, FCM with its token address, or APNs.

It checks what it can on its own and remembers every request; how it answers is the test's to say (`answer`).
"""

import asyncio
import collections
import json
import socket
import ssl
import threading
import time

import http_ece
import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypercorn.asyncio import serve
from hypercorn.config import Config

from .wait import wait_until

Request = collections.namedtuple("Request", "method path headers body http_version at")


class Provider:
    """Runs until `end()`. `answer(request)` gives `(status, headers, body)`; None: the usual success."""

    def __init__(self, authority, name="provider", client_ca=None):
        cert, key = authority.issue(name)
        self.requests, self.lock = [], threading.Lock()
        self.answer = lambda request: None
        self.delay = 0.0
        self.tokens_given = 0
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.url = f"https://localhost:{self.port}"
        config = Config()
        config.bind = [f"fd://{listener.detach()}"]
        config.certfile, config.keyfile = str(cert), str(key)
        config.alpn_protocols = ["h2", "http/1.1"]
        config.errorlog = config.accesslog = None
        if client_ca:
            config.ca_certs, config.verify_mode = str(client_ca), ssl.CERT_REQUIRED
        self.loop = asyncio.new_event_loop()
        self.stopping = asyncio.Event()
        self.thread = threading.Thread(target=self.run, args=(config,), daemon=True)
        self.thread.start()

    def run(self, config):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(serve(self.app, config, shutdown_trigger=self.stopping.wait))

    def end(self):
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(10)

    async def app(self, scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            if not event.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers, body, scope["http_version"], time.time())
        with self.lock:
            self.requests.append(request)
        if self.delay:
            await asyncio.sleep(self.delay)
        status, more, text = self.answer(request) or self.usual(request)
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        more = [(name.encode(), str(value).encode()) for name, value in more.items()]
        await send({"type": "http.response.start", "status": status, "headers": more})
        await send({"type": "http.response.body", "body": text})

    def usual(self, request):
        if request.path == "/token":
            self.tokens_given += 1
            return 200, {}, {"access_token": f"access-{self.tokens_given}", "expires_in": 3600}
        if request.path.startswith("/3/device/"):
            return 200, {"apns-id": request.headers["apns-id"]}, b""
        if request.path.startswith("/v1/projects/"):
            return 200, {}, {"name": "projects/p/messages/1"}
        return 201, {"location": "/message/1"}, b""

    def taken(self, path=""):
        with self.lock:
            return [request for request in self.requests if request.path.startswith(path)]

    def wait_for(self, count, path="", timeout=20):
        wait_until(lambda: len(self.taken(path)) >= count, timeout, f"{count} requests to {path!r}")
        return self.taken(path)


class Browser:
    """A browser's push subscription: its keys, and how it reads what it gets."""

    def __init__(self, provider, name):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.auth = b"0123456789abcdef"
        point = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        self.public = self.key.public_key().public_bytes(*point)
        self.path = f"/push/{name}"
        self.endpoint = provider.url + self.path

    @property
    def keys(self):
        return {"p256dh": b64(self.public), "auth": b64(self.auth)}

    @property
    def web_push(self):
        return {"endpoint": self.endpoint, "keys": self.keys}

    def read(self, request):
        """The JSON that a service worker would see."""
        assert request.headers["content-encoding"] == "aes128gcm"
        text = http_ece.decrypt(request.body, private_key=self.key, auth_secret=self.auth, version="aes128gcm")
        return json.loads(text)


def b64(data):
    import base64

    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text):
    import base64

    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def check_vapid(request, public_key, audience, subject):
    """RFC 8292, 2 and 3: a JWT for this audience, signed with the key that the browser has subscribed with."""
    scheme, rest = request.headers["authorization"].split(" ", 1)
    assert scheme == "vapid"
    fields = dict(part.strip().split("=", 1) for part in rest.split(","))
    assert fields["k"] == public_key
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), unb64(public_key))
    claims = jwt.decode(fields["t"], key, algorithms=["ES256"], audience=audience, options={"require": ["exp", "aud"]})
    assert claims["sub"] == subject
    assert request.at < claims["exp"] <= request.at + 24 * 3600
    return claims


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class ServiceAccount:
    """Google's file, made here."""

    def __init__(self, provider):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.token_uri = provider.url + "/token"
        self.json = {
            "type": "service_account", "project_id": "proj", "private_key_id": "kid1", "private_key": pem(self.key),
            "client_email": "push@proj.iam.example", "token_uri": self.token_uri,
        }

    def check(self, request):
        """RFC 7523, as Google wants it."""
        from urllib.parse import parse_qs

        form = parse_qs(request.body.decode())
        assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
        assertion = form["assertion"][0]
        assert jwt.get_unverified_header(assertion)["kid"] == "kid1"
        claims = jwt.decode(assertion, self.key.public_key(), algorithms=["RS256"], audience=self.token_uri)
        assert claims["iss"] == self.json["client_email"]
        assert claims["scope"] == "https://www.googleapis.com/auth/firebase.messaging"
        assert 0 < claims["exp"] - claims["iat"] <= 3600


class AppleKey:
    """A `.p8` key, made here."""

    def __init__(self):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.pem = pem(self.key)

    def check(self, request):
        scheme, token = request.headers["authorization"].split(" ")
        assert scheme == "bearer"
        header = jwt.get_unverified_header(token)
        assert (header["alg"], header["kid"]) == ("ES256", "KEY1234567")
        claims = jwt.decode(token, self.key.public_key(), algorithms=["ES256"])
        assert claims["iss"] == "TEAM123456" and abs(claims["iat"] - request.at) < 3600
        return token
