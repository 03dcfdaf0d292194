"""What is shipped for monitoring speaks of what the server exports."""

import json
import re
import shutil
import subprocess

import pytest

from harness.client import Client
from harness.server import ROOT, SERVER_KEY

MONITORING = ROOT / "systemd" / "monitoring"
WITH_LABELS = re.compile(r"\b((?:shardwire|process)_[a-z0-9_]+)(?:\{([^}]*)\})?")


def expressions():
    """Every PromQL expression of the rules and the dashboard, with where it is."""
    rules = (MONITORING / "alerts.yml").read_text()
    found = [("alerts.yml", e) for e in re.findall(r"^ +expr: (.+)$", rules, re.M)]
    assert len(found) == rules.count("- alert:")
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    for panel in dashboard["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel["targets"]]
    return found


def test_all_that_is_shown_and_alerted_on_is_exported(new_server):
    server = new_server(shards=2)
    client = Client(server, key=SERVER_KEY).subscribe("c")
    client.publish("c", 1)
    client.send_json({"action": "nonsense"})
    client.expect(action="error")
    metrics = server.metrics()
    named = 0
    for where, expression in expressions():
        for name, labels in WITH_LABELS.findall(expression):
            assert name in metrics.samples, f"{where}: {name}"
            for label, value in re.findall(r'([a-z]+)="([a-z]+)"', labels):
                # The scrape's own labels are not the server's.
                have = {have.get(label) for have, _ in metrics.series(name)}
                assert label in ("job", "instance") or value in have, f"{where}: {name}{{{label}={value}}}"
            named += 1
        # Labels that are summed by are there.
        for by in re.findall(r"by \(([^)]*)\)", expression):
            name = WITH_LABELS.search(expression)[1]
            have = set().union(*(labels for labels, _ in metrics.series(name))) | {"instance"}
            assert {label.strip() for label in by.split(",")} <= have, f"{where}: {expression}"
    assert named > 30


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed (Debian: prometheus)")
def test_promtool_takes_the_rules():
    done = subprocess.run(
        ["promtool", "check", "rules", str(MONITORING / "alerts.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
