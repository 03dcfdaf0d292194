"""Webhooks against a real receiver: every event at least once, in order per channel, signed, with stable ids."""

import itertools
import random
import signal
import socket
import threading
import time

import pytest

from harness.admin import admin, admin_call
from harness.client import Client
from harness.ctl import ctl, ctl_json
from harness.hooks import CONFIG, Receiver, add_webhook, huge, redirect, reset, silent, slow_body, status, webhook
from harness.mongo import MongoServer
from harness.rest import api, call
from harness.wait import wait_until

# From the end of a channel's last subscription to its event.
VACATED_DELAY = 3.0


@pytest.fixture
def receiver():
    with Receiver() as one:
        yield one


@pytest.fixture
def hooked(new_server):
    """A server that may deliver to this machine, quick to try again."""

    def start(more="", **options):
        config = CONFIG + "retry_ms = [100, 200, 300]\n" + more
        return new_server(config=config, **options)

    return start


def publish(server, channel, data, **fields):
    return api(server, "POST", f"/api/channels/{channel}/messages", {"data": data, **fields})["messages"][0]


# -- events and their form --------------------------------------------------------------------------------------------


def test_events_come_signed_in_the_contracts_form(hooked, receiver):
    server = hooked()
    events = ["channel.occupied", "channel.vacated", "presence.enter", "presence.update", "presence.leave",
              "message.published", "client.connected", "client.disconnected", "subscription.count"]
    hook = add_webhook(server, receiver.url, events=events)
    assert hook["secret"].startswith("whsec_")
    assert "secret" not in webhook(server, hook)
    client = Client(server)
    client.subscribe("room")
    client.send_json({"action": "presence.enter", "channel": "room", "data": {"a": 1}})
    client.send_json({"action": "presence.enter", "channel": "room", "data": {"a": 2}})
    ack = client.publish("room", {"x": 1}, id="m1")
    receiver.wait_for(1, "message.published")
    client.publish("room", "quick", id="m2", persist=False)
    receiver.wait_for(1, "subscription.count", count=1)
    client.close()
    receiver.wait_for(1, "channel.vacated", timeout=VACATED_DELAY + 10)
    receiver.wait_for(1, "subscription.count", count=0)
    assert len(receiver.events("channel.occupied", channel="room")) == 1
    connected = receiver.wait_for(1, "client.connected")[0]
    assert connected["clientId"] == client.client_id and connected["connectionId"]
    gone = receiver.wait_for(1, "client.disconnected")[0]
    assert gone["connectionId"] == connected["connectionId"]
    [enter], [update], [leave] = (receiver.wait_for(1, f"presence.{k}") for k in ("enter", "update", "leave"))
    assert (enter["clientId"], enter["data"], enter["channel"]) == (client.client_id, {"a": 1}, "room")
    assert update["data"] == {"a": 2} and leave["clientId"] == client.client_id
    stored, quick = receiver.wait_for(2, "message.published")
    assert (stored["id"], stored["data"], stored["sequence"]) == ("m1", {"x": 1}, 1)
    assert stored["timestamp"] == ack["timestamp"]
    assert quick["id"] == "m2" and "sequence" not in quick
    for delivery in receiver.deliveries:
        assert delivery.signed_by(hook["secret"]) and not delivery.signed_by("whsec_other")
        assert delivery.signatures == 1
        assert delivery.body["id"] == delivery.id and delivery.body["app"] == "dev"
        assert delivery.headers["X-WSocket-App"] == "dev"
    numbers = [e["number"] for d in receiver.accepted for e in d.events]
    assert numbers == list(range(1, len(numbers) + 1)), "numbered without a hole, in order"


def test_endpoints_get_what_they_asked_for_and_no_more(hooked, receiver):
    server = hooked()
    with Receiver() as other:
        add_webhook(server, receiver.url, events=["client_event"], channels=["news:*"], names="pusher")
        add_webhook(server, other.url, events=["channel_occupied"])
        client = Client(server)
        client.subscribe("news:a", "chat")
        publish(server, "news:a", 1)
        publish(server, "chat", 2)
        publish(server, "news:b:c", 3)
        got = receiver.wait_for(2)
        assert sorted((e["event"], e["channel"], e["data"]) for e in got) == [
            ("client_event", "news:a", 1), ("client_event", "news:b:c", 3)]
        got = other.wait_for(2)
        assert sorted((e["event"], e["channel"]) for e in got) == [
            ("channel.occupied", "chat"), ("channel.occupied", "news:a")]
        assert len(receiver.events()) == 2


