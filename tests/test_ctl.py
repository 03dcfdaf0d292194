"""`shardwirectl`: each command as a script uses it (`--json`, exit codes) and as a person does (tables, a terminal)."""

import json
import subprocess
import uuid

import pytest

from harness.client import Client
from harness.ctl import CTL, Terminal, ctl, ctl_json, environment
from harness.server import CLIENT_KEY, clean_environment
from harness.wait import wait_until


@pytest.fixture
def app(server):
    """An app of this test's own."""
    name = f"a{uuid.uuid4().hex[:10]}"
    ctl(server, "apps", "create", name)
    return name


def rows(done):
    """The lines of a table without its head."""
    return [line.split() for line in done.stdout.splitlines()[1:]]


# -- exit codes ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [[], ["nothing"], ["keys"], ["keys", "create"], ["publish", "a"], ["publish", "a", "{"], ["--url", "x", "nodes"],
     ["apps", "update", "dev"], ["keys", "create", "--kind", "client", "--capabilities", "[]"], ["top", "--interval", "0"],
     ["--token-file", "/nowhere", "nodes"], ["revocations", "create"], ["subscribe", "a", "--socket", "http://x"]],
)
def test_wrong_usage_is_2(server, args):
    done = ctl(server, *args, code=2)
    assert done.stderr and not done.stdout


def test_refused_is_1_and_tells_the_code(server):
    env = {**environment(server), "SHARDWIRE_ADMIN_TOKEN": "at_wrong_0123456789"}
    done = ctl(server, "apps", "list", code=1, env=env)
    assert "[40102]" in done.stderr and "SHARDWIRE_ADMIN_TOKEN" in done.stderr
    done = ctl(server, "--json", "apps", "list", code=1, env=env)
    assert json.loads(done.stderr)["code"] == 40102 and not done.stdout


def test_not_reachable_is_3():
    env = clean_environment({"SHARDWIRE_ADMIN_URL": "http://127.0.0.1:1", "SHARDWIRE_ADMIN_TOKEN": "x" * 20})
    for args in (["nodes"], ["subscribe", "a"], ["top", "--once"]):
        done = ctl(None, *args, code=3, env=env)
        assert "127.0.0.1:1" in done.stderr


@pytest.mark.parametrize("args", [["apps", "show", "none"], ["keys", "delete", "none"], ["connections", "end", "0-1-2"], ["channels", "list", "--app", "none"]])
def test_not_there_is_4(server, args):
    assert "[40400]" in ctl(server, *args, code=4).stderr


def test_the_token_is_found_in_its_file_and_in_the_data_folder(server):
    env = environment(server)
    del env["SHARDWIRE_ADMIN_TOKEN"]
    ctl(server, "apps", "list", env=env, cwd=server.folder)
    ctl(server, "--token-file", server.data_dir / "admin-token", "apps", "list", env=env, cwd="/")
    assert "[40100]" in ctl(server, "apps", "list", env=env, cwd="/", code=1).stderr


