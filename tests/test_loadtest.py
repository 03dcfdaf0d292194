"""The load generator's own verdict on the real binary: clients that are cut and resume have everything."""

import os
import subprocess

from harness.server import CLIENT_KEY, SERVER_KEY, TARGET

LOADTEST = TARGET / "release" / "shardwire-loadtest"


def test_churn_loses_nothing(new_server):
    """Two shards, clients of several channels: exit code 3 would say that a message was lost or out of order."""
    server = new_server(shards=2)
    done = subprocess.run(
        [os.environ.get("SHARDWIRE_LOADTEST_BIN", LOADTEST), "churn", "--url", "ws://{}:{}".format(*server.address), "--duration", "6"],
        env={**os.environ, "SHARDWIRE_DEV_KEY": CLIENT_KEY, "SHARDWIRE_DEV_SERVER_KEY": SERVER_KEY},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost, " in done.stdout and "resumes (0 not complete)" in done.stdout, done.stdout