def test_a_reconnect_does_not_flap(hooked, receiver):
    server = hooked()
    add_webhook(server, receiver.url, events=["channel.occupied", "channel.vacated"])
    for _ in range(3):
        client = Client(server)
        client.subscribe("c")
        client.close()
    [occupied] = receiver.wait_for(1, "channel.occupied")
    started = time.monotonic()
    receiver.wait_for(1, "channel.vacated", timeout=VACATED_DELAY + 10)
    assert time.monotonic() - started > VACATED_DELAY - 1
    assert [e["event"] for e in receiver.events()] == ["channel.occupied", "channel.vacated"]
    assert occupied["channel"] == "c"


def test_batches_are_bounded_by_count_and_time(hooked, receiver):
    server = hooked()
    add_webhook(server, receiver.url, events=["message.published"], batch={"maxEvents": 5, "maxMs": 60000})
    for n in range(12):
        publish(server, "c", n)
    receiver.wait_for(10)
    assert [len(d.events) for d in receiver.deliveries] == [5, 5]
    assert [e["data"] for e in receiver.events()] == list(range(10))


def test_a_quota_is_told_at_its_marks(hooked, receiver):
    server = hooked()
    admin(server, "PUT", "/plans/p", {"messagesPerDay": 10, "webhooksMax": 1})
    admin(server, "PATCH", "/apps/dev", {"settings": {"plan": "p"}})
    add_webhook(server, receiver.url, events=["quota.reached"])
    # Near its end shards ask each other for what is left of a plan, and refuse meanwhile.
    def use_up():
        call(server, "POST", "/api/channels/c/messages", {"data": 1})
        return admin(server, "GET", "/apps/dev/usage")["messagesToday"] == 10

    wait_until(use_up, 20, "the plan to be used up", interval=0.1)
    got = receiver.wait_for(2, "quota.reached")
    assert [(e["quota"], e["percent"], e["limit"]) for e in got] == [
        ("messages_per_day", 80, 10), ("messages_per_day", 100, 10)]
    refused = admin_call(server, "POST", "/admin/apps/dev/webhooks", {"url": receiver.url})
    assert refused.status == 429 and refused.json()["code"] == 42912


# -- faults -----------------------------------------------------------------------------------------------------------


def test_faults_delay_events_and_lose_none(hooked, receiver):
    server = hooked()
    add_webhook(server, receiver.url, events=["message.published"], concurrency=2)
    elsewhere = Receiver()
    faults = [status(500), reset, silent(1.5), redirect(elsewhere.url), huge, slow_body, status(503), status(404)]
    receiver.faults.extend(itertools.chain.from_iterable((fault, None) for fault in faults))
    for n in range(40):
        publish(server, f"c{n % 3}", n, id=f"m{n}")
        time.sleep(0.02)
    receiver.wait_for(40, timeout=40)
    elsewhere.close()
    assert not elsewhere.deliveries, "redirects are not followed"
    assert sorted(e["data"] for e in receiver.events()) == list(range(40))
    for channel in ("c0", "c1", "c2"):
        sequences = [e["sequence"] for e in receiver.events(channel=channel)]
        assert sequences == sorted(sequences), "in order per channel"
    bodies = {}
    for delivery in receiver.deliveries:
        assert bodies.setdefault(delivery.id, delivery.raw) == delivery.raw, "a retry is the same delivery"
    assert len(receiver.deliveries) > len(bodies), "there were retries"


def test_a_receiver_can_ask_for_a_pause(hooked, receiver):
    server = hooked()
    add_webhook(server, receiver.url, events=["message.published"])
    receiver.faults.append(status(429, [("Retry-After", "2")]))
    publish(server, "c", 1)
    receiver.wait_for(1)
    first, second = receiver.deliveries
    assert second.at - first.at >= 2.0


def test_gone_disables_and_nothing_of_what_waited_is_lost(hooked, receiver):
    server = hooked()
    hook = add_webhook(server, receiver.url, events=["message.published"])
    receiver.faults.append(status(410))
    publish(server, "c", 1)
    wait_until(lambda: not webhook(server, hook)["enabled"], what="the endpoint to be disabled")
    assert "410" in webhook(server, hook)["disabledReason"]
    publish(server, "c", "while it is disabled")
    webhook(server, hook, "PATCH", body={"enabled": True})
    publish(server, "c", 2)
    got = receiver.wait_for(2)
    assert [e["data"] for e in got] == [1, 2]
    assert "disabledReason" not in webhook(server, hook)