def test_a_reader_that_goes_away_is_no_error(server):
    done = subprocess.run(f"'{CTL}' man | head -1", shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


# -- apps and credentials ----------------------------------------------------------------------------------------------------------


def test_apps(server, app):
    listed = ctl_json(server, "apps", "list")["apps"]
    assert app in [a["id"] for a in listed]
    assert [app, "enabled"] in [row[:2] for row in rows(ctl(server, "apps", "list"))]
    ctl(server, "apps", "update", app, "--name", "Shop", "--disable", "--settings", '{"hello": false}')
    shown = ctl_json(server, "apps", "show", app)
    assert (shown["name"], shown["disabled"], shown["settings"]) == ("Shop", True, {"hello": False})
    assert "settings.hello" in ctl(server, "apps", "show", app).stdout
    ctl(server, "apps", "update", app, "--enable", "--settings", '{"hello": null}')
    assert ctl_json(server, "apps", "show", app)["settings"] == {}
    assert "already" in ctl(server, "apps", "create", app, code=1).stderr
    assert app in ctl(server, "apps", "delete", app).stdout
    ctl(server, "apps", "show", app, code=4)


def test_keys(server, app):
    made = ctl(server, "keys", "create", "--app", app, "--kind", "client", "--name", "web")
    key = made.stdout.strip()
    assert key.startswith("ck_") and len(made.stdout.splitlines()) == 1
    Client(server, key=key).close()
    listed = ctl_json(server, "keys", "list", "--app", app)["keys"]
    assert [(k["name"], k["prefix"]) for k in listed] == [("web", key[:6])]
    id = listed[0]["id"]
    table = ctl(server, "keys", "list", "--app", app).stdout
    assert id in table and key[:6] in table and key not in table
    rotated = ctl_json(server, "keys", "rotate", id, "--app", app, "--overlap", 60)
    Client(server, key=rotated["key"]).close()
    Client(server, key=key).close()
    assert "until" in ctl(server, "keys", "list", "--app", app).stdout
    ctl(server, "keys", "update", id, "--app", app, "--disable")
    wait_until(lambda: "disabled" in ctl(server, "keys", "list", "--app", app).stdout, what="the key to be disabled")
    ctl(server, "keys", "delete", id, "--app", app)
    assert [k["id"] for k in ctl_json(server, "keys", "list", "--app", app)["keys"]] == [rotated["id"]]


def test_signing_keys_tokens_and_revocations(server, app, channel, tmp_path):
    made = ctl_json(server, "signing-keys", "create", "--app", app, "--algorithm", "HS256", "--kid", f"{app}-1")
    assert made["kid"] == f"{app}-1" and made["secret"]
    (tmp_path / "secret").write_text("a secret that is long enough for HS256\n")
    ctl(server, "signing-keys", "create", "--app", app, "--algorithm", "HS256", "--secret", tmp_path / "secret")
    table = ctl(server, "signing-keys", "list", "--app", app).stdout
    assert f"{app}-1" in table and made["secret"] not in table

    mint = ["token", "mint", "--app", app, "--client-id", "ann", "--capabilities", json.dumps({channel: ["subscribe"]}), "--ttl", 60]
    token = ctl(server, *mint).stdout.strip()
    assert ctl_json(server, *mint)["expiresMs"] > 0
    client = Client(server, target=f"/?token={token}").subscribe(channel)
    assert client.client_id == "ann"

    id = ctl_json(server, "revocations", "create", "--app", app, "--client-id", "ann", "--ttl", 60)["id"]
    client.expect_close(4010)
    assert "clientId ann" in ctl(server, "revocations", "list", "--app", app).stdout
    ctl(server, "revocations", "delete", id, "--app", app)
    assert ctl_json(server, "revocations", "list", "--app", app)["revocations"] == []
    ctl(server, "signing-keys", "update", f"{app}-1", "--app", app, "--disable")
    ctl(server, "signing-keys", "delete", f"{app}-1", "--app", app)
    ctl(server, "signing-keys", "delete", f"{app}-1", "--app", app, code=4)


# -- messages, channels, connections ------------------------------------------------------------------------------------------------


def test_publish_and_history(server, channel):
    client = Client(server).subscribe(channel)
    ctl(server, "publish", channel, '{"b": 1.50, "a": [null]}', "--id", "one", "--client-id", "ops")
    ctl(server, "publish", channel, "plain", "--text")
    ctl(server, "publish", channel, "-", stdin="[1, 2]")
    assert "sequence" not in ctl_json(server, "publish", channel, "4", "--ephemeral")["messages"][0]
    assert '"data":{"b": 1.50, "a": [null]}' in client.recv_text()
    assert [client.expect(action="message")["data"] for _ in range(3)] == ["plain", [1, 2], 4]

    table = ctl(server, "history", channel, "--forward")
    assert [row[1] for row in rows(table)] == ["1", "2", "3"] and "ops" in table.stdout and '"plain"' in table.stdout
    page = ctl_json(server, "history", channel, "--limit", 2)
    assert [m["sequence"] for m in page["messages"]] == [3, 2] and page["hasMore"]
    assert [channel, "1"] in [row[:2] for row in rows(ctl(server, "channels", "list", "--prefix", channel))]
    assert ctl_json(server, "channels", "show", channel)["lastSequence"] == 3
    assert "3 messages" in ctl(server, "channels", "clear", channel).stdout
    assert ctl_json(server, "history", channel)["messages"] == []


def test_a_message_cannot_write_to_the_terminal(server, channel):
    data = json.dumps("\x9b2J\x7f", ensure_ascii=False)
    ctl(server, "publish", channel, data)
    shown = ctl(server, "history", channel).stdout
    assert "\x9b" not in shown and "\x7f" not in shown and "2J" in shown


def test_connections(server):
    client = Client(server).subscribe("t:ctl")
    id = client.hello["id"]
    assert id in [c["id"] for c in ctl_json(server, "connections", "list", "--app", "dev")["connections"]]
    row = next(r for r in rows(ctl(server, "connections", "list", "--client-id", client.client_id)))
    assert row[:3] == [id, "dev", client.client_id] and "127.0.0.1" in row
    assert ctl_json(server, "connections", "show", id)["channels"] == ["t:ctl"]
    assert id in ctl(server, "connections", "end", id).stdout
    client.expect_close(4010)


# -- subscribe ------------------------------------------------------------------------------------------------------------------------


def test_subscribe_as_json_lines(server, channel):
    for n in range(5):
        ctl(server, "publish", channel, n)
    done = ctl(server, "--json", "subscribe", channel, "--rewind", 3, "--count", 3)
    frames = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(f["sequence"], f["data"]) for f in frames] == [(3, 2), (4, 3), (5, 4)]
    assert all(f["action"] == "message" and f["channel"] == channel for f in frames)


