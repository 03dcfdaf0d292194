"""Push: stand-in providers over HTTP/2 and HTTP/1.1 check signatures and decrypt bodies; sends survive a crash."""

import asyncio
import collections
import json
import threading
import time

import pytest
from wsocket.client import PushClient

from harness.admin import admin
from harness.client import Client
from harness.ctl import ctl, ctl_json
from harness.hooks import CONFIG, Receiver, add_webhook
from harness.push_peer import Browser, Provider, check_vapid
from harness.push_world import (  # the fixtures too
    SUBJECT, World, authority, config, make_token, provider, register_many, try_post,
)
from harness.rest import api, call, expect_refusal
from harness.server import CLIENT_KEY, SERVER_KEY
from harness.wait import wait_until


@pytest.fixture
def world(new_server, provider, authority):
    return World(new_server(config=config(authority, "request_timeout_s = 3\n")), provider, authority)


# -- what providers get ---------------------------------------------------------------------------------------------


def test_web_push_is_signed_and_readable_by_the_browser_alone(world):
    browser = world.browser("ann-1", "ann")
    answer = world.post("send", {"memberId": "ann", "payload": {
        "title": "Grüße", "body": "b", "icon": "/i.png", "badge": "/b.png", "image": "/p.png", "url": "/u",
        "data": {"n": [1, None]}, "ttl": 60, "urgency": "high", "topic": "news",
    }})
    assert (answer["sent"], answer["failed"], answer["state"]) == (1, 0, "done")
    assert answer["results"] == [
        {"subscriptionId": browser.id, "memberId": "ann", "platform": "web", "success": True}
    ]
    (request,) = world.provider.taken("/push/")
    assert (request.method, request.http_version, request.path) == ("POST", "2", browser.path)
    check_vapid(request, world.vapid, world.provider.url, SUBJECT)
    headers = request.headers
    assert (headers["urgency"], headers["topic"]) == ("high", "news")
    assert 55 <= int(headers["ttl"]) <= 60
    assert browser.read(request) == {
        "title": "Grüße", "body": "b", "icon": "/i.png", "badge": "/b.png", "image": "/p.png", "url": "/u",
        "data": {"n": [1, None]}, "tag": "news",
    }
    with pytest.raises(Exception):
        Browser(world.provider, "other").read(request)


def test_fcm_gets_the_form_of_http_v1_with_one_access_token(world):
    for n in range(3):
        world.register("fcm", f"token:{n}", "bob")
    answer = world.post("send", {
        "memberId": "bob", "title": "T", "body": "B", "data": {"n": 1}, "ttl": 30, "urgency": "high",
    })
    assert (answer["sent"], answer["failed"]) == (3, 0)
    (asked,) = world.provider.taken("/token")
    world.account.check(asked)
    requests = world.provider.taken("/v1/projects/proj/messages:send")
    assert {json.loads(r.body)["message"]["token"] for r in requests} == {"token:0", "token:1", "token:2"}
    for request in requests:
        assert request.headers["authorization"] == "Bearer access-1"
        message = json.loads(request.body)["message"]
        assert message["notification"] == {"title": "T", "body": "B"}
        assert message["data"] == {"n": "1"}
        assert message["android"]["priority"] == "HIGH" and message["android"]["ttl"] == "30s"


def test_apns_by_token_over_http2(world):
    world.register("apns", "ab" * 32, "cas")
    for urgency in ("normal", "low"):
        answer = world.post("send", {"memberId": "cas", "title": "T", "badge": 4, "ttl": 60, "urgency": urgency,
                                     "collapseId": "c1", "data": {"k": "v"}, "bodyLocKey": "HELLO", "bodyLocArgs": ["x"]})
        assert answer["sent"] == 1, answer
    first, second = world.provider.taken("/3/device/")
    assert first.path == "/3/device/" + "ab" * 32 and first.http_version == "2"
    assert world.apple.check(first) == world.apple.check(second), "the token is used again"
    headers = first.headers
    assert headers["apns-topic"] == "org.example.app" and headers["apns-push-type"] == "alert"
    assert headers["apns-collapse-id"] == "c1" and headers["apns-id"] != second.headers["apns-id"]
    assert (headers["apns-priority"], second.headers["apns-priority"]) == ("10", "5")
    assert abs(int(headers["apns-expiration"]) - first.at - 60) < 5
    assert json.loads(first.body) == {
        "aps": {"alert": {"title": "T", "loc-key": "HELLO", "loc-args": ["x"]}, "sound": "default", "badge": 4}, "k": "v",
    }


