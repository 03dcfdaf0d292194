"""The operator's contract: settings and their precedence, `check`, first start, ready file, signals, admin endpoints, logs."""

import json
import re
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest

from harness.client import Client
from harness.fan import Fan
from harness.rawws import RawSocket, Refused
from harness.rest import api, call
from harness.server import BINARY, CLIENT_KEY, SERVER_KEY, clean_environment, split_address
from harness.wait import wait_until


def run(folder, *args, env=None, timeout=20):
    """The binary with `args`, to its end."""
    return subprocess.run(
        [str(BINARY), *args], cwd=folder, env=clean_environment(env), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=timeout,
    )


def toml(folder, text, name="shardwire.toml"):
    path = folder / name
    path.write_text(text)
    return path


# -- settings ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file,env,flag,shards",
    [(1, None, None, 1), (2, None, None, 2), (1, 2, None, 2), (2, 1, None, 1), (2, 2, 1, 1), (1, 1, 2, 2), (None, 1, None, 1), (None, None, 2, 2)],
)
def test_flag_wins_over_environment_over_file(new_server, tmp_path, file, env, flag, shards):
    folder = tmp_path / "cwd"
    folder.mkdir()
    if file:
        toml(folder, f"shards = {file}\n")
    server = new_server(shards=flag, env={"SHARDWIRE_SHARDS": str(env)} if env else {}, cwd=folder)
    assert sorted(server.connections()) == list(range(shards))


