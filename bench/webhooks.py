#!/usr/bin/env python3
"""Load on webhooks: so many events a second to so many endpoints of one app, and how long each takes to its receipt.

    python3 bench/webhooks.py --bin target/release/shardwire --events 1000 --endpoints 20 --seconds 30

One server with fresh data, endpoints in processes of their own that answer at once, messages published in batches over HTTP.
Prints percentiles of event to receipt (event: the message's timestamp) over all endpoints, and the server's CPU time.
"""

import argparse
import json
import multiprocessing
import pathlib
import socketserver
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

KEY = "sk_bench_webhooks_0123456789"


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release/shardwire")
    parser.add_argument("--events", type=int, default=1000, help="a second")
    parser.add_argument("--endpoints", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--batch-ms", type=int, default=50)
    options = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="shardwire-hooks-"))
    (folder / "shardwire.toml").write_text("[webhooks]\nallow_private = true\nthreads = 64\n")
    ready = folder / "ready.json"
    server = subprocess.Popen(
        [options.bin, "--data-dir", folder / "data", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
         "--ready-file", ready, "--shards", "1"],
        cwd=folder, env={"PATH": "/usr/bin:/bin", "SHARDWIRE_DEV_SERVER_KEY": KEY}, stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL)
    ports, done, ages = multiprocessing.Queue(), multiprocessing.Event(), multiprocessing.Queue()
    receiver = multiprocessing.Process(target=receive, args=(ports, (ages, done), options.endpoints), daemon=True)
    receiver.start()
    try:
        while not ready.exists():
            time.sleep(0.05)
        addresses = json.loads(ready.read_text())
        token = (folder / "data" / "admin-token").read_text().strip()
        for port in ports.get():
            call(addresses["admin"], "POST", "/admin/apps/dev/webhooks",
                 {"url": f"http://127.0.0.1:{port}/", "events": ["message.published"],
                  "batch": {"maxMs": options.batch_ms}}, token)
        sent, started, per_call = 0, time.monotonic(), 50
        while time.monotonic() - started < options.seconds:
            batch = [{"channel": f"c{(sent + n) % 100}", "data": {"n": sent + n}} for n in range(per_call)]
            call(addresses["listen"], "POST", "/api/publish", {"batch": batch}, KEY)
            sent += per_call
            time.sleep(max(0.0, started + sent / options.events - time.monotonic()))
        rate = sent / (time.monotonic() - started)
        time.sleep(3)
        done.set()
        found = sorted(ages.get())
        expected = sent * options.endpoints
        at = lambda share: found[min(len(found) - 1, int(len(found) * share))]
        cpu = pathlib.Path(f"/proc/{server.pid}/stat").read_text().rsplit(")", 1)[1].split()
        print(json.dumps({
            "eventsPerSecond": round(rate), "endpoints": options.endpoints, "batchMs": options.batch_ms,
            "received": len(found), "expected": expected,
            "p50Ms": round(at(0.5), 1), "p99Ms": round(at(0.99), 1), "maxMs": round(found[-1], 1),
            "serverCpuSeconds": (int(cpu[11]) + int(cpu[12])) / 100,
        }))
    finally:
        server.kill()
        server.wait()
        receiver.kill()


if __name__ == "__main__":
    main()