def test_apns_by_certificate(world, authority):
    cert, key = authority.issue("apple-client", "org.example.app")
    strict = Provider(authority, "strict", client_ca=authority.file)
    try:
        body = {"topic": "org.example.app", "endpoint": strict.url, "certificate": cert.read_text() + key.read_text()}
        shown = world.set("apns", body)
        assert shown["auth"] == "certificate" and "PRIVATE" not in json.dumps(shown)
        world.register("apns", "cd" * 32, "dan")
        assert world.post("send", {"memberId": "dan", "title": "T"})["sent"] == 1
        (request,) = strict.taken("/3/device/")
        assert "authorization" not in request.headers
    finally:
        strict.end()


def test_a_push_service_of_http_1(world, authority):
    import ssl
    import http.server

    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            seen.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(201)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    cert, key = authority.issue("old")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        browser = Browser(world.provider, "old")
        browser.endpoint = f"https://localhost:{server.server_port}/p/1"
        world.register("web", browser.web_push, "eve")
        assert world.post("send", {"memberId": "eve", "title": "T"})["sent"] == 1
        assert len(seen) == 1
    finally:
        server.shutdown()
        server.server_close()


# -- what providers answer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform, status, body", [
    ("web", 404, b""), ("web", 410, b""),
    ("fcm", 404, {"error": {"status": "NOT_FOUND", "details": [{"errorCode": "UNREGISTERED"}]}}),
    ("apns", 410, {"reason": "Unregistered", "timestamp": int(time.time() * 1000) + 10_000_000}),
    ("apns", 400, {"reason": "BadDeviceToken"}),
])
def test_a_dead_device_is_forgotten(world, platform, status, body):
    browser = Browser(world.provider, "x")
    world.register(platform, browser.web_push if platform == "web" else "ab" * 32, "ann")
    world.provider.answer = lambda r: None if r.path == "/token" else (status, {}, body)
    answer = world.post("send", {"memberId": "ann", "title": "T"})
    assert (answer["sent"], answer["failed"], answer["expired"]) == (0, 1, 1)
    assert answer["results"][0]["error"]
    assert world.subscriptions()["total"] == 0
    again = world.post("send", {"memberId": "ann", "title": "T"})
    assert (again["sent"], again["failed"]) == (0, 0)


def test_back_ends_are_told_of_what_failed(new_server, provider, authority):
    world = World(new_server(config=config(authority) + CONFIG), provider, authority)
    with Receiver() as receiver:
        add_webhook(world.server, receiver.url, events=["push.failed"])
        subscription = world.register("fcm", "token:1", "ann")
        provider.answer = lambda r: None if r.path == "/token" else (400, {}, {"error": {"status": "INVALID_ARGUMENT"}})
        answer = world.post("send", {"memberId": "ann", "title": "T"})
        assert (answer["sent"], answer["failed"]) == (0, 1)
        (event,) = receiver.wait_for(1, "push.failed")
    assert event["clientId"] == "ann"
    assert event["data"] == {
        "jobId": answer["jobId"], "subscriptionId": subscription, "platform": "fcm",
        "error": answer["results"][0]["error"],
    }


def test_a_device_that_registered_after_apple_lost_it_stays(world):
    world.register("apns", "ab" * 32, "ann")
    world.provider.answer = lambda _: (410, {}, {"reason": "Unregistered", "timestamp": 1000})
    assert world.post("send", {"memberId": "ann", "title": "T"})["failed"] == 1
    assert world.subscriptions()["total"] == 1


