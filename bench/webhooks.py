#!/usr/bin/env python3
"""Load on webhooks: so many events a second to so many endpoints of one app, and how long each takes to its receipt.

    python3 bench/webhooks.py --bin target/release/shardwire --events 1000 --endpoints 20 --seconds 30
    python3 bench/webhooks.py --bin target/release/shardwire --cost --events 2000 --seconds 20

One server with fresh data, endpoints in processes of their own that answer at once, messages published in batches over HTTP.
Prints percentiles of event to receipt (event: the message's timestamp) over all endpoints, and the server's CPU time.

With `--cost`: what an endpoint of message events costs a publish. The same messages are published in turns without and with
one; printed is the CPU time of the shard and of the whole process per publish, and what became of further ones while the
outbox could not be written.
"""

import argparse
import json
import multiprocessing
import pathlib
import shutil
import socketserver
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

KEY = "sk_bench_webhooks_0123456789"
# Messages of a call.
PER_CALL = 50
# Of each kind, when costs are compared; the median counts.
ROUNDS = 3


def receive(ports, results, endpoints):
    """A process with `endpoints` receivers that answers `200` and notes how old each event is."""
    ages = []

    class Handler(socketserver.StreamRequestHandler):
        disable_nagle_algorithm = True

        def handle(self):
            while True:
                length = 0
                line = self.rfile.readline()
                if not line:
                    return
                while (line := self.rfile.readline().strip()):
                    name, _, value = line.partition(b":")
                    if name.lower() == b"content-length":
                        length = int(value)
                body = json.loads(self.rfile.read(length))
                now = time.time() * 1000
                ages.extend(now - event["timestamp"] for event in body["events"])
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = allow_reuse_address = True

    import threading

    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(endpoints)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ports.put([server.server_address[1] for server in servers])
    results[1].wait()
    results[0].put(ages)


