"""Rates by client, channel, app and address, over all shards; what is refused says so and counts nowhere."""

import base64
import http.client
import json
import time
import uuid

import jwt
import pytest
from harness.admin import admin
from harness.client import Client, open_on_every_shard
from harness.rawws import Ended, Refused
from harness.rest import call
from harness.server import SERVER_KEY
from harness.wait import wait_until

JWT_SECRET = "a-secret-of-these-tests-0123456789abcdef"

# The clients of these tests may name themselves; each limit is far below what the tests send at once.
NAMED = "[websocket]\nself_asserted_ids = true\n"


def publish_all(clients, channel, count):
    """`count` publishes from the clients in turn; `(acked, refused)` ids, once each is answered."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    for n, id in enumerate(ids):
        client = clients[n % len(clients)]
        client.send_json({"action": "publish", "channel": channel, "data": n, "id": id, "persist": False})
    acked, refused = set(), {}
    for n in range(count):
        client = clients[n % len(clients)]
        frame = client.recv_json()
        while frame["action"] not in ("ack", "error"):
            frame = client.recv_json()
        if frame["action"] == "ack":
            acked.add(frame["id"])
        else:
            refused[frame["id"]] = frame["code"]
    assert acked | set(refused) == set(ids), "each publish is answered with its id"
    return acked, refused


def publish_on(clients, channel, rounds=60):
    """As much as is admitted while more is wanted for a while; `(number, codes of the refusals)`."""
    count, codes = 0, set()
    for _ in range(rounds):
        acked, refused = publish_all(clients, channel, 4)
        count += len(acked)
        codes |= set(refused.values())
    return count, codes


def named(server, name):
    return lambda: Client(server, target=f"/?key={server.env['SHARDWIRE_DEV_KEY']}&clientId={name}")


def test_a_client_id_has_one_rate_over_all_shards(new_server):
    server = new_server(config=NAMED + "[limits.rates.publish]\nclient = { per_window = 40, window_ms = 60000 }\n")
    clients = list(open_on_every_shard(server, named(server, "ann")).values())
    admitted, codes = publish_on(clients, "c")
    # Debt of the shard that is not home to it: an eighth of the burst.
    assert 40 - 4 <= admitted <= 40 + 5 and codes == {42900}, admitted
    other = named(server, "bob")()
    assert publish_on([other], "c", 5)[0] == 20, "another client has a rate of its own"


def test_an_app_has_one_rate_over_all_shards_and_back_ends_are_in_it(new_server):
    server = new_server(config="[limits.rates.publish]\napp = { per_window = 60, window_ms = 60000 }\n")
    admin(server, "POST", "/apps", {"id": "other"})
    key = admin(server, "POST", "/apps/other/keys", {"kind": "server"})["key"]
    clients = list(open_on_every_shard(server, lambda: Client(server, key=SERVER_KEY)).values())
    admitted, codes = publish_on(clients, "c")
    assert 60 - 4 <= admitted <= 60 + 8 and codes == {42900}, admitted
    other = Client(server, key=key)
    assert publish_on([other], "c", 10)[0] == 40, "another app has a rate of its own"
    limited = sum(v for labels, v in server.metrics().series("shardwire_rate_limited_total")
                  if (labels["class"], labels["scope"]) == ("publish", "app"))
    assert limited == 240 - admitted


def test_a_channel_of_a_namespace_has_one_rate_exactly(new_server):
    config = '[[namespace]]\npattern = "slow:*"\nrates.publish.channel = { per_window = 7, window_ms = 60000 }\n'
    server = new_server(config=config)
    clients = list(open_on_every_shard(server, lambda: Client(server, key=SERVER_KEY)).values())
    acked, refused = publish_all(clients, "slow:a", 30)
    assert len(acked) == 7 and set(refused.values()) == {42900}
    assert len(publish_all(clients, "slow:b", 5)[0]) == 5
    assert len(publish_all(clients, "fast", 30)[0]) == 30


def presence_on(clients, channel, actions):
    """Actions by the clients in turn; how many were let through, and the codes of the rest."""
    admitted, codes = 0, set()
    for n, action in enumerate(actions):
        client = clients[n % len(clients)]
        client.send_json({"action": f"presence.{action}", "channel": channel})
        # Behind it, an answer that is no notice: what is refused is told before.
        client.send_json({"action": "presence.get", "channel": "uncounted:marker"})
        refused = None
        while True:
            frame = client.recv_json()
            if frame["action"] == "error":
                refused = frame
            if frame["action"] == "presence.members" and frame["channel"] == "uncounted:marker":
                break
        if refused:
            assert refused["channel"] == channel
            codes.add(refused["code"])
        admitted += refused is None
    return admitted, codes


def limited(server, class_, scope):
    return sum(v for labels, v in server.metrics().series("shardwire_rate_limited_total")
               if (labels["class"], labels["scope"]) == (class_, scope))


def test_a_channel_has_one_rate_of_presence_calls_over_all_shards(new_server):
    config = NAMED + ('[limits.rates]\npresence.channel = { per_window = 20, window_ms = 60000 }\n'
                      'presence.connection = false\n'
                      '[[namespace]]\npattern = "slow:*"\nrates.presence.channel = { per_window = 5, window_ms = 60000 }\n'
                      '[[namespace]]\npattern = "uncounted:*"\nrates.presence.channel = false\n')
    server = new_server(config=config)
    clients = list(open_on_every_shard(server, named(server, "ann")).values())
    actions = ["enter", "update", "update", "leave"] * 10
    # Each shard may owe an eighth, and one at least.
    admitted, codes = presence_on(clients, "slow:a", actions)
    assert 5 <= admitted <= 5 + len(clients) and codes == {42900}, admitted
    of_process, codes = presence_on(clients, "plain", actions)
    assert 20 <= of_process <= 20 + 5 and codes == {42900}, of_process
    assert presence_on(clients, "slow:b", ["enter", "leave"]) == (2, set()), "each channel has its own"
    assert presence_on(clients, "uncounted:c", actions) == (40, set())
    assert limited(server, "presence", "channel") == 80 - admitted - of_process
    settings = {"settings": {"limits": {"rates": {"presence": {"channel": {"per_window": 3, "window_ms": 60000}}}}}}
    admin(server, "PATCH", "/apps/dev", settings)

    def is_lower():
        return presence_on(clients, f"of-app-{time.monotonic_ns()}", ["enter"] * 12)[0] <= 3 + len(clients)

    wait_until(is_lower, what="the app's setting to count")


def test_subscriptions_and_history_have_rates_of_a_channel(new_server):
    config = ("[limits.rates]\nsubscribe.channel = { per_window = 3, window_ms = 60000 }\n"
              "history.channel = { per_window = 2, window_ms = 60000 }\n")
    server = new_server(shards=1, config=config)
    clients = [Client(server) for _ in range(4)]
    for client in clients[:3]:
        client.subscribe("a")
    clients[3].send_json({"action": "subscribe", "channel": "a"})
    clients[3].expect_error(42900, channel="a")
    clients[3].subscribe("b")
    clients[0].history("a")
    assert [call(server, "GET", "/api/channels/a/messages", key=SERVER_KEY).status for _ in range(3)] == [200, 429, 429]
    clients[1].send_json({"action": "history", "channel": "a"})
    clients[1].expect_error(42900, channel="a")
    assert (limited(server, "subscribe", "channel"), limited(server, "history", "channel")) == (1, 3)


def test_subscriptions_and_history_have_rates_of_a_connection(new_server):
    config = ("[limits.rates]\nsubscribe.connection = { per_window = 3, window_ms = 60000 }\n"
              "history.connection = { per_window = 2, window_ms = 60000 }\n")
    client = Client(new_server(config=config))
    client.subscribe("a", "b", "c")
    client.send_json({"action": "subscribe", "channel": "d"})
    client.expect_error(42900, channel="d")
    client.history("a"), client.history("a")
    client.send_json({"action": "history", "channel": "a"})
    client.expect_error(42900, channel="a")
    client.publish("a", 1)


def test_a_server_key_may_have_a_rate_of_its_own(new_server):
    server = new_server(shards=1)
    made = admin(server, "POST", "/apps/dev/keys", {"kind": "server", "publishRate": {"per_window": 3, "window_ms": 60000}})
    assert made["publishRate"] == {"per_window": 3, "window_ms": 60000, "burst": 3}
    limited, free = Client(server, key=made["key"]), Client(server, key=SERVER_KEY)
    acked, refused = publish_all([limited], "c", 5)
    assert len(acked) == 3 and set(refused.values()) == {42900}
    assert len(publish_all([free], "c", 200)[0]) == 200, "others have none"
    assert len(publish_all([Client(server, key=made["key"])], "c", 3)[0]) == 3, "each connection has it"
    admin(server, "PATCH", f"/apps/dev/keys/{made['id']}", {"publishRate": False})
    wait_until(lambda: len(publish_all([limited], "c", 2)[0]) == 2, what="the rate to be gone for who is connected")
    assert "publishRate" not in admin(server, "GET", f"/apps/dev/keys/{made['id']}")


def test_a_resume_counts_as_one_subscription(new_server):
    server = new_server(shards=1, config="[limits.rates]\nsubscribe.connection = { per_window = 2, window_ms = 60000 }\n")
    client = Client(server)
    token = base64.urlsafe_b64encode(json.dumps({"channels": ["a", "b", "c", "d"], "lastTs": 1}).encode()).decode()
    for _ in range(2):
        client.send_json({"action": "resume", "resumeToken": token})
        client.expect(action="ack", id="resume")
    client.send_json({"action": "resume", "resumeToken": token})
    client.expect_error(42900, id="resume")


def test_http_calls_of_a_client_id_have_one_rate(new_server):
    server = new_server(shards=1, config="[limits.rates.http]\nclient = { per_window = 2, window_ms = 60000 }\n",
                        env={"SHARDWIRE_DEV_JWT_SECRET": JWT_SECRET})

    def status(bearer):
        return call(server, "GET", "/api/channels/c/messages", key=bearer).status

    ann, bob = (jwt.encode({"sub": sub, "exp": time.time() + 600}, JWT_SECRET, headers={"kid": "dev-signing"})
                for sub in ("ann", "bob"))
    assert [status(ann) for _ in range(3)] == [200, 200, 429]
    assert status(bob) == 200 and [status(SERVER_KEY) for _ in range(4)] == [200] * 4


def test_history_over_http_counts_for_the_client_id_of_its_token(new_server):
    server = new_server(shards=1, config="[limits.rates.history]\nclient = { per_window = 2, window_ms = 60000 }\n",
                        env={"SHARDWIRE_DEV_JWT_SECRET": JWT_SECRET})
    ann, bob = (jwt.encode({"sub": sub, "exp": time.time() + 600}, JWT_SECRET, headers={"kid": "dev-signing"})
                for sub in ("ann", "bob"))
    statuses = [call(server, "GET", "/api/channels/c/messages", key=ann).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert call(server, "GET", "/api/channels/c/messages", key=bob).status == 200


def test_of_two_bounds_of_connections_the_lower_holds(new_server):
    server = new_server(shards=1)
    for own, of_plan in [(2, 5), (5, 2)]:
        admin(server, "PUT", "/plans/p", {"connectionsMax": of_plan})
        settings = {"plan": "p", "limits": {"connectionsMax": own}}
        app = admin(server, "POST", "/apps", {"id": f"a{own}", "settings": settings})["id"]
        key = admin(server, "POST", f"/apps/{app}/keys", {"kind": "server"})["key"]
        clients = [Client(server, key=key) for _ in range(2)]
        with pytest.raises(Refused) as refused:
            Client(server, key=key)
        assert refused.value.answer.json()["code"] == 42910
        for client in clients:
            client.close()
        admin(server, "DELETE", f"/apps/{app}")


@pytest.mark.parametrize("rates", ["[limits.rates.connect]\nchannel = { per_window = 2 }\n",
                                   "[limits.rates.http]\nconnection = { per_window = 2 }\n"])
def test_a_limit_that_nothing_counts_is_a_wrong_setting(new_server, rates):
    server = new_server(start=False, config=rates)
    server.spawn()
    assert server.wait() == 2 and "there is no such limit" in server.log()


def test_settings_of_an_app_count_before_those_of_the_process_and_at_once(new_server):
    server = new_server(config="[limits.rates.publish]\nconnection = { per_window = 5, window_ms = 60000 }\n")
    client = Client(server)
    assert len(publish_all([client], "c", 10)[0]) == 5
    admin(server, "PATCH", "/apps/dev", {"settings": {"limits": {"rates": {"publish": {"connection": False}}}}})

    def is_free():
        return len(publish_all([client], "c", 3)[0]) == 3

    wait_until(is_free, what="the app's setting to count")
    wrong = {"settings": {"limits": {"rates": {"http": {"connection": False}}}}}
    assert admin(server, "PATCH", "/apps/dev", wrong, status=400)["code"] == 40003


def test_http_calls_of_an_app_are_told_their_rate(new_server):
    server = new_server(shards=1, config="[limits.rates.http]\napp = { per_window = 3, window_ms = 60000 }\n")
    answers = []
    for _ in range(4):
        connection = http.client.HTTPConnection(*server.address, timeout=10)
        connection.request("GET", "/api/channels", headers={"Authorization": f"Bearer {SERVER_KEY}"})
        answers.append(connection.getresponse())
        answers[-1].read()
        connection.close()
    assert [a.status for a in answers] == [200, 200, 200, 429]
    assert [a.headers["RateLimit-Limit"] for a in answers] == ["3"] * 4
    assert [a.headers["RateLimit-Remaining"] for a in answers] == ["2", "1", "0", "0"]
    assert all(a.headers["RateLimit-Reset"] == "60" for a in answers)
    assert 1 <= int(answers[3].headers["Retry-After"]) <= 120


def test_an_address_may_not_connect_without_end_unless_exempt(new_server):
    rate = "[limits.rates.connect]\naddress = { per_window = 4, window_ms = 60000 }\n"
    server = new_server(shards=1, config="[limits]\naddress_exempt = []\n" + rate)
    clients = [Client(server) for _ in range(4)]
    with pytest.raises(Refused) as refused:
        Client(server)
    answer = refused.value.answer
    assert answer.status == 429 and b'42900' in answer.body, answer
    clients[0].publish("c", 1)
    exempt = new_server(shards=1, config=rate)
    assert all([Client(exempt) for _ in range(8)]), "loopback is exempt by default"


def test_who_stays_over_a_clients_rate_is_ended(new_server):
    config = NAMED + "[limits]\nrate_windows_over_max = 2\n[limits.rates.publish]\n" \
        "client = { per_window = 1, window_ms = 200 }\nconnection = { per_window = 100, window_ms = 200 }\n"
    server = new_server(shards=1, config=config)
    client = named(server, "ann")()
    deadline = time.monotonic() + 20
    while True:
        assert time.monotonic() < deadline, "the connection was never ended"
        try:
            client.send_json({"action": "publish", "channel": "c", "data": 1, "persist": False})
            client.recv_json()
        except (Ended, OSError):
            break
    ended = {labels["cause"] for labels, _ in server.metrics().series("shardwire_connections_closed_total")}
    assert "rate_abuse" in ended