def test_retry_after_is_honoured_and_the_answer_does_not_wait_for_ever(new_server, provider, authority):
    world = World(new_server(config=config(authority, "wait_ms = 500\n")), provider, authority)
    browser = world.browser("ann-1", "ann")
    first = []

    def busy_once(request):
        if not first:
            first.append(request)
            return 429, {"retry-after": 2}, b""
        return None

    provider.answer = busy_once
    answer = world.post("send", {"memberId": "ann", "title": "T"})
    assert (answer["state"], answer["sent"], answer["pending"]) == ("active", 0, 1)
    wait_until(lambda: world.job(answer["jobId"])["state"] == "done", 15, "the second try")
    assert world.job(answer["jobId"])["sent"] == 1 and world.job(answer["jobId"])["retries"] == 1
    one, two = provider.taken("/push/")
    assert two.at - one.at >= 2
    assert browser.read(two)["title"] == "T"


@pytest.mark.parametrize("platform", ["fcm", "apns"])
def test_credentials_that_have_expired_are_renewed_once(world, platform):
    world.register(platform, "ab" * 32, "ann")
    refused = []

    def answer(request):
        if request.path != "/token" and not refused:
            refused.append(request)
            if platform == "fcm":
                return 401, {}, {"error": {"status": "UNAUTHENTICATED"}}
            return 403, {}, {"reason": "ExpiredProviderToken"}
        return None

    world.provider.answer = answer
    assert world.post("send", {"memberId": "ann", "title": "T"})["sent"] == 1
    if platform == "fcm":
        assert world.provider.tokens_given == 2
    # Refused for good: no loop.
    world.provider.answer = lambda r: None if r.path == "/token" else (
        (401, {}, {"error": {"status": "UNAUTHENTICATED"}}) if platform == "fcm"
        else (403, {}, {"reason": "ExpiredProviderToken"}))
    before = len(world.provider.taken())
    assert world.post("send", {"memberId": "ann", "title": "T"})["failed"] == 1
    assert len(world.provider.taken()) - before <= 4


def test_a_provider_in_trouble_is_left_alone_and_tried_again(world):
    for n in range(40):
        world.register("fcm", f"t{n}", "ann")
    broken = threading.Event()
    world.provider.answer = lambda r: None if r.path == "/token" or broken.is_set() else (503, {}, b"")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(world.post("send", {"memberId": "ann", "title": "T"})))
    thread.start()
    world.provider.wait_for(5, "/v1/")
    tried = len(world.provider.taken("/v1/"))
    broken.set()
    thread.join(30)
    assert answers[0]["sent"] == 40, answers
    assert tried <= 64, "no more than were on their way at once"


def test_nobody_answers(world):
    world.set("apns", {**world.apns_by_token(), "endpoint": "https://localhost:1"})
    world.register("apns", "ab" * 32, "ann")
    answer = world.post("send", {"memberId": "ann", "title": "T", "ttl": 0})
    assert answer["failed"] == 1 and "given up" in answer["results"][0]["error"]


def test_private_addresses_are_refused_by_default(new_server):
    server = new_server(config="")
    admin(server, "PUT", "/apps/dev/push/providers/web", {"subject": SUBJECT})

    class Nowhere:
        url = "https://127.0.0.1"

    for endpoint in ("https://127.0.0.1/x", "https://[::1]/x", "https://169.254.169.254/x", "http://push.example/x"):
        browser = Browser(Nowhere, "x")
        browser.endpoint = endpoint
        answer = call(server, "POST", "/api/push/register", {"platform": "web", "webPush": browser.web_push})
        expect_refusal(answer, 400, 40003)
    # A name is looked up when it is sent to.
    browser.endpoint = "https://localhost:1/x"
    api(server, "POST", "/api/push/register", {"platform": "web", "webPush": browser.web_push, "memberId": "ann"})
    answer = api(server, "POST", "/api/push/send", {"memberId": "ann", "title": "T"})
    assert answer["failed"] == 1 and "public" in answer["results"][0]["error"], answer


# -- SDKs ---------------------------------------------------------------------------------------------------------


