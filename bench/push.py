#!/usr/bin/env python3
"""Push: how fast a broadcast goes to a stand-in provider over HTTP/2, and how much memory it takes.

    tests/.venv/bin/python bench/push.py --count 100000 --platform fcm
    tests/.venv/bin/python bench/push.py --count 20000 --platform web --concurrency 256

Needs the release binary (or SHARDWIRE_BIN), node for the stand-in, and the packages of tests/requirements.txt. Prints one line
of JSON: notifications per second from the first request to the last, the server's peak memory before and after, its CPU
time, and how many requests the stand-in saw (more than the count would be duplicates).
"""

import argparse
import asyncio
import json
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests"))

import aiohttp  # noqa: E402
from harness.admin import admin  # noqa: E402
from harness.push_peer import AppleKey, Browser, ServiceAccount  # noqa: E402
from harness.rest import api  # noqa: E402
from harness.server import SERVER_KEY, Server  # noqa: E402
from harness.tls import Authority  # noqa: E402

# Answers every provider's calls with success; prints its port, then at each line of input how many it has seen.
STAND_IN = """
const http2 = require('http2'), fs = require('fs'), [cert, key] = process.argv.slice(1);
let seen = 0, first = 0, last = 0;
const server = http2.createSecureServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key), allowHTTP1: true },
  (request, answer) => {
    request.on('data', () => {});
    request.on('end', () => {
      if (request.url === '/token') return answer.end('{"access_token":"t","expires_in":3600}');
      seen++; last = Date.now(); first = first || last;
      answer.writeHead(request.url.startsWith('/push/') ? 201 : 200);
      answer.end('{}');
    });
  });
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
require('readline').createInterface({ input: process.stdin }).on('line', () => console.log(JSON.stringify({ seen, first, last })));
"""


class StandIn:
    def __init__(self, authority):
        cert, key = authority.issue("stand-in")
        self.process = subprocess.Popen(["node", "-e", STAND_IN, str(cert), str(key)], text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.url = f"https://localhost:{int(self.process.stdout.readline())}"

    def seen(self):
        self.process.stdin.write("\n")
        return json.loads(self.process.stdout.readline())


def status(pid, name):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_s(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def register(server, bodies):
    url = "http://%s:%d/api/push/register" % server.address
    queue = iter(bodies)
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer " + SERVER_KEY}) as session:

        async def worker():
            for body in queue:
                async with session.post(url, json=body) as answer:
                    assert answer.status == 200, await answer.text()

        await asyncio.gather(*(worker() for _ in range(64)))


def bodies(platform, count, stand_in):
    browser = Browser(stand_in, "x")
    for n in range(count):
        body = {"platform": platform, "memberId": f"m{n}"}
        if platform == "web":
            body["webPush"] = {"endpoint": f"{stand_in.url}/push/{n}", "keys": browser.keys}
        else:
            body["deviceToken"] = f"{n:064x}"
        yield body


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--platform", choices=["web", "fcm", "apns"], default="fcm")
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        authority = Authority(folder / "ca")
        stand_in = StandIn(authority)
        config = f'[push]\nallow_private = true\nca_file = "{authority.file}"\nwait_ms = 0\n'
        server = Server(folder / "server", shards=1, config=config).start()
        try:
            run(options, server, stand_in)
        finally:
            server.kill()
            stand_in.process.kill()


def run(options, server, stand_in):
    access = {
        "web": {"subject": "mailto:ops@example.org"},
        "fcm": {"serviceAccount": ServiceAccount(stand_in).json, "endpoint": stand_in.url},
        "apns": {"topic": "t", "endpoint": stand_in.url, "key": AppleKey().pem, "keyId": "K", "teamId": "T"},
    }[options.platform]
    access["concurrency"] = options.concurrency
    admin(server, "PUT", f"/apps/dev/push/providers/{options.platform}", access)
    started = time.monotonic()
    asyncio.run(register(server, bodies(options.platform, options.count, stand_in)))
    registered_s = time.monotonic() - started
    pid = server.process.pid
    before_mib, cpu_before = status(pid, "VmRSS"), cpu_s(pid)
    job = api(server, "POST", "/api/push/broadcast", {"title": "T", "body": "B"})["jobId"]
    while (state := api(server, "GET", f"/api/push/jobs/{job}"))["state"] == "active":
        time.sleep(0.25)
    seen = stand_in.seen()
    seconds = max(0.001, (seen["last"] - seen["first"]) / 1000)
    print(json.dumps({
        "platform": options.platform, "concurrency": options.concurrency, "count": options.count,
        "registered_per_s": round(options.count / registered_s), "sent": state["sent"], "failed": state["failed"],
        "seen": seen["seen"], "per_s": round(seen["seen"] / seconds), "cpu_s": round(cpu_s(pid) - cpu_before, 2),
        "rss_before_mib": round(before_mib, 1), "rss_peak_mib": round(status(pid, "VmHWM"), 1),
    }))


if __name__ == "__main__":
    main()
