#!/usr/bin/env python3
"""Signs in at a steady rate, to see what password hashing does to deliveries: run a load beside it.

    bench/logins.py http://127.0.0.1:9002 ann@example.com PASSWORD --rate 50 --seconds 60

Prints statuses and how long sign-ins took. The account is one without a second factor.
"""

import argparse
import collections
import concurrent.futures
import http.client
import json
import threading
import time
import urllib.parse

local = threading.local()


def sign_in(host, body):
    """Seconds and status of one sign-in; each thread keeps its connection."""
    began = time.monotonic()
    try:
        if getattr(local, "connection", None) is None:
            local.connection = http.client.HTTPConnection(host, timeout=15)
        local.connection.request("POST", "/dashboard/api/login", body, {"Content-Type": "application/json"})
        answer = local.connection.getresponse()
        answer.read()
        status = answer.status
    except (OSError, http.client.HTTPException) as error:
        local.connection, status = None, type(error).__name__
    return time.monotonic() - began, status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("email")
    parser.add_argument("password")
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    host = urllib.parse.urlsplit(options.url).netloc
    body = json.dumps({"email": options.email, "password": options.password})
    results = []
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        began = time.monotonic()
        for n in range(int(options.rate * options.seconds)):
            time.sleep(max(0.0, began + n / options.rate - time.monotonic()))
            results.append(pool.submit(sign_in, host, body))
        took = [result.result() for result in results]
    seconds = sorted(second for second, status in took if status == 200)
    print("statuses:", dict(collections.Counter(status for _, status in took)))
    if seconds:
        at = [seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in (0.5, 0.99)]
        print(f"sign-ins: {len(seconds)}, p50 {at[0] * 1000:.0f} ms, p99 {at[1] * 1000:.0f} ms")


if __name__ == "__main__":
    main()