def test_the_python_sdk(world):
    browser = Browser(world.provider, "sdk")

    async def use():
        push = PushClient("http://%s:%d" % world.server.address, SERVER_KEY, "dev")
        assert await push.get_vapid_key() == world.vapid
        ids = [
            await push.register_fcm("tok", "ann"), await push.register_apns("ab" * 32, "ann"),
            await push.register_web_push(browser.endpoint, browser.keys, "bob"),
        ]
        assert all(i.startswith("sub_") and len(i) == 26 for i in ids)
        assert (await push.send_to_member("ann", title="T"))["sent"] == 2
        assert (await push.send_to_members(["ann", "bob"], title="T", body="B"))["sent"] == 3
        assert (await push.add_channel("bob", "news"))["updated"] == 1
        assert (await push.broadcast(title="T"))["sent"] == 3
        assert (await push.remove_channel("bob", "news"))["updated"] == 1
        listed = await push.list_subscriptions(member_id="ann", platform="fcm", limit=5)
        assert listed["total"] == 1 and listed["subscriptions"][0]["subscriptionId"] == ids[0]
        stats = await push.get_stats()
        assert stats["subscriptions"] == {"web": 1, "fcm": 1, "apns": 1} and stats["sent"] == 8
        assert await push.delete_subscription(ids[1]) is True
        assert await push.delete_subscription(ids[1]) is False
        assert await push.unregister("ann") == 1
        assert await push.unregister("nobody", "web") == 0

    asyncio.run(use())


def test_other_families_forms(world):
    server = world.server
    browser = Browser(world.provider, "js")
    app = [("X-App-Id", "dev")]
    # js: `provider`, nested content, `?appId=`.
    js = world.post("register", {"provider": "web", "memberId": "anonymous", "webPush": browser.web_push,
                                 "metadata": {"language": "de"}})
    assert api(server, "GET", "/api/push/vapid-key?appId=dev") == {"vapidPublicKey": world.vapid}
    assert world.post("broadcast", {"payload": {"title": "T"}})["sent"] == 1
    # Group B: nested device token, `X-App-Id`, POST to unregister, doubled slashes.
    body = {"memberId": "bo", "platform": "fcm", "subscription": {"deviceToken": "d:1"}}
    api(server, "POST", "//api/push/register", body, headers=app)
    sent = api(server, "POST", "//api/push/send", {"memberId": "bo", "payload": {"title": "T", "ttl": None}}, headers=app)
    assert sent["sent"] == 1
    assert api(server, "POST", "/api/push/unregister", {"memberId": "bo", "platform": "fcm"}, headers=app) == {
        "unregistered": 1, "removed": 1}
    # kotlin deletes with an empty body and a JSON content type.
    empty = [("Content-Type", "application/json"), ("Content-Length", "0")]
    assert api(server, "DELETE", f"/api/push/subscriptions/{js['subscriptionId']}", headers=empty) == {"deleted": True}
    # rust: flat broadcast; go and others: admin path with `broadcast`.
    assert world.post("broadcast", {"title": "T"})["sent"] == 0
    assert api(server, "POST", "/api/admin/apps/dev/push/send", {"broadcast": True, "title": "T"})["sent"] == 0
    assert api(server, "GET", "/api/admin/apps/dev/push/config")["providers"] == {"web": True, "fcm": True, "apns": True}
    preflight = call(server, "OPTIONS", "/api/push/send", key=None, headers=[
        ("Origin", "https://a.example"), ("Access-Control-Request-Method", "DELETE")])
    assert preflight.status == 200 and "DELETE" in preflight.headers["access-control-allow-methods"]