def test_what_is_given_up_is_a_dead_letter_that_can_be_sent_again(hooked, receiver):
    server = hooked()
    hook = add_webhook(server, receiver.url, events=["message.published"], batch={"maxEvents": 1, "maxMs": 0})
    receiver.always = status(500)
    for n in range(2):
        publish(server, "c", n)
    letters = wait_until(
        lambda: len(found := webhook(server, hook, path="/dead-letters")["deadLetters"]) == 2 and found,
        20, "both to be given up")
    assert [letter["attempts"] for letter in letters] == [4, 4] and letters[0]["error"] == "status 500"
    shown = webhook(server, hook, path="/dead-letters/" + letters[0]["id"])
    assert shown["events"][0]["data"] == 0
    log = webhook(server, hook, path="/deliveries")["deliveries"]
    assert len(log) == 8 and log[0]["status"] == 500 and log[0]["response"] == "no"
    receiver.always = None
    webhook(server, hook, "POST", f"/dead-letters/{letters[0]['id']}/replay")
    [event] = receiver.wait_for(1)
    assert event["data"] == 0 and receiver.accepted[0].id == letters[0]["id"]
    wait_until(lambda: len(webhook(server, hook, path="/dead-letters")["deadLetters"]) == 1, what="one to be gone")
    assert server.stop() == 0
    server.start()
    assert len(webhook(server, hook, path="/dead-letters")["deadLetters"]) == 1
    assert webhook(server, hook, path="/deliveries")["deliveries"], "the log outlives the process"
    assert webhook(server, hook, "DELETE", "/dead-letters") == {"purged": 1}


def test_dead_endpoints_do_not_slow_others(hooked, receiver):
    server = hooked("threads = 8\n")
    with Receiver() as dead:
        dead.always = silent(5)
        add_webhook(server, receiver.url, events=["message.published"])
        publish(server, "c", "before")
        receiver.wait_for(1)
        for _ in range(10):
            add_webhook(server, dead.url, events=["message.published"])
        times = []
        for n in range(1, 31):
            started = time.monotonic()
            publish(server, "c", n)
            receiver.wait_for(n + 1)
            times.append(time.monotonic() - started)
        print(f"\n10 of 11 endpoints dead: to the live one p50 {sorted(times)[15]:.3f} s, worst {max(times):.3f} s")
        assert max(times) < 1.0
        assert dead.deliveries


# -- durability -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(180)
def test_kills_lose_no_event_of_an_acknowledged_message(hooked, receiver):
    server = hooked()
    add_webhook(server, receiver.url, events=["message.published"])
    acked, lock = [], threading.Lock()
    seed = random.randrange(1 << 30)
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    for round_ in range(5):
        stop = threading.Event()

        def work(worker, round_=round_, stop=stop):
            try:
                client = Client(server)
                for n in itertools.count():
                    if stop.is_set():
                        return
                    id = f"{round_}-{worker}-{n}"
                    client.publish(f"c{worker % 2}", id, id=id)
                    with lock:
                        acked.append(id)
            except (OSError, AssertionError, EOFError):
                return

        workers = [threading.Thread(target=work, args=(w,)) for w in range(4)]
        for worker in workers:
            worker.start()
        time.sleep(chance.uniform(0.2, 1.5))
        server.kill()
        stop.set()
        for worker in workers:
            worker.join(30)
        server.restart_on_same_port()
    assert len(acked) > 50
    wait_until(lambda: set(acked) <= {e["id"] for e in receiver.events()}, 60, "every acknowledged message")
    for channel in ("c0", "c1"):
        sequences = [e["sequence"] for e in receiver.events(channel=channel)]
        assert sequences == sorted(sequences), "in order, over all kills"
        repeated = len(sequences) - len(set(sequences))
        assert repeated == 0, f"{repeated} messages have two numbers"


def test_what_stood_when_the_server_was_killed_ends_once(hooked, receiver):
    server = hooked("[limits]\npresence_grace_ms = 1500\n")
    add_webhook(server, receiver.url, events=["channel.occupied", "channel.vacated", "client.connected",
                                              "client.disconnected", "presence.enter", "presence.leave"])
    client = Client(server)
    client.subscribe("stays", "goes")
    client.send_json({"action": "presence.enter", "channel": "goes"})
    receiver.wait_for(2, "channel.occupied")
    receiver.wait_for(1, "presence.enter")
    server.kill()
    server.restart_on_same_port()
    back = Client(server)
    back.subscribe("stays")
    receiver.wait_for(1, "client.disconnected", clientId=client.client_id)
    receiver.wait_for(1, "channel.vacated", channel="goes", timeout=20)
    receiver.wait_for(1, "presence.leave", channel="goes", clientId=client.client_id)
    back.close()
    receiver.wait_for(1, "channel.vacated", channel="stays", timeout=20)
    assert len(receiver.events("channel.occupied", channel="stays")) == 1, "it never was empty for long"
    assert len(receiver.events("channel.vacated")) == 2


