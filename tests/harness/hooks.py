"""A back end for webhooks: a real HTTP receiver that checks signatures, with faults on order.

Not a client of Shardwire. What it was sent is in `deliveries`, in the order of arrival; a delivery that it has answered
with success is in `accepted`.
"""

import collections
import hashlib
import hmac
import http.server
import json
import socket
import struct
import threading
import time

from .admin import admin
from .wait import wait_until

CONFIG = "[webhooks]\nallow_private = true\ntimeout_ms = 1000\n"


class Delivery:
    """One request as it came."""

    def __init__(self, headers, body):
        self.headers, self.raw, self.at = headers, body, time.time()
        self.body = json.loads(body)
        self.id = headers["X-WSocket-Delivery"]
        self.events = self.body["events"]

    def signed_by(self, secret):
        """How the README says it: any `v1` that is the HMAC of time, dot and body, and a time that is not old."""
        fields = [part.split("=", 1) for part in self.headers["X-WSocket-Signature"].split(",")]
        stamp = next(value for name, value in fields if name == "t")
        expected = hmac.new(secret.encode(), stamp.encode() + b"." + self.raw, hashlib.sha256).hexdigest()
        fresh = abs(time.time() - int(stamp)) < 300
        return fresh and any(hmac.compare_digest(value, expected) for name, value in fields if name == "v1")

    @property
    def signatures(self):
        return self.headers["X-WSocket-Signature"].count("v1=")


class Receiver:
    """Listens on a port of the kernel's. `faults` are taken one per request; none is success."""

    def __init__(self, delay=0.0):
        self.deliveries, self.accepted = [], []
        self.faults = collections.deque()
        self.always = None
        self.delay = delay
        self.lock = threading.Lock()
        self.under_way = self.most_under_way = 0
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def do_POST(self):
                receiver.serve(self)

            def do_GET(self):
                receiver.serve(self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return "http://127.0.0.1:%d/hook" % self.server.server_port

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- faults ---------------------------------------------------------------------------------------------------

    def serve(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        with self.lock:
            delivery = Delivery(request.headers, body) if body else None
            self.deliveries.append(delivery)
            fault = self.faults.popleft() if self.faults else self.always
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.delay:
                time.sleep(self.delay)
            if fault is None or fault(request) == "accept":
                # What was answered with success may be sent again only if the answer was lost.
                with self.lock:
                    self.accepted.append(delivery)
                if fault is None:
                    answer(request, 200, b"ok")
        finally:
            with self.lock:
                self.under_way -= 1

    # -- what came ------------------------------------------------------------------------------------------------

    def events(self, *kinds, **fields):
        """Accepted events, in order, once per number."""
        with self.lock:
            accepted = list(self.accepted)
        seen, found = set(), []
        for event in (event for delivery in accepted for event in delivery.events):
            if event["number"] not in seen:
                seen.add(event["number"])
                found.append(event)
        wanted = [e for e in found if not kinds or e["event"] in kinds]
        return [e for e in wanted if all(e.get(k) == v for k, v in fields.items())]

    def wait_for(self, least, *kinds, timeout=15, **fields):
        wait_until(lambda: len(self.events(*kinds, **fields)) >= least, timeout, f"{least} events {kinds} {fields}")
        return self.events(*kinds, **fields)


def answer(request, status, body=b"", headers=()):
    request.send_response(status)
    for name, value in headers:
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def status(code, headers=()):
    return lambda request: answer(request, code, b"no", headers)


def reset(request):
    """The connection is reset in place of an answer."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
    request.close_connection = True


def silent(seconds):
    """No answer within the timeout."""

    def fault(request):
        time.sleep(seconds)
        request.close_connection = True

    return fault


def redirect(url):
    return lambda request: answer(request, 302, b"", [("Location", url)])


def slow_body(request):
    """Success at once, and a body that never ends."""
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.close_connection = True
    try:
        for _ in range(20):
            request.wfile.write(b"x")
            request.wfile.flush()
            time.sleep(0.1)
    except OSError:
        pass
    return "accept"


def huge(request):
    """Success, with a body of 64 MiB."""
    request.send_response(200)
    request.send_header("Content-Length", str(64 << 20))
    request.end_headers()
    request.close_connection = True
    try:
        for _ in range(64):
            request.wfile.write(b"x" * (1 << 20))
    except OSError:
        pass
    return "accept"


# -- the admin API --------------------------------------------------------------------------------------------------


def add_webhook(server, url, app="dev", **settings):
    """Makes an endpoint; batches of 20 ms unless said otherwise."""
    settings.setdefault("batch", {"maxMs": 20})
    return admin(server, "POST", f"/apps/{app}/webhooks", {"url": url, **settings}, status=201)


def webhook(server, hook, method="GET", path="", body=None, status=None):
    return admin(server, method, f"/apps/{hook['app']}/webhooks/{hook['id']}{path}", body, status)