def test_channels_select_and_the_same_device_is_one(world):
    one = world.browser("one", "ann", ["news"])
    world.browser("two", "bob", ["sport"])
    again = world.register("web", one.web_push, "ann")
    assert again == one.id
    listed = world.subscriptions("?memberId=ann")
    assert listed["total"] == 1 and listed["subscriptions"][0]["channels"] == ["news"], "they stay when none is named"
    assert world.post("send", {"channel": "news", "title": "T"})["sent"] == 1
    assert world.post("send", {"memberIds": ["ann", "bob"], "channel": "sport", "title": "T"})["sent"] == 1
    moved = world.register("web", one.web_push, "carl", ["sport"])
    assert moved == one.id and world.subscriptions("?memberId=ann")["total"] == 0
    assert world.post("broadcast", {"title": "T", "channel": "news"})["sent"] == 0
    assert world.post("broadcast", {"title": "T", "channel": "sport"})["sent"] == 2
    page = world.subscriptions("?limit=1")
    rest = world.subscriptions(f"?limit=1&cursor={page['cursor']}")
    assert page["total"] == 2 and "cursor" not in rest
    assert page["subscriptions"][0]["memberId"] != rest["subscriptions"][0]["memberId"]


# -- rights -------------------------------------------------------------------------------------------------------


def test_rights(world):
    server = world.server
    body = {"memberId": "ann", "platform": "fcm", "deviceToken": "t"}
    member = {"memberId": "ann"}
    everything = [("POST", "send"), ("POST", "broadcast"), ("GET", "subscriptions"), ("GET", "stats"), ("GET", "jobs")]

    def tried(method, path, body, key):
        return call(server, method, f"/api/push/{path}", body, key=key).status

    # A client key registers and asks for the key, nothing else.
    assert tried("POST", "register", body, CLIENT_KEY) == 200
    assert tried("GET", "vapid-key", None, CLIENT_KEY) == 200
    for method, path in everything + [("DELETE", "unregister"), ("POST", "channels/add"), ("DELETE", "subscriptions/x")]:
        assert tried(method, path, member, CLIENT_KEY) == 403, path
    # A token acts for its own member.
    ann = make_token(server, sub="ann", cap={"*": ["push-subscribe"]})
    assert tried("POST", "register", body, ann) == 200
    assert tried("POST", "register", {**body, "memberId": "bob"}, ann) == 403
    assert tried("POST", "register", {**body, "memberId": None}, ann) == 403
    assert tried("POST", "channels/add", {**member, "channel": "c"}, ann) == 200
    bobs = world.register("fcm", "b", "bob")
    assert api(server, "DELETE", f"/api/push/subscriptions/{bobs}", key=ann) == {"deleted": False}
    for method, path in everything:
        assert tried(method, path, {**member, "title": "T"}, ann) == 403, path
    some = make_token(server, sub="ann", cap={"news:*": ["push-subscribe", "push-admin"]})
    assert tried("POST", "channels/add", {**member, "channel": "news:a"}, some) == 200
    assert tried("POST", "channels/add", {**member, "channel": "sport"}, some) == 403
    assert tried("POST", "send", {"channel": "news:a", "title": "T"}, some) == 200
    assert tried("POST", "send", {**member, "title": "T"}, some) == 403
    assert tried("POST", "register", body, make_token(server, cap={"*": ["subscribe"]}, sub="ann")) == 403
    # Another app's name beside the key.
    for how in ({"headers": [("X-App-Id", "other")]}, {}):
        path = "/api/push/vapid-key" + ("" if how else "?appId=other")
        expect_refusal(call(server, "GET", path, **how), 403, 40300)
    expect_refusal(call(server, "GET", "/api/push/stats", key=None), 401, 40100)
    # An app may let client keys do the rest of what members do.
    admin(server, "PATCH", "/apps/dev", {"settings": {"pushOpenMembers": True}})
    wait_until(lambda: tried("DELETE", "unregister", member, CLIENT_KEY) == 200, what="the setting")
    assert tried("POST", "send", {**member, "title": "T"}, CLIENT_KEY) == 403


def test_bad_requests_are_told(world):
    for path, body, status, code in [
        ("register", "no json", 400, 40001), ("register", {"platform": "gcm"}, 400, 40003),
        ("send", {"title": "T"}, 400, 40003), ("send", {"memberId": "a", "payload": "x"}, 400, 40003),
        ("send", {"memberId": "a", "body": "x" * 5000}, 413, 41300), ("channels/add", {"memberId": "a"}, 400, 40003),
        ("channels/add", {"memberId": "a", "channel": "a b"}, 400, 40009),
    ]:
        expect_refusal(call(world.server, "POST", f"/api/push/{path}", body), status, code)
    expect_refusal(call(world.server, "GET", "/api/push/jobs/job_x"), 404, 40400)
    expect_refusal(call(world.server, "GET", "/api/push/send"), 405, 40000)


