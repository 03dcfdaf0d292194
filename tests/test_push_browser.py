"""A real browser: its service worker shows what the server sent to the push service.

A browser's own subscription needs its maker's push service, which a closed network does not have. So the subscription is a
stand-in's, and what it got is handed, decrypted, to Chromium's service worker as a push message (CDP
`ServiceWorker.deliverPushMessage`); that the VAPID key is one that Chromium would subscribe with is asked of it as well.
"""

import http.server
import itertools
import json
import pathlib
import shutil
import subprocess
import threading

import pytest
from websockets.sync.client import connect

from harness.admin import admin
from harness.push_peer import Browser, Provider
from harness.rest import api
from harness.tls import Authority
from harness.wait import wait_until

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

# As the README of sdk-js has it.
WORKER = """
self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));
self.addEventListener('push', (event) => {
  const data = event.data.json();
  event.waitUntil(self.registration.showNotification(data.title, {
    body: data.body, icon: data.icon, badge: data.badge, image: data.image, data: { url: data.url, ...data.data },
  }));
});
"""


@pytest.fixture
def site():
    """A page with a service worker."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_worker = self.path == "/sw.js"
            body = (WORKER if is_worker else "<!doctype html><title>t</title>").encode()
            self.send_response(200)
            self.send_header("content-type", "text/javascript" if is_worker else "text/html")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


class Chromium:
    """One page, over the DevTools protocol."""

    def __init__(self, folder, url):
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
            f"--user-data-dir={folder}", "--remote-debugging-port=0", url,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.ids, self.events = itertools.count(1), []
        port_file = pathlib.Path(folder) / "DevToolsActivePort"
        wait_until(lambda: port_file.exists() and port_file.read_text().count("\n"), 60, "chromium")
        port, path = port_file.read_text().split("\n")[:2]
        self.socket = connect(f"ws://127.0.0.1:{port}{path}", max_size=None, open_timeout=30)
        targets = wait_until(lambda: [t for t in self.call("Target.getTargets")["targetInfos"]
                                      if t["type"] == "page" and t["url"].startswith(url)], 30, "the page")
        attached = self.call("Target.attachToTarget", targetId=targets[0]["targetId"], flatten=True)
        self.session = attached["sessionId"]

    def call(self, method, session=None, **parameters):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        self.socket.send(json.dumps(message))
        while True:
            got = json.loads(self.socket.recv(timeout=60))
            if got.get("id") == number:
                assert "error" not in got, got
                return got["result"]
            self.events.append(got)

    def evaluate(self, script):
        result = self.call("Runtime.evaluate", self.session, expression=f"(async () => {{ {script} }})()",
                           awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def registration(self):
        for event in self.events:
            if event.get("method") == "ServiceWorker.workerRegistrationUpdated":
                for registration in event["params"]["registrations"]:
                    return registration["registrationId"]
        self.evaluate("return 1")  # hears what has come since
        return None

    def end(self):
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.mark.timeout(240)
def test_a_service_worker_shows_the_notification(new_server, site, tmp_path):
    authority = Authority(tmp_path / "ca")
    provider = Provider(authority)
    server = new_server(config=f'[push]\nallow_private = true\nca_file = "{authority.file}"\n')
    web = admin(server, "PUT", "/apps/dev/push/providers/web", {"subject": "mailto:ops@example.org"})
    stand_in = Browser(provider, "chromium")
    body = {"platform": "web", "memberId": "ann", "webPush": stand_in.web_push}
    api(server, "POST", "/api/push/register", body)
    payload = {"title": "Grüße 😀", "body": "from the server", "url": "/inbox", "data": {"n": 7}}
    assert api(server, "POST", "/api/push/send", {"memberId": "ann", "payload": payload})["sent"] == 1
    text = json.dumps(stand_in.read(provider.taken("/push/")[0]))
    provider.end()

    chromium = Chromium(tmp_path / "profile", site)
    try:
        chromium.call("Browser.grantPermissions", origin=site, permissions=["notifications"])
        chromium.call("ServiceWorker.enable", chromium.session)
        loaded = "return document.readyState === 'complete' && 'serviceWorker' in navigator"
        wait_until(lambda: chromium.evaluate(loaded), 30, "the page")
        chromium.evaluate("await navigator.serviceWorker.register('/sw.js'); await navigator.serviceWorker.ready; return 1")
        registration = wait_until(chromium.registration, 30, "the service worker")
        def notifications():
            return chromium.evaluate(
                "const r = await navigator.serviceWorker.ready;"
                "return (await r.getNotifications()).map(n => ({title: n.title, body: n.body, data: n.data}))"
            )

        def shown():
            # The browser drops a message that comes while it starts its notification service.
            chromium.call("ServiceWorker.deliverPushMessage", chromium.session, origin=site + "/",
                          registrationId=registration, data=text)
            return notifications()

        found = wait_until(shown, 30, "the notification", interval=1.0)
        assert found[0] == {"title": "Grüße 😀", "body": "from the server", "data": {"url": "/inbox", "n": 7}}
        refused = chromium.evaluate(
            "const r = await navigator.serviceWorker.ready;"
            f"const key = Uint8Array.from(atob('{web['vapidPublicKey']}'.replace(/-/g, '+').replace(/_/g, '/') + '='),"
            " c => c.charCodeAt(0));"
            "const late = new Promise(done => setTimeout(() => done('no answer'), 5000));"
            "return Promise.race([late, r.pushManager.subscribe({userVisibleOnly: true, applicationServerKey: key})"
            ".then(s => s.endpoint, e => e.name)])"
        )
        # Chromium refuses a key of the wrong form before it asks anybody.
        assert refused not in ("InvalidAccessError", "InvalidCharacterError", "TypeError"), refused
    finally:
        chromium.end()
