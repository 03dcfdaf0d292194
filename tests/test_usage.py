"""Plans and usage: quotas hold, counters are exact, and outlive the process."""

import time

import pytest

from harness.admin import admin
from harness.client import Client, open_on_every_shard
from harness.rawws import Refused
from harness.server import SERVER_KEY
from harness.wait import wait_until
from test_limits import publish_all, publish_on


def give_plan(server, app="dev", **limits):
    admin(server, "PUT", "/plans/p", limits)
    admin(server, "PATCH", f"/apps/{app}", {"settings": {"plan": "p"}})


def usage(server, app="dev", **query):
    query = "&".join(f"{k}={v}" for k, v in query.items())
    return admin(server, "GET", f"/apps/{app}/usage?{query}")


def wait_for_messages(server, count):
    wait_until(lambda: usage(server)["messagesToday"] == count, 15, f"{count} messages in the usage")


def on_all_shards(server):
    return list(open_on_every_shard(server, lambda: Client(server, key=SERVER_KEY)).values())


def test_counters_are_the_exact_number_of_accepted_messages_at_every_step(new_server):
    server = new_server()
    clients = on_all_shards(server)
    clients[0].subscribe("c0")
    for n in range(300):
        clients[n % 2].publish(f"c{n % 7}", n, id=f"m{n}", persist=n % 3 != 0)
    for n in range(50):
        clients[n % 2].publish(f"c{n % 7}", n, id=f"m{n}")
    wait_for_messages(server, 300)
    wait_until(lambda: usage(server)["total"]["deliveries"] == 43, what="what the other shard has delivered")
    assert usage(server)["messagesThisMonth"] == 300
    for step in ("minute", "hour", "day"):
        report = usage(server, step=step)
        assert report["total"]["messages"] == 300, (step, "repeats do not count")
        assert sum(p["messages"] for p in report["series"]) == 300
        assert report["total"]["deliveries"] == 43
        assert report["total"]["connectionsPeak"] == 2 and report["total"]["channelsPeak"] == 1
    assert (report["connections"], report["channels"]) == (2, 1)
    assert server.stop() == 0
    server.start()
    assert usage(server)["messagesToday"] == 300
    assert usage(server, step="day", **{"from": 0})["total"]["messages"] == 300


# What the README says may be lost, and what a busy machine may be late by.
LOSS_S, LATE_S = 1.5, 0.5


def test_a_kill_loses_no_more_than_the_last_moments(new_server):
    server = new_server()
    client = Client(server, key=SERVER_KEY)
    acked = []
    started = time.monotonic()
    while time.monotonic() < started + 4:
        client.publish("c", len(acked))
        acked.append(time.monotonic())
    killed = time.monotonic()
    server.kill()
    server.start()
    counted = usage(server)["messagesToday"]
    old = sum(at < killed - LOSS_S - LATE_S for at in acked)
    assert old > 100, "the test says something"
    assert old <= counted <= len(acked), f"{counted} counted of {len(acked)}, {old} of them before the last moments"
    fresh = Client(server, key=SERVER_KEY)
    assert fresh.publish("c", 1)["sequence"] == len(acked) + 1, "no message is lost, whatever the counters say"


@pytest.mark.parametrize("quota", ["messagesPerDay", "messagesPerMonth"])
def test_a_plans_messages_are_never_overrun_and_used_to_the_last(new_server, quota):
    server = new_server()
    give_plan(server, **{quota: 200})
    clients = on_all_shards(server)
    accepted, codes = publish_on(clients, "c", 150)
    assert codes == {42912}
    # Debt of one shard for the other's question: at most 25 of 200.
    assert 200 <= accepted <= 225, accepted
    wait_for_messages(server, accepted)
    wait_until(lambda: any(labels["app"] == "dev" and v >= 1
                           for labels, v in server.metrics().series("shardwire_quota_ratio")), what="the ratio")
    assert "80 % of a quota" in server.log() and "100 % of a quota" in server.log()
    assert server.stop() == 0
    server.start()
    again = Client(server, key=SERVER_KEY)
    assert len(publish_all([again], "c", 10)[0]) == 0, "a restart gives nothing back"
    give_plan(server, **{quota: 1000})
    wait_until(lambda: publish_all([again], "c", 1)[0], what="a larger plan to count")


def test_connections_and_channels_of_a_plan(new_server):
    server = new_server()
    give_plan(server, connectionsMax=6, channelsMax=4)
    clients = []

    def fill():
        try:
            clients.append(Client(server, key=SERVER_KEY))
        except Refused:
            return True
        return False

    wait_until(lambda: fill() and len(clients) >= 6, what="the plan's connections to be in use")
    assert 6 <= len(clients) <= 7, "debt of the shard that is not home"
    for n, client in enumerate(clients):
        client.send_json({"action": "subscribe", "channel": f"room{n % 6}"})
    granted = [c for c in clients if c.recv_json()["action"] == "subscribed"]
    assert 2 <= len(granted) <= 5
    for client in clients:
        client.close()

    def comes_in():
        try:
            return Client(server, key=SERVER_KEY)
        except Refused:
            return None

    fresh = wait_until(comes_in, what="a place of a connection that has ended")

    def may_subscribe():
        fresh.send_json({"action": "subscribe", "channel": "room-again"})
        return fresh.recv_json()["action"] == "subscribed"

    wait_until(may_subscribe, what="a channel that nobody is in any more")


def test_used_up_plans_may_end_their_clients(new_server):
    server = new_server(shards=1)
    give_plan(server, messagesPerDay=5, onExhausted="close")
    client = Client(server, key=SERVER_KEY)
    assert len(publish_all([client], "c", 8)[0]) == 5
    client.expect_close(4004)
    with pytest.raises(Refused):
        Client(server, key=SERVER_KEY)


def test_plans_are_checked_and_belong_to_whom_they_are_given(new_server):
    server = new_server(shards=1)
    assert admin(server, "PUT", "/plans/p", {"messagesPerDy": 1}, status=400)["code"] == 40003
    assert admin(server, "PATCH", "/apps/dev", {"settings": {"plan": "p"}}, status=400)["code"] == 40003
    give_plan(server, messageBytesMax=100)
    assert admin(server, "DELETE", "/plans/p", status=400)["code"] == 40003
    assert [p["id"] for p in admin(server, "GET", "/plans")["plans"]] == ["p"]
    client = Client(server)

    def too_large():
        client.send_json({"action": "publish", "channel": "c", "data": "x" * 200, "id": "m"})
        return client.recv_json().get("code") == 41300

    wait_until(too_large, what="the plan to count")
    assert server.stop() == 0
    server.start()
    assert admin(server, "GET", "/plans/p")["messageBytesMax"] == 100
    admin(server, "GET", "/apps/nobody/usage", status=404)