def test_shardwirectl(world, tmp_path):
    server = world.server
    assert ctl(server, "push", "vapid", "--subject", SUBJECT).stdout.strip() == world.vapid
    file = tmp_path / "account.json"
    file.write_text(json.dumps(world.account.json))
    assert "proj" in ctl(server, "push", "set", "fcm", f"@{file}").stdout
    world.set("fcm", {"serviceAccount": world.account.json, "endpoint": world.provider.url})
    world.register("fcm", "t", "ann")
    assert [p["platform"] for p in ctl_json(server, "push", "providers")["providers"]] == ["web", "fcm", "apns"]
    assert "1 sent, 0 failed" in ctl(server, "push", "send", "--member", "ann", "--title", "T").stdout
    assert ctl_json(server, "push", "send", "--all", "--content", '{"body": "B"}')["sent"] == 1
    jobs = ctl_json(server, "push", "jobs")["jobs"]
    assert [job["state"] for job in jobs] == ["done", "done"]
    assert ctl_json(server, "push", "jobs", jobs[0]["jobId"])["results"][0]["success"] is True
    assert "done" in ctl(server, "push", "cancel", jobs[0]["jobId"]).stdout
    assert ctl_json(server, "push", "subscriptions", "--member", "ann")["subscriptions"][0]["platform"] == "fcm"
    assert ctl_json(server, "push", "stats")["sent"] == 2
    ctl(server, "push", "remove", "fcm")
    ctl(server, "push", "jobs", "job_x", code=4)


# -- providers and quotas -----------------------------------------------------------------------------------------


def test_secrets_are_sealed_in_the_store_and_never_shown(world):
    shown = admin(world.server, "GET", "/apps/dev/push/providers")["providers"]
    assert [p["platform"] for p in shown] == ["web", "fcm", "apns"]
    assert shown[0]["vapidPublicKey"] == world.vapid
    # Another subject keeps the key that browsers have subscribed with.
    assert world.set("web", {"subject": "https://example.org"})["vapidPublicKey"] == world.vapid
    secrets = [world.account.json["private_key"].splitlines()[1], world.apple.pem.splitlines()[1]]
    files = [path for path in world.server.data_dir.iterdir() if path.is_file()]
    assert any(path.name == "push.db" for path in files)
    for path in files:
        assert path.stat().st_mode & 0o077 == 0 or not path.name.startswith("push"), path
        for secret in secrets:
            assert secret.encode() not in path.read_bytes(), path
    assert secrets[0] not in json.dumps(shown) and secrets[0] not in world.server.log()
    assert admin(world.server, "DELETE", "/apps/dev/push/providers/fcm") == {"deleted": True}
    world.register("fcm", "t", "ann")
    answer = world.post("send", {"memberId": "ann", "title": "T"})
    assert answer["failed"] == 1 and "no access" in answer["results"][0]["error"]
    admin(world.server, "PUT", "/apps/dev/push/providers/apns", {"topic": "x"}, status=400)


def test_a_removed_app_leaves_nothing(world):
    admin(world.server, "POST", "/apps", {"id": "shop"}, status=201)
    admin(world.server, "PUT", "/apps/shop/push/providers/web", {"subject": SUBJECT})
    body = {"platform": "fcm", "deviceToken": "t", "memberId": "ann"}
    admin(world.server, "POST", "/apps/shop/push/register", body)
    admin(world.server, "DELETE", "/apps/shop")
    admin(world.server, "POST", "/apps", {"id": "shop"}, status=201)
    assert admin(world.server, "GET", "/apps/shop/push/subscriptions")["total"] == 0
    assert admin(world.server, "GET", "/apps/shop/push/providers")["providers"] == []