@pytest.mark.parametrize("end", ["drain", "kill"])
def test_what_waits_is_delivered_by_the_next_process_with_its_id(hooked, receiver, end):
    server = hooked()
    receiver.always = status(500)
    add_webhook(server, receiver.url, events=["message.published"], batch={"maxMs": 0})
    for n in range(20):
        publish(server, "c", n)
    wait_until(lambda: receiver.deliveries, what="a first attempt")
    if end == "drain":
        assert server.stop() == 0
    else:
        server.kill()
    first = receiver.deliveries[0].id
    receiver.always = None
    server.start()
    got = receiver.wait_for(20)
    assert [e["data"] for e in got] == list(range(20))
    assert receiver.accepted[0].id == first


def test_a_drain_delivers_what_it_can(hooked, receiver):
    server = hooked()
    add_webhook(server, receiver.url, batch={"maxMs": 60000})
    client = Client(server)
    client.subscribe("c")
    wait_until(lambda: server.metrics().total("shardwire_webhooks_events_total") >= 2, what="the events")
    assert not receiver.accepted
    assert server.stop() == 0
    assert {e["event"] for e in receiver.events()} >= {"client.connected", "channel.occupied", "client.disconnected"}


def test_events_can_be_had_again(hooked, receiver):
    server = hooked()
    hook = add_webhook(server, receiver.url, events=["message.published"])
    for n in range(25):
        publish(server, "c", n)
    receiver.wait_for(25)
    page = webhook(server, hook, path="/events?from=6&limit=10")
    assert [e["number"] for e in page["events"]] == list(range(6, 16)) and page["hasMore"] and page["next"] == 16
    assert page["latest"] == 25
    assert page["events"] == receiver.events()[5:15], "as they were delivered"
    assert webhook(server, hook, path="/events?from=26")["events"] == []


# -- endpoints --------------------------------------------------------------------------------------------------------


def test_two_secrets_sign_while_one_replaces_the_other(hooked, receiver):
    server = hooked()
    hook = add_webhook(server, receiver.url, events=["message.published"])
    rotated = webhook(server, hook, "POST", "/rotate", {"overlapSeconds": 600})
    publish(server, "c", 1)
    receiver.wait_for(1)
    [delivery] = receiver.accepted
    assert delivery.signatures == 2
    assert delivery.signed_by(hook["secret"]) and delivery.signed_by(rotated["secret"])
    webhook(server, hook, "POST", "/rotate", {"overlapSeconds": 0})
    publish(server, "c", 2)
    receiver.wait_for(2)
    assert receiver.accepted[1].signatures == 1 and not receiver.accepted[1].signed_by(rotated["secret"])


def test_a_trial_is_signed_and_says_what_came_of_it(hooked, receiver):
    server = hooked()
    hook = add_webhook(server, receiver.url)
    came = webhook(server, hook, "POST", "/test")
    assert came["status"] == 200 and came["response"] == "ok"
    [delivery] = receiver.deliveries
    assert delivery.signed_by(hook["secret"]) and delivery.events[0]["event"] == "webhook.test"
    receiver.faults.append(status(500))
    assert webhook(server, hook, "POST", "/test")["status"] == 500


def test_targets_in_private_networks_are_refused(new_server, receiver):
    server = new_server()
    port = receiver.server.server_port
    for url in (receiver.url, f"http://localhost:{port}/", f"http://[::ffff:127.0.0.1]:{port}/", "http://10.0.0.1/",
                "http://169.254.169.254/latest/meta-data", "ftp://example.com/", "nonsense"):
        refused = admin_call(server, "POST", "/admin/apps/dev/webhooks", {"url": url})
        assert refused.status == 400 and refused.json()["code"] == 40003, url
    # A name that leads to this machine is found out when it is looked up.
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, port)
    except OSError:
        pytest.skip("this machine's name leads nowhere")
    hook = add_webhook(server, f"http://{name}:{port}/")
    came = webhook(server, hook, "POST", "/test")
    assert "not public" in came["error"], came
    assert not receiver.deliveries