def test_everything_from_the_file(new_server, tmp_path):
    """The file in the working folder is found without being named."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    data = tmp_path / "the-data"
    toml(folder, 'listen = "127.0.0.1:0"\ndata_dir = "ignored"\nshards = 1\n\n[admin]\nlisten = "127.0.0.1:0"\n')
    server = new_server(shards=None, listen=None, env={"SHARDWIRE_DATA_DIR": str(data)}, cwd=folder)
    Client(server).close()
    assert not (folder / "ignored").exists(), "the flag --data-dir wins"
    assert server.data_dir.exists() and not data.exists()


def test_config_file_named_by_flag_or_environment(new_server, tmp_path):
    one, two = toml(tmp_path, "shards = 1\n", "one.toml"), toml(tmp_path, "shards = 2\n", "two.toml")
    by_flag = new_server(shards=None, args=["--config", str(one)], env={"SHARDWIRE_CONFIG": str(two)})
    assert sorted(by_flag.connections()) == [0]
    by_environment = new_server(shards=None, env={"SHARDWIRE_CONFIG": str(two)})
    assert sorted(by_environment.connections()) == [0, 1]


def test_listen_addresses_from_the_environment(new_server):
    server = new_server(
        listen=None, env={"SHARDWIRE_LISTEN": "127.0.0.1:0", "SHARDWIRE_ADMIN_LISTEN": "127.0.0.1:0", "SHARDWIRE_SHARDS": "1"}
    )
    Client(server).close()


BAD_FILES = {
    "unknown key": ("shardz = 2\n", "shardz"),
    "unknown key in a table": ('[admin]\nlisten = "127.0.0.1:0"\nlissten = "x"\n', "lissten"),
    "unknown table": ("[brokr]\nx = 1\n", "brokr"),
    "wrong type": ('shards = "two"\n', "shards"),
    "not TOML": ("shards = \n", "toml"),
    "bad address": ('listen = "nowhere"\n', "nowhere"),
    "no shards": ("shards = 0\n", "shards"),
}


@pytest.mark.parametrize("text,named", BAD_FILES.values(), ids=BAD_FILES.keys())
@pytest.mark.parametrize("command", [[], ["check"]], ids=["serve", "check"])
def test_bad_configuration_ends_with_2_and_names_what_is_wrong(tmp_path, text, named, command):
    toml(tmp_path, text)
    done = run(tmp_path, *command, env={"SHARDWIRE_ADMIN_LISTEN": "127.0.0.1:0"})
    assert done.returncode == 2, done
    assert named.lower() in (done.stderr + done.stdout).lower(), done


@pytest.mark.parametrize(
    "args", [["--listen", "nowhere"], ["--shards", "x"], ["--shards", "0"], ["--no-such-flag"], ["--config", "missing.toml"]]
)
def test_bad_flags_end_with_2(tmp_path, args):
    done = run(tmp_path, *args)
    assert done.returncode == 2, done
    assert done.stderr


def test_bad_environment_ends_with_2(tmp_path):
    done = run(tmp_path, env={"SHARDWIRE_SHARDS": "many"})
    assert done.returncode == 2, done
    assert "many" in done.stderr


@pytest.mark.parametrize("key", ["short", "has space in it, and is long", "ü" * 20, "x" * 129])
def test_unusable_dev_key_ends_with_2_and_is_not_repeated(tmp_path, key):
    done = run(tmp_path, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", env={"SHARDWIRE_DEV_KEY": key})
    assert done.returncode == 2, done
    assert "SHARDWIRE_DEV_KEY" in done.stderr
    assert key not in done.stderr + done.stdout


def test_check_says_that_all_is_well(tmp_path):
    toml(tmp_path, 'listen = "127.0.0.1:0"\nshards = 1\n\n[admin]\nlisten = "127.0.0.1:0"\n')
    done = run(tmp_path, "check")
    assert done.returncode == 0, done
    said = (done.stdout + done.stderr).lower()
    for subject in ("io_uring", "memlock", "nofile", "backlog"):
        assert subject in said, said
    assert not (tmp_path / "data").exists(), "check changes nothing"


def check_of_listen(folder, port, *more):
    """`check` for a port: the finding about it, and the exit code."""
    done = run(folder, "check", "--json", "--listen", f"127.0.0.1:{port}", "--admin-listen", "127.0.0.1:0", *more)
    return next(f for f in json.loads(done.stdout) if f["what"] == "listen"), done.returncode


def test_check_lets_a_running_server_hold_the_address(new_server, tmp_path):
    server = new_server(shards=1)
    for more in [["--data-dir", str(server.data_dir)], []]:
        finding, code = check_of_listen(tmp_path, server.address[1], *more)
        assert (finding["grade"], code) == ("warn", 0) and f"process {server.process.pid}" in finding["value"], finding
    second = run(tmp_path, "--listen", "127.0.0.1:%d" % server.address[1], "--admin-listen", "127.0.0.1:0", "--shards", "1")
    assert second.returncode == 2, "a start wants it for itself"


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed")
def test_check_lets_a_socket_unit_hold_the_address(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        finding, code = check_of_listen(tmp_path, port)
        assert (finding["grade"], code) == ("fail", 2), "this one is nobody's"
    holder = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "true"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        assert "Listening" in holder.stderr.readline()
        finding, code = check_of_listen(tmp_path, port)
        assert (finding["grade"], code) == ("ok", 0) and "systemd" in finding["value"], finding
    finally:
        holder.kill()
        holder.communicate()


def test_check_takes_a_named_file(tmp_path):
    path = toml(tmp_path, "nonsense = 1\n", "other.toml")
    done = run(tmp_path, "check", "--config", str(path))
    assert done.returncode == 2 and "nonsense" in done.stderr + done.stdout, done


def test_help_and_version(tmp_path):
    help_text = run(tmp_path, "--help")
    assert help_text.returncode == 0
    for flag in ("--config", "--listen", "--admin-listen", "--data-dir", "--shards", "--cores", "--ready-file"):
        assert flag in help_text.stdout
    for name in ("SHARDWIRE_LISTEN", "SHARDWIRE_SHARDS"):
        assert name in help_text.stdout
    assert re.match(r"shardwire \d+\.\d+\.\d+", run(tmp_path, "--version").stdout)


def test_port_in_use_ends_with_a_message_that_names_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = "127.0.0.1:%d" % holder.getsockname()[1]
        done = run(tmp_path, "--listen", address, "--admin-listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "d"))
    assert done.returncode in (1, 2), done
    assert address in done.stderr


def test_ready_file_has_the_real_addresses(new_server):
    server = new_server(shards=1)
    ready = json.loads(server.ready_file.read_text())
    assert set(ready) >= {"listen", "admin"}
    for address in (ready["listen"], ready["admin"]):
        host, port = split_address(address)
        assert host == "127.0.0.1" and port > 0


def test_systemd_is_told_when_the_server_can_serve(new_server, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        path = str(tmp_path / "notify")
        notify.bind(path)
        notify.settimeout(20)
        server = new_server(shards=1, start=False)
        server.env["NOTIFY_SOCKET"] = path
        server.start()
        assert b"READY=1" in notify.recv(4096).split(b"\n")


# -- first start -------------------------------------------------------------------------------------------------------------------


def printed_keys(text):
    return re.findall(r"\bck_[A-Za-z0-9_-]{13,125}", text), re.findall(r"\bsk_[A-Za-z0-9_-]{13,125}", text)


def curl_commands(text):
    """The curl commands in `text`, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line[line.index("curl ") :].strip() for line in joined.splitlines() if "curl " in line]