def test_subscribe_in_a_terminal_goes_on_after_a_restart(new_server, channel):
    server = new_server()
    with Terminal(server, "subscribe", channel) as terminal:
        terminal.read_until("following")
        ctl(server, "publish", channel, '{"n": 1}', "--id", "first")
        terminal.read_until(r"^\d{4}-\d\d-\d\dT[0-9:.]+Z +1  first  \{\"n\": 1\}$")
        old_admin = server.admin
        assert server.stop() == 0
        terminal.read_until("coming back")
        server.args = ["--admin-listen", "%s:%d" % old_admin]
        server.listen = None
        server.args += ["--listen", "%s:%d" % server.address]
        server.start()
        ctl(server, "publish", channel, "2")
        ctl(server, "publish", channel, "3")
        terminal.read_until(r" +2  \S+  2$")
        terminal.read_until(r" +3  \S+  3$")
        assert terminal.text().count("first") == 1 and "missed" not in terminal.text()
        terminal.interrupt()
        assert terminal.wait() != 0


def test_subscribe_reports_what_is_refused(server):
    assert "[40009]" in ctl(server, "subscribe", "has space", code=1).stderr
    assert "[40400]" in ctl(server, "subscribe", "a", "--app", "none", code=4).stderr


# -- the server itself ----------------------------------------------------------------------------------------------------------------


def test_top_once(server, channel):
    client = Client(server).subscribe(channel)
    table = ctl(server, "top", "--once", "--interval", "0.2").stdout.splitlines()
    assert table[0].startswith("shardwire ") and table[2].split()[:3] == ["SHARD", "CORE", "CONNS"]
    assert [line.split()[0] for line in table[3:]] == ["0", "1", "all"]
    report = ctl_json(server, "top", "--once", "--interval", "0.2")
    assert [s["shard"] for s in report["shards"]] == [0, 1] and report["all"]["connections"] >= 1
    assert report["all"]["cpuPercent"] >= 0
    client.nothing_waiting()


def test_top_in_a_terminal(server, channel):
    with Terminal(server, "top", "--interval", "0.3") as terminal:
        terminal.read_until(r"^SHARD +CORE +CONNS")
        terminal.read_until(r"^all +\d+")
        terminal.read_until("q quits")
        client = Client(server).subscribe(channel)
        for n in range(30):
            client.publish(channel, n)
        # The latency of what was just delivered; until then there is none.
        terminal.read_until(r"^all .* [0-9.]+ +[0-9.]+$")
        assert "\x1b[?1049h" in terminal.shown and "\x1b[?1049l" not in terminal.shown
        terminal.type("q")
        assert terminal.wait() == 0
        assert "\x1b[?1049l" in terminal.shown, "the terminal is given back"


def test_nodes_and_config(server):
    row = rows(ctl(server, "nodes"))[0]
    assert row[0] == str(server.process.pid) and "serving" in row
    assert ctl_json(server, "nodes")["nodes"][0]["listen"] == "%s:%d" % server.address
    assert "limits.publish_bytes_max" in ctl(server, "config").stdout
    assert ctl_json(server, "config")["limits"]["publish_bytes_max"] == 65536


def test_drain_and_wait(new_server):
    server = new_server(config="[drain]\nrate = 20\n")
    clients = [Client(server) for _ in range(10)]
    assert ctl_json(server, "drain", "--status")["draining"] is False
    done = ctl(server, "drain", "--wait")
    assert "draining 10 connections" in done.stdout and done.stdout.rstrip().endswith("stopped")
    assert server.wait() == 0
    for client in clients:
        client.drop()


def test_store_copy_is_the_servers_own(tmp_path):
    command = [str(CTL), "store", "copy", "--to", "mongo", "--", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=20, cwd=tmp_path)
    assert done.returncode == 1 and "no database is configured" in done.stderr, done.stderr


def test_check_is_the_servers_own(server):
    done = subprocess.run([str(CTL), "check"], env=clean_environment(), capture_output=True, text=True, timeout=20, cwd=server.folder)
    assert "io_uring" in done.stdout + done.stderr
    bad = subprocess.run(
        [str(CTL), "check", "--", "--config", "missing.toml"], env=clean_environment(), capture_output=True, text=True, timeout=20
    )
    assert bad.returncode == 2


def test_help_completions_and_manual(server):
    assert "Exit codes" in ctl(server, "--help").stdout
    assert "Example:" in ctl(server, "subscribe", "--help").stdout
    for shell in ("bash", "zsh", "fish"):
        assert "shardwirectl" in ctl(server, "completions", shell).stdout
    page = ctl(server, "man").stdout
    assert page.lstrip().startswith((".ie", ".TH")) and '.SH "SUBSCRIBE"' in page and "\\-\\-rewind" in page