def test_https_can_be_required(new_server):
    server = new_server(config=CONFIG + "require_https = true\n")
    refused = admin_call(server, "POST", "/admin/apps/dev/webhooks", {"url": "http://example.com/"})
    assert refused.status == 400
    admin(server, "POST", "/apps/dev/webhooks", {"url": "https://example.com/", "enabled": False}, status=201)


def test_an_endpoint_that_is_removed_gets_nothing_more(hooked, receiver):
    server = hooked()
    hook = add_webhook(server, receiver.url, events=["message.published"])
    publish(server, "c", 1)
    receiver.wait_for(1)
    webhook(server, hook, "DELETE")
    webhook(server, hook, status=404)
    publish(server, "c", 2)
    again = add_webhook(server, receiver.url, events=["message.published"])
    publish(server, "c", 3)
    wait_until(lambda: any(e["data"] == 3 for d in receiver.accepted for e in d.events), what="the other's event")
    assert [e["data"] for d in receiver.accepted for e in d.events] == [1, 3]
    assert again["id"] != hook["id"]


def test_a_full_outbox_refuses_messages_and_keeps_what_was_accepted(hooked, receiver):
    """While the outbox cannot be written, publishes are refused once enough wait; other channels go on."""
    server = hooked(shards=1)
    add_webhook(server, receiver.url, events=["message.published"], channels=["told"])
    publish(server, "told", 0)
    receiver.wait_for(1)
    import sqlite3

    lock = sqlite3.connect(server.data_dir / "webhooks.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    accepted, refused = 1, 0
    try:
        deadline = time.monotonic() + 60
        while not refused and time.monotonic() < deadline:
            batch = [{"channel": "told", "data": n} for n in range(100)]
            answer = api(server, "POST", "/api/publish", {"batch": batch})
            done = [m for m in answer["messages"] if "error" not in m]
            accepted += len(done)
            refused += len(answer["messages"]) - len(done)
        assert refused, f"{accepted} were accepted while nothing could be kept"
        publish(server, "untold", 1)
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    receiver.wait_for(accepted, timeout=60)
    sequences = [e["sequence"] for e in receiver.events()]
    assert sequences == sorted(sequences) and len(sequences) == accepted


def test_sigterm_twice_ends_at_once(hooked, receiver):
    server = hooked()
    receiver.always = silent(5)
    add_webhook(server, receiver.url, events=["message.published"])
    publish(server, "c", 1)
    wait_until(lambda: receiver.deliveries, what="an attempt")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0


def test_shardwirectl_makes_tries_and_looks(hooked, receiver):
    server = hooked()
    made = ctl_json(server, "webhooks", "create", receiver.url, "--event", "message.published", "--channel", "a:*",
                    "--batch-events", 10, "--batch-ms", 0)
    id = made["id"]
    assert made["secret"] and ctl_json(server, "webhooks", "list")["webhooks"][0]["id"] == id
    assert ctl_json(server, "webhooks", "test", id)["status"] == 200
    publish(server, "a:b", 7)
    receiver.wait_for(1, "message.published")
    assert ctl_json(server, "webhooks", "events", id)["events"][0]["data"] == 7
    assert "200" in ctl(server, "webhooks", "deliveries", id).stdout
    assert ctl_json(server, "webhooks", "update", id, "--disable")["enabled"] is False
    assert "disabled" in ctl(server, "webhooks", "list").stdout
    assert ctl_json(server, "webhooks", "rotate", id)["secret"] != made["secret"]
    assert ctl_json(server, "webhooks", "dead-letters", id)["deadLetters"] == []
    assert ctl_json(server, "webhooks", "replay", id) == {"queued": 0}
    assert ctl_json(server, "webhooks", "purge", id) == {"purged": 0}
    ctl(server, "webhooks", "delete", id)
    assert ctl_json(server, "webhooks", "list")["webhooks"] == []


# -- several nodes ----------------------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_of_three_nodes_each_transition_is_told_once_also_when_one_dies(new_redis, new_nodes, receiver):
    with MongoServer(is_durable=False) as mongo:
        config = f'{CONFIG}retry_ms = [100, 200, 300]\n[store.mongo]\nurl = "{mongo.url}"\n'
        nodes = new_nodes(new_redis(), 3, config=config, broker="node_lease_ms = 1000\n")
        for node in nodes:
            wait_until(lambda: node.metrics().total("shardwire_broker_connected") == 1, what="Redis to be seen")
        hook = add_webhook(nodes[0], receiver.url, events=["channel.occupied", "channel.vacated", "message.published"])
        kinds = ("channel.occupied", "channel.vacated")
        everywhere = [Client(node) for node in nodes]
        for client in everywhere:
            client.subscribe("shared")
        only_on_the_first = Client(nodes[0])
        only_on_the_first.subscribe("lost")
        receiver.wait_for(2, "channel.occupied")
        for number, node in enumerate(nodes):
            # Nodes learn of an endpoint that was made elsewhere within seconds.
            def told():
                publish(node, "shared", number)
                return receiver.events("message.published", data=number)

            wait_until(told, 15, f"events of node {number}", interval=0.3)
        for number, node in enumerate(nodes):
            publish(node, "shared", "all know", id=f"m{number}")
        receiver.wait_for(3, "message.published", data="all know")
        nodes[0].kill()
        receiver.wait_for(1, "channel.vacated", channel="lost", timeout=60)
        for client in everywhere[1:]:
            client.close()
        receiver.wait_for(1, "channel.vacated", channel="shared", timeout=60)
        told = [(e["event"], e["channel"]) for e in {e["number"]: e for e in receiver.events(*kinds)}.values()]
        assert sorted(told) == sorted((kind, channel) for kind in kinds for channel in ("lost", "shared"))
        messages = {e["number"]: e["id"] for e in receiver.events("message.published", data="all know")}
        assert sorted(messages.values()) == ["m0", "m1", "m2"], "each by the node that accepted it, and by no other"
        assert all(d.signed_by(hook["secret"]) for d in receiver.deliveries)


@pytest.mark.timeout(120)
def test_dead_letters_are_replayed_and_purged_by_whichever_node_is_asked(new_redis, new_nodes, receiver):
    with MongoServer(is_durable=False) as mongo:
        config = f'{CONFIG}retry_ms = [10]\n[store.mongo]\nurl = "{mongo.url}"\n'
        nodes = new_nodes(new_redis(), 2, config=config)
        hook = add_webhook(nodes[0], receiver.url, events=["message.published"], batch={"maxEvents": 1, "maxMs": 0})
        delivering = wait_until(lambda: [n for n in nodes if n.metrics().total("shardwire_webhooks_owner") == 1],
                                what="a node to deliver")[0]
        other = next(node for node in nodes if node is not delivering)

        def letters(node):
            return webhook(node, hook, path="/dead-letters")["deadLetters"]

        receiver.always = status(500)
        for n in range(4):
            publish(delivering, "c", n)
        wait_until(lambda: len(letters(other)) == 4, 20, "all to be given up")
        found = letters(other)
        assert found == letters(delivering)
        path = {number: f"/dead-letters/{letter['id']}" for number, letter in enumerate(found)}
        shown = webhook(other, hook, path=path[0])
        assert shown == webhook(delivering, hook, path=path[0]) and shown["attempts"] == 2
        # One that fails again stays, one that arrives goes.
        webhook(other, hook, "POST", f"{path[0]}/replay")
        wait_until(lambda: webhook(other, hook, path=path[0])["attempts"] == 3, what="a third attempt")
        receiver.always = None
        assert webhook(other, hook, "POST", f"{path[1]}/replay") == {"queued": 1}
        receiver.wait_for(1)
        assert [d.id for d in receiver.accepted] == [found[1]["id"]]
        wait_until(lambda: len(letters(other)) == 3, what="one to be gone")
        assert webhook(other, hook, "DELETE", path[2]) == {"purged": 1}
        assert [letter["id"] for letter in letters(delivering)] == [found[0]["id"], found[3]["id"]]
        # What one node was asked for outlives the node that was to do it.
        webhook(other, hook, "PATCH", body={"enabled": False})
        wait_until(lambda: webhook(delivering, hook)["enabled"] is False, what="both to know")
        assert webhook(other, hook, "POST", "/dead-letters") == {"queued": 2}
        delivering.kill()
        webhook(other, hook, "PATCH", body={"enabled": True})
        receiver.wait_for(3, timeout=30)
        assert sorted(d.id for d in receiver.accepted) == sorted(found[n]["id"] for n in (0, 1, 3))
        wait_until(lambda: letters(other) == [], what="all to be gone")
        assert webhook(other, hook, "DELETE", "/dead-letters") == {"purged": 0}
        assert len(receiver.deliveries) == 4 * 2 + 1 + 3, "nothing was sent more often than asked for"
