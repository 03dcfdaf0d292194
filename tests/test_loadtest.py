"""The load generator's own verdict on the real binary: what it reports, and that clients that are cut and resume have
everything."""

import json
import os
import subprocess

import pytest

from harness.server import CLIENT_KEY, SERVER_KEY, TARGET
from harness.tls import Authority, tls_config

LOADTEST = TARGET / "release" / "shardwire-loadtest"


def loadtest(*arguments):
    return subprocess.run(
        [os.environ.get("SHARDWIRE_LOADTEST_BIN", LOADTEST), *map(str, arguments)],
        env={**os.environ, "SHARDWIRE_DEV_KEY": CLIENT_KEY, "SHARDWIRE_DEV_SERVER_KEY": SERVER_KEY},
        capture_output=True, text=True, timeout=60,
    )


def test_churn_loses_nothing(new_server):
    """Two shards, clients of several channels: exit code 3 would say that a message was lost or out of order."""
    server = new_server(shards=2)
    done = loadtest("churn", "--url", server.url, "--duration", "6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 lost, " in done.stdout and "resumes (0 not complete)" in done.stdout, done.stdout


@pytest.fixture
def secure(new_server, tmp_path):
    """A server with TLS, its URL, and the file of who has signed its certificate."""
    authority = Authority(tmp_path / "certs")
    server = new_server(shards=2, config=tls_config(authority.issue("one", "127.0.0.1")))
    return server, "wss://%s:%d" % server.address, authority.file


SHORT = ["--duration", "0.5", "--warmup", "0.1", "--quiet", "--json"]


@pytest.mark.parametrize(
    "scenario",
    [["fanout", "-n", "50", "-p", "2"], ["fanout", "-n", "3", "-s", "60000"], ["channels", "-c", "20", "--echo"],
     ["http", "-p", "4", "-n", "2"]],
    ids=["fanout", "large messages", "echo", "http"],
)
def test_messages_over_tls(secure, tmp_path, scenario):
    server, url, authority = secure
    done = loadtest(*scenario, "--url", url, "--ca", authority, *SHORT, tmp_path / "report.json")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["deliveries"] > 50 and report["integrity"]["lost"] == 0, report
    assert report["faults"]["errors"] == report["faults"]["connections_ended"] == 0, report["faults"]
    assert server.metrics().total("shardwire_tls_handshakes_total", result="full") >= 1


def test_handshakes_over_tls_resume_unless_told_otherwise(secure, tmp_path):
    server, url, _ = secure
    counts = []
    for more in [], ["--full-handshakes"]:
        done = loadtest("storm", "--hold", "20", "--window", "8", "--url", url, "--insecure", *more, *SHORT, tmp_path / "r.json")
        assert done.returncode == 0, done.stdout + done.stderr
        metrics = server.metrics()
        counts.append([metrics.total("shardwire_tls_handshakes_total", result=r) for r in ("full", "resumed")])
    (full, resumed), (more_full, more_resumed) = counts
    assert resumed > full > 0, counts
    assert more_full > full and more_resumed == resumed, counts


def test_a_server_that_is_not_trusted_is_refused(secure, tmp_path):
    server, url, _ = secure
    stranger = Authority(tmp_path / "stranger").file
    done = loadtest("fanout", "-n", "1", "--url", url, "--ca", stranger, "--duration", "0.2")
    assert done.returncode == 1 and "certificate" in done.stderr, done.stderr
    done = loadtest("fanout", "-n", "1", "--url", url, "--duration", "0.2")
    assert done.returncode == 2 and "--ca" in done.stderr, done.stderr