def call(address, method, path, body, key):
    request = urllib.request.Request(
        f"http://{address}{path}", method=method, data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


class Bench:
    """A server with fresh data."""

    def __init__(self, program):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="shardwire-hooks-"))
        (self.folder / "shardwire.toml").write_text("[webhooks]\nallow_private = true\nthreads = 64\n")
        ready = self.folder / "ready.json"
        self.process = subprocess.Popen(
            [program, "--data-dir", self.folder / "data", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
             "--ready-file", ready, "--shards", "1"],
            cwd=self.folder, env={"PATH": "/usr/bin:/bin", "SHARDWIRE_DEV_SERVER_KEY": KEY}, stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL)
        while not ready.exists():
            assert self.process.poll() is None, "the server has ended"
            time.sleep(0.05)
        self.addresses = json.loads(ready.read_text())
        self.token = (self.folder / "data" / "admin-token").read_text().strip()

    def end(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def admin(self, method, path, body):
        return call(self.addresses["admin"], method, path, body, self.token)

    def add(self, port, batch_ms):
        return self.admin("POST", "/admin/apps/dev/webhooks", {
            "url": f"http://127.0.0.1:{port}/", "events": ["message.published"], "batch": {"maxMs": batch_ms}})

    def metric(self, name):
        with urllib.request.urlopen(f"http://{self.addresses['admin']}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))

    def publish(self, rate, seconds, first=0):
        """Messages at a rate; returns how many were accepted and refused, and the rate that came of it."""
        sent, started, refused = 0, time.monotonic(), 0
        while time.monotonic() - started < seconds:
            batch = [{"channel": f"c{(first + sent + n) % 100}", "data": {"n": first + sent + n}} for n in range(PER_CALL)]
            answer = call(self.addresses["listen"], "POST", "/api/publish", {"batch": batch}, KEY)
            refused += sum("error" in message for message in answer["messages"])
            sent += PER_CALL
            time.sleep(max(0.0, started + sent / rate - time.monotonic()))
        return sent - refused, refused, sent / (time.monotonic() - started)

    def cpu_s(self):
        """CPU time of the shard's thread, and of all."""
        of_shard, all_s = 0.0, 0.0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            # Nanoseconds on a CPU, first of its fields.
            spent = int((task / "schedstat").read_text().split()[0]) / 1e9
            all_s += spent
            of_shard += spent if (task / "comm").read_text().strip().startswith("shard-") else 0.0
        return of_shard, all_s


def load(options):
    ports, done, ages = multiprocessing.Queue(), multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(ports, (ages, done), options.endpoints), daemon=True)
    receiver.start()
    bench = Bench(options.bin)
    try:
        for port in ports.get():
            bench.add(port, options.batch_ms)
        sent, _, rate = bench.publish(options.events, options.seconds)
        time.sleep(3)
        done.set()
        found = sorted(ages.get())
        at = lambda share: found[min(len(found) - 1, int(len(found) * share))]
        return {
            "eventsPerSecond": round(rate), "endpoints": options.endpoints, "batchMs": options.batch_ms,
            "received": len(found), "expected": sent * options.endpoints,
            "p50Ms": round(at(0.5), 1), "p99Ms": round(at(0.99), 1), "maxMs": round(found[-1], 1),
            "serverCpuSeconds": round(bench.cpu_s()[1], 2),
        }
    finally:
        bench.end()
        receiver.kill()


def cost(options):
    ports, done, ages = multiprocessing.Queue(), multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(ports, (ages, done), 1), daemon=True)
    receiver.start()
    bench = Bench(options.bin)
    try:
        [port] = ports.get()
        hook = f"/admin/apps/dev/webhooks/{bench.add(port, options.batch_ms)['id']}"
        micros = {False: [], True: []}
        number, per_round = 0, options.seconds / (2 * ROUNDS)
        for turn in range(2 * ROUNDS):
            has_hook = turn % 2 == 1
            bench.admin("PATCH", hook, {"enabled": has_hook})
            bench.publish(options.events, 0.5, number)  # what begins with the change is none of the publishes'
            settle(bench)
            before = bench.cpu_s()
            accepted, refused, _ = bench.publish(options.events, per_round, number)
            settle(bench)
            assert not refused, refused
            after = bench.cpu_s()
            number += accepted
            micros[has_hook].append([(b - a) / accepted * 1e6 for a, b in zip(before, after)])
        answer = {"publishesPerSecond": options.events, "rounds": ROUNDS}
        for has_hook, name in ((False, "without"), (True, "withEndpoint")):
            of_shard, of_all = (sorted(values)[ROUNDS // 2] for values in zip(*micros[has_hook]))
            answer[name] = {"shardMicrosPerPublish": round(of_shard, 2), "processMicrosPerPublish": round(of_all, 2)}
        held = sqlite3.connect(bench.folder / "data" / "webhooks.db", isolation_level=None, timeout=10)
        held.execute("BEGIN IMMEDIATE")
        accepted, refused, _ = bench.publish(1e9, min(5, options.seconds), number)
        held.execute("ROLLBACK")
        held.close()
        answer["whileTheOutboxIsHeld"] = {"accepted": accepted, "refused": refused}
        settle(bench)
        answer["whileTheOutboxIsHeld"]["afterwardsBehind"] = int(bench.metric("shardwire_webhooks_behind"))
        return answer
    finally:
        bench.end()
        receiver.kill()


def settle(bench):
    """Until nothing is behind, three times in a row: what was raised may not be numbered yet."""
    calm, deadline = 0, time.monotonic() + 60
    while calm < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
        calm = 0 if bench.metric("shardwire_webhooks_behind") else calm + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/shardwire")
    parser.add_argument("--cost", action="store_true", help="what message events cost a publish")
    parser.add_argument("--events", type=int, default=1000, help="a second")
    parser.add_argument("--endpoints", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--batch-ms", type=int, default=50)
    options = parser.parse_args()
    print(json.dumps(cost(options) if options.cost else load(options)))


if __name__ == "__main__":
    main()