def test_credentials_by_file(world, tmp_path):
    file = tmp_path / "account.json"
    file.write_text(json.dumps(world.account.json))
    world.set("fcm", {"serviceAccountFile": str(file), "endpoint": world.provider.url})
    world.register("fcm", "t", "ann")
    assert world.post("send", {"memberId": "ann", "title": "T"})["sent"] == 1


def test_a_plans_push_per_month(world):
    admin(world.server, "PUT", "/plans/small", {"pushPerMonth": 2})
    admin(world.server, "PATCH", "/apps/dev", {"settings": {"plan": "small"}})
    for n in range(2):
        world.register("fcm", f"t{n}", "ann")
    wait_until(lambda: api(world.server, "GET", "/api/push/stats")["stats"]["pushPerMonth"] == 2, what="the plan")
    assert world.post("send", {"memberId": "ann", "title": "T"})["sent"] == 2
    expect_refusal(call(world.server, "POST", "/api/push/send", {"memberId": "ann", "title": "T"}), 429, 42912)


def test_a_repeat_with_the_same_idempotency_key_is_the_same_send(world):
    world.register("fcm", "t", "ann")
    key = [("Idempotency-Key", "order-7")]
    one = world.post("send", {"memberId": "ann", "title": "T"}, headers=key)
    two = world.post("send", {"memberId": "ann", "title": "T"}, headers=key)
    assert one["jobId"] == two["jobId"] and two["sent"] == 1 and len(two["results"]) == 1
    assert len(world.provider.taken("/v1/")) == 1


def test_notifications_are_in_the_usage_of_their_app(world):
    for n in range(3):
        world.register("fcm", f"t{n}", "ann")
    world.register("fcm", "gone", "bob")
    world.provider.answer = lambda request: b'"gone"' in request.body and (404, {}, {"error": {
        "status": "NOT_FOUND", "details": [{"errorCode": "UNREGISTERED"}]}})
    assert world.post("send", {"memberId": "ann", "title": "T"})["sent"] == 3
    assert world.post("send", {"memberId": "bob", "title": "T"})["failed"] == 1

    def used(step):
        return admin(world.server, "GET", f"/apps/dev/usage?step={step}")

    wait_until(lambda: used("minute")["total"]["pushFailed"] == 1, what="the failure to be counted", interval=0.1)
    for step in ("minute", "hour", "day"):
        total, series = used(step)["total"], used(step)["series"]
        assert (total["pushSent"], total["pushFailed"]) == (3, 1)
        assert (sum(p["pushSent"] for p in series), sum(p["pushFailed"] for p in series)) == (3, 1)
    shown = ctl(world.server, "usage", "dev", "--step", "day").stdout
    assert "PUSH SENT" in shown and "PUSH FAILED" in shown
    assert ctl_json(world.server, "usage", "dev")["total"]["pushSent"] == 3
    assert world.server.stop() == 0
    world.server.start()
    assert used("day")["total"]["pushSent"] == 3, "it outlives the process"


# -- members who are not connected ---------------------------------------------------------------------------------


def test_absent_members_are_notified_and_messages_gathered(new_server, provider, authority):
    more = '[[namespace]]\npattern = "room:*"\npush_offline = true\npush_debounce_s = 2\n'
    server = new_server(config=config(authority) + more)
    world = World(server, provider, authority)
    here, away, other = (make_token(server, sub=name, cap={"*": ["subscribe", "push-subscribe"]}) for name in
                         ("here", "away", "other"))
    browsers = {}
    for name, channels in (("here", ["room:1"]), ("away", ["room:1"]), ("other", ["room:2"])):
        browsers[name] = world.browser(name, name, channels)
    with Client(server, target=f"/?token={here}"):
        api(server, "POST", "/api/channels/room:1/messages", {"data": {"title": "one", "body": "b"}, "id": "m1"})
        (first,) = provider.wait_for(1, "/push/")
        assert first.path == "/push/away"
        shown = browsers["away"].read(first)
        assert (shown["title"], shown["body"]) == ("one", "b")
        assert shown["data"] == {"channel": "room:1", "messageId": "m1"}
        for n in range(5):
            api(server, "POST", "/api/channels/room:1/messages", {"data": {"push": {"title": f"more {n}"}}})
        both = provider.wait_for(2, "/push/", 20)
        assert browsers["away"].read(both[1])["title"] == "more 4", "the last of those that were held back"
        assert both[1].at - first.at >= 1.5
        # Elsewhere nobody is told.
        api(server, "POST", "/api/channels/other/messages", {"data": "x"})
    wait_until(lambda: sum(server.connections().values()) == 0, what="the connection to be gone")
    api(server, "POST", "/api/channels/room:2/messages", {"data": "text"})
    last = provider.wait_for(3, "/push/", 20)[2]
    assert last.path == "/push/other" and browsers["other"].read(last)["body"] == "text"
    assert len(provider.taken("/push/")) == 3


