"""The systemd units: systemd's own checks, the install scripts, and the server in the pieces of their sandbox that run
without systemd as the first process."""

import ctypes
import os
import pathlib
import re
import shutil
import socket
import subprocess

import pytest

from harness.client import Client
from harness.server import BINARY, CLIENT_KEY, ROOT, SERVER_KEY, clean_environment
from harness.wait import wait_until

UNITS = ROOT / "systemd"
NAMES = ["shardwire.service", "shardwire@.service", "shardwire.socket", "shardwire.slice"]
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
needs_activate = pytest.mark.skipif(
    not shutil.which("systemd-socket-activate"), reason="systemd-socket-activate is not installed"
)

PR_SET_NO_NEW_PRIVS, PR_SET_MDWE = 38, 65


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


@pytest.fixture
def installed(tmp_path):
    root = tmp_path / "root"
    done = run("sh", str(UNITS / "install.sh"), "--root", str(root), "--binary", str(BINARY))
    assert done.returncode == 0, done.stderr
    return root


def test_what_is_installed_can_be_taken_away_but_settings_stay(installed):
    settings = installed / "etc/shardwire/shardwire.toml"
    assert {pathlib.Path(f).name for f in files(installed) if "/system/" in f} == set(NAMES)
    assert os.access(installed / "usr/bin/shardwire", os.X_OK)
    settings.write_text("# the operator's\n")
    done = run("sh", str(UNITS / "install.sh"), "--root", str(installed), "--binary", str(BINARY))
    assert done.returncode == 0 and settings.read_text() == "# the operator's\n"
    done = run("sh", str(UNITS / "uninstall.sh"), "--root", str(installed))
    assert done.returncode == 0, done.stderr
    assert files(installed) == ["etc/shardwire/shardwire.toml"]
    assert run("sh", str(UNITS / "install.sh"), "--what").returncode == 2


def test_the_installed_settings_are_valid(installed, tmp_path):
    done = subprocess.run(
        [str(BINARY), "check", "--json", "--config", str(installed / "etc/shardwire/shardwire.toml"),
         "--data-dir", str(tmp_path / "data"), "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=60, env=clean_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_systemd
def test_systemd_finds_nothing_wrong(installed):
    kill = installed / "bin/kill"
    kill.parent.mkdir()
    kill.write_text("")
    kill.chmod(0o755)
    for name in [*NAMES, "shardwire@one.service"]:
        done = run("systemd-analyze", f"--root={installed}", "verify", "--recursive-errors=no", name)
        assert (done.returncode, done.stderr) == (0, ""), name
    unit = installed / "usr/lib/systemd/system/shardwire.service"
    unit.write_text(unit.read_text().replace("LimitNOFILE=", "LimitNofiles="))
    assert run("systemd-analyze", f"--root={installed}", "verify", "--recursive-errors=no", unit.name).stderr


@needs_systemd
@pytest.mark.parametrize("name", ["shardwire.service", "shardwire@one.service"])
def test_the_exposure_is_what_the_readme_says(installed, name):
    done = run("systemd-analyze", "security", "--offline=true", f"--root={installed}", name)
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    said = re.search(r"rates the service ([\d.]+)", (ROOT / "README.md").read_text())
    assert float(score[1]) <= float(said[1]), done.stdout


@needs_activate
def test_the_server_serves_what_systemd_listens_on(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ready = tmp_path / "ready.json"
    setenv = [f"-E{k}={v}" for k, v in {"SHARDWIRE_DEV_KEY": CLIENT_KEY, "SHARDWIRE_DEV_SERVER_KEY": SERVER_KEY}.items()]
    process = subprocess.Popen(
        ["systemd-socket-activate", "-l", f"127.0.0.1:{port}", "--fdname=client", *setenv, str(BINARY), "--shards", "2",
         "--data-dir", str(tmp_path / "data"), "--ready-file", str(ready), "--admin-listen", "127.0.0.1:0"],
        env=clean_environment(), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    try:
        assert "Listening" in process.stderr.readline()
        # The first one starts the server, and waits in the socket until it serves.
        first = Client(("127.0.0.1", port), key=SERVER_KEY, timeout=20).subscribe("c")
        first.publish("c", 1)
        assert first.expect(action="message")["data"] == 1
        wait_until(ready.exists, what="the ready file")
        process.terminate()
        process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_server_runs_without_new_privileges_and_without_memory_that_is_written_and_executed(new_server):
    """NoNewPrivileges= and MemoryDenyWriteExecute=, by the calls of the kernel that they stand for."""
    libc = ctypes.CDLL(None, use_errno=True)
    inner = subprocess.Popen

    def confine():
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        if libc.prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0:
            os._exit(77)

    server = new_server(start=False)
    subprocess.Popen = lambda *args, **options: inner(*args, preexec_fn=confine, **options)
    try:
        server.spawn()
    finally:
        subprocess.Popen = inner
    try:
        server.wait_ready()
    except AssertionError:
        if server.process.returncode == 77:
            pytest.skip("the kernel has no PR_SET_MDWE (6.3)")
        raise
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    assert re.search(r"NoNewPrivs:\s1", status)
    client = Client(server, key=SERVER_KEY).subscribe("c")
    client.publish("c", 1)
    assert client.expect(action="message")["data"] == 1
    assert server.stop() == 0