def test_first_start_prints_keys_and_lines_that_work_and_the_second_makes_no_others(new_server, tmp_path):
    server = new_server(shards=1, keys=False)
    text = server.out() + server.log()
    client_keys, server_keys = map(set, printed_keys(text))
    assert len(client_keys) == 1 and len(server_keys) == 1, text
    (client_key,), (server_key,) = client_keys, server_keys
    subscriber = Client(server, key=client_key)
    commands = curl_commands(text)
    assert commands, text
    channels = set(re.findall(r"/api/channels/([^/\s'\"]+)/messages", " ".join(commands)))
    assert channels, "a line that publishes"
    subscriber.subscribe(*channels)
    for command in commands:
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=20, cwd=tmp_path)
        assert done.returncode == 0, (command, done)
        assert '"messages"' in done.stdout, (command, done)
    for _ in channels:
        subscriber.expect(action="message")
    # The printed line for Python: it prints what is published on its channel.
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("python3 -c ")]
    line = line.replace("python3 -c ", f"exec {shlex.quote(sys.executable)} -u -c ", 1)
    reader = subprocess.Popen(["bash", "-c", line], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        channel = channels.pop()
        wait_until(lambda: api(server, "GET", f"/api/channels/{channel}", key=server_key)["subscribers"] == 2, what="it to subscribe")
        subscriber.publish(channel, "for the pasted line")
        assert reader.stdout.readline().strip() == "for the pasted line"
    finally:
        reader.kill()
        reader.wait(10)
        reader.stdout.close()
    assert server.stop() == 0

    for log in (server.log_file, server.out_file):
        log.unlink()
    server.start()
    again = server.out() + server.log()
    assert not any(printed_keys(again)), again
    Client(server, key=client_key).close()
    Client(server, key=server_key).close()


def test_keys_survive_a_restart_and_are_not_stored_in_clear(new_server):
    server = new_server(shards=1)
    server.kill()
    for path in server.data_dir.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert CLIENT_KEY.encode() not in content and SERVER_KEY.encode() not in content, path
    for name in ("SHARDWIRE_DEV_KEY", "SHARDWIRE_DEV_SERVER_KEY"):
        del server.env[name]
    server.start()
    Client(server, key=CLIENT_KEY).close()
    api(server, "GET", "/api/channels", key=SERVER_KEY)


def test_admin_token_is_made_once_and_only_its_owner_reads_it(new_server):
    server = new_server(shards=1)
    tokens = [p for p in server.data_dir.rglob("*") if p.is_file() and "token" in p.name]
    assert tokens, list(server.data_dir.rglob("*"))
    for path in tokens:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    before = tokens[0].read_bytes()
    assert server.stop() == 0
    server.start()
    assert tokens[0].read_bytes() == before
    assert before.decode().strip() not in server.log() + server.out()


# -- signals -----------------------------------------------------------------------------------------------------------------------------


def test_sigterm_drains_and_ends_with_0(new_server):
    server = new_server(shards=2)
    clients = [Client(server, key=SERVER_KEY).subscribe("c") for _ in range(20)]
    for n in range(50):
        clients[0].publish_raw("c", str(n), f"d{n}")
    for _ in range(50):
        clients[0].expect(action="ack")
    server.signal(signal.SIGTERM)
    for client in clients:
        texts = list(client.backlog) + [json.loads(t) for t in client.expect_bare_end(20)]
        assert [t["data"] for t in texts if t["action"] == "message"] == list(range(50))
    assert server.wait() == 0
    with pytest.raises(OSError):
        RawSocket(server.address)


def test_accepted_publishes_are_not_lost_by_a_drain(new_server):
    """What was acked before the signal is delivered, although the drain ends the subscriber; and no hole is left. (What is
    accepted after a subscriber has been ended is for its resume.)"""
    server = new_server(shards=2)
    subscribers = [Client(server, key=SERVER_KEY).subscribe("c") for _ in range(6)]
    publisher = Client(server, key=SERVER_KEY)
    for n in range(500):
        publisher.publish_raw("c", str(n), f"d{n}")
    acked = [publisher.expect(action="ack")["id"] for _ in range(250)]
    server.signal(signal.SIGTERM)
    for subscriber in subscribers:
        received = [json.loads(t)["data"] for t in subscriber.expect_bare_end(20) if b'"message"' in t]
        assert received == list(range(len(received)))
        assert {f"d{n}" for n in received} >= set(acked)
    assert server.wait() == 0


def test_drain_ends_clients_at_the_set_pace(new_server, tmp_path):
    """Ten a second: the last of twenty goes at least a second after the first, so that they do not come back as one."""
    path = toml(tmp_path, "[drain]\nrate = 10\n")
    server = new_server(shards=1, args=["--config", str(path)])
    fan = Fan([Client(server) for _ in range(20)])
    server.signal(signal.SIGTERM)
    ends = []
    fan.run_until(lambda: len(ends) == 20, 20, lambda stream: stream.ended and ends.append(time.monotonic()))
    assert ends[-1] - ends[0] >= 1.0, f"all within {ends[-1] - ends[0]:.2f} s"
    assert server.wait() == 0
    fan.close()


def test_second_sigterm_stops_at_once(new_server, tmp_path):
    """With one client a second the drain of fifty would take most of a minute."""
    path = toml(tmp_path, "[drain]\nrate = 1\ndeadline_s = 120\n")
    server = new_server(shards=1, args=["--config", str(path)])
    clients = [Client(server) for _ in range(50)]
    seen = len(server.log())
    server.signal(signal.SIGTERM)
    wait_until(lambda: "drain" in server.log()[seen:], what="the drain to begin")
    server.signal(signal.SIGTERM)
    assert server.wait(5) in (0, 1)
    for client in clients:
        client.expect_bare_end()


def test_drain_deadline_bounds_the_drain(new_server, tmp_path):
    path = toml(tmp_path, "[drain]\nrate = 1\ndeadline_s = 1\n")
    server = new_server(shards=1, args=["--config", str(path)])
    clients = [Client(server) for _ in range(50)]
    server.signal(signal.SIGTERM)
    assert server.wait(8) == 0
    for client in clients:
        client.expect_bare_end()


def test_sigint_is_a_clean_stop_too(new_server):
    server = new_server(shards=1)
    server.signal(signal.SIGINT)
    assert server.wait() == 0


def test_sighup_names_what_it_cannot_reload_and_clients_stay(new_server, tmp_path):
    path = toml(tmp_path, "shards = 1\n")
    server = new_server(shards=None, args=["--config", str(path)])
    client = Client(server).subscribe("c")
    seen = len(server.log())
    toml(tmp_path, "shards = 2\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: "shards" in server.log()[seen:], what="a log line that names `shards`")
    client.publish("c", "still here")
    client.expect(action="message")
    assert sorted(server.connections()) == [0]


def test_sighup_with_a_broken_file_changes_nothing(new_server, tmp_path):
    path = toml(tmp_path, "shards = 1\n")
    server = new_server(shards=None, args=["--config", str(path)])
    seen = len(server.log())
    toml(tmp_path, "shardz = [\n")
    server.signal(signal.SIGHUP)
    wait_until(lambda: len(server.log()) > seen, what="a log line about the broken file")
    Client(server).close()


# -- admin listener --------------------------------------------------------------------------------------------------------------------------


def test_health_and_readiness(server):
    for path in ("/healthz", "/readyz"):
        status, _, _ = server.admin_get(path)
        assert status == 200, path
    assert server.admin_get("/nope")[0] == 404


def test_metrics_are_well_formed_and_per_shard(server, connect, channel):
    client = connect().subscribe(channel)
    status, headers, text = server.admin_get("/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    metrics = server.metrics()
    assert {labels["shard"] for labels, _ in metrics.series("shardwire_connections")} == {"0", "1"}
    assert metrics.types["shardwire_connections"] == "gauge"
    assert metrics.types["shardwire_slow_consumers_total"] == "counter"
    for subject in ("subscriptions", "messages", "bytes", "outbox", "slow_consumers", "mesh"):
        assert any(subject in name for name in metrics.names()), (subject, metrics.names())
    assert any(kind in ("histogram", "summary") for kind in metrics.types.values()), metrics.types
    assert all(name.startswith(("shardwire_", "process_")) for name in metrics.names())
    client.nothing_waiting()


def test_counters_move_with_traffic(new_server):
    server = new_server(shards=1)
    client = Client(server).subscribe("c")
    for n in range(10):
        client.publish("c", n, id=f"m{n}")
        client.expect(action="message", data=n)
    client.publish("c", "again", id="m3")
    metrics = server.metrics()
    assert metrics.total("shardwire_publishes_total", result="accepted") == 10
    assert metrics.total("shardwire_publishes_total", result="duplicate") == 1
    assert metrics.total("shardwire_deliveries_total") == 10
    assert metrics.total("shardwire_messages_received_total") == 12
    assert metrics.total("shardwire_subscriptions") == 1
    assert metrics.total("shardwire_sent_bytes_total") > 10 * 80
    assert metrics.total("shardwire_delivery_seconds_count") > 0
    client.close()
    wait_until(lambda: server.metrics().total("shardwire_subscriptions") == 0, what="the subscription to be freed")


def test_bad_input_is_counted(new_server):
    server = new_server(shards=1)
    with pytest.raises(Refused):
        Client(server, key="ck_unknown_key_0123456789")
    with RawSocket(server.address) as raw:
        raw.send(b"GARBAGE\r\n\r\n")
        raw.read_to_end()
    client = Client(server)
    client.send_json({"action": "subscribe", "channel": "bad name"})
    client.expect_error(40009)
    client.send_text("not JSON")
    client.expect_error(40001)
    client.send_frame(3)
    client.expect_close(1002)

    def counted():
        metrics = server.metrics()
        return (
            metrics.total("shardwire_handshakes_total", result="accepted") == 1
            and metrics.total("shardwire_handshakes_total", result="refused") == 1
            and metrics.total("shardwire_handshakes_total", result="failed") == 1
            and metrics.total("shardwire_errors_total", code="40009") == 1
            and metrics.total("shardwire_errors_total", code="40001") == 1
            and metrics.total("shardwire_connections_closed_total") == 1
        )

    wait_until(counted, what="each to be counted once")


# -- log -------------------------------------------------------------------------------------------------------------------------------------------


def test_log_is_json_lines_without_secrets(new_server):
    server = new_server(shards=1)
    client = Client(server, key=CLIENT_KEY).subscribe("c")
    api(server, "GET", "/api/channels")
    call(server, "GET", "/api/channels", key="sk_" + "z" * 30)
    client.close()
    assert server.stop() == 0
    lines = [line for line in server.log().splitlines() if line.strip()]
    assert lines, "a start and a stop leave a line each"
    for line in lines:
        assert isinstance(json.loads(line), dict), line
    assert "z" * 30 not in server.log()
    # The first start prints its keys for the person who started it; a log kept by a service manager must not have them
    # twice, so later lines are free of them.
    server.log_file.unlink()
    server.start()
    Client(server, key=CLIENT_KEY).close()
    assert server.stop() == 0
    assert CLIENT_KEY not in server.log() and SERVER_KEY not in server.log()


def test_running_twice_on_one_data_folder_is_refused(new_server, tmp_path):
    server = new_server(shards=1)
    done = run(tmp_path, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", str(server.data_dir))
    assert done.returncode == 2, done
    assert str(server.data_dir) in done.stderr
    Client(server).close()