# -- crash --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_a_broadcast_survives_kill_9_without_loss(world):
    count = 600
    register_many(world, count)
    world.provider.delay = 0.05
    world.set("fcm", {"serviceAccount": world.account.json, "endpoint": world.provider.url, "concurrency": 16})
    begun = []
    thread = threading.Thread(target=lambda: begun.append(try_post(world, "broadcast", {"title": "T"})), daemon=True)
    thread.start()
    for part in (100, 300):
        world.provider.wait_for(part, "/v1/", 60)
        world.server.kill()
        world.server.restart_on_same_port()
    (job,) = api(world.server, "GET", "/api/push/jobs")["jobs"]
    assert job["total"] == count
    wait_until(lambda: world.job(job["jobId"])["state"] == "done", 60, "the rest")
    done = world.job(job["jobId"])
    assert (done["sent"], done["failed"]) == (count, 0)
    got = collections.Counter(json.loads(r.body)["message"]["token"] for r in world.provider.taken("/v1/"))
    assert len(got) == count, "none is lost"
    duplicates = sum(got.values()) - count
    print(f"duplicates: {duplicates}")
    # What was on its way or not yet noted, at two kills: see NOTE_WITHIN.
    assert duplicates <= 2 * 3 * 16, duplicates
    stats = api(world.server, "GET", "/api/push/stats")["stats"]
    assert stats["sent"] == count
    thread.join(10)


def test_a_stop_notes_what_was_on_its_way(world):
    register_many(world, 200)
    world.provider.delay = 0.2
    world.set("fcm", {"serviceAccount": world.account.json, "endpoint": world.provider.url, "concurrency": 20})
    threading.Thread(target=lambda: try_post(world, "broadcast", {"title": "T"}), daemon=True).start()
    world.provider.wait_for(30, "/v1/")
    assert world.server.stop() == 0
    world.server.restart_on_same_port()
    (job,) = api(world.server, "GET", "/api/push/jobs")["jobs"]
    wait_until(lambda: world.job(job["jobId"])["state"] == "done", 30, "the rest")
    got = collections.Counter(json.loads(r.body)["message"]["token"] for r in world.provider.taken("/v1/"))
    assert len(got) == 200 and sum(got.values()) == 200


def test_a_send_can_be_cancelled(world):
    register_many(world, 400)
    world.provider.delay = 0.2
    world.set("fcm", {"serviceAccount": world.account.json, "endpoint": world.provider.url, "concurrency": 10})
    answers = []
    thread = threading.Thread(target=lambda: answers.append(world.post("broadcast", {"title": "T"})))
    thread.start()
    world.provider.wait_for(20, "/v1/")
    (job,) = api(world.server, "GET", "/api/push/jobs")["jobs"]
    assert api(world.server, "DELETE", f"/api/push/jobs/{job['jobId']}") == {"cancelled": True, "state": "cancelled"}
    thread.join(15)
    assert answers[0]["state"] == "cancelled" and answers[0]["sent"] < 400
    assert world.job(job["jobId"])["state"] == "cancelled"
    assert api(world.server, "DELETE", f"/api/push/jobs/{job['jobId']}")["cancelled"] is False
