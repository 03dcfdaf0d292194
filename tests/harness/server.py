"""The server under test: the release binary as a child process with its own data folder and kernel-given ports.

Not a fixture (see conftest.py) and not a client. Only the process started here is ever signalled.
"""

import json
import os
import pathlib
import signal
import subprocess
import urllib.request

from .metrics import parse_metrics
from .wait import wait_until

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BINARY = pathlib.Path(os.environ.get("SHARDWIRE_BIN", TARGET / "release" / "shardwire"))
ECHO_BINARY = pathlib.Path(os.environ.get("SHARDWIRE_ECHO_BIN", TARGET / "release" / "examples" / "echo"))

CLIENT_KEY = "ck_e2e_client_0123456789"
SERVER_KEY = "sk_e2e_server_0123456789"

# Seconds from exec to the ready file; generous because a cold machine compiles nothing here but may page.
START_TIMEOUT = 20.0
# Seconds from SIGTERM to exit. The drain of a handful of test connections must fit.
STOP_TIMEOUT = 20.0


def clean_environment(extra=None):
    """The environment without any SHARDWIRE_ setting of the person who runs the tests."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SHARDWIRE_")}
    env.pop("NOTIFY_SOCKET", None)
    env.update(extra or {})
    return env


class Server:
    """One run of the binary. `start()` returns when it can serve; `stop()`, `kill()` end it."""

    live = []  # every started and not yet ended server, for failure reports

    def __init__(self, folder, shards=2, listen="127.0.0.1:0", args=(), env=None, keys=True, cwd=None, config=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        if config is not None:
            (self.folder / "shardwire.toml").write_text(config)
        self.data_dir = self.folder / "data"
        self.ready_file = self.folder / "ready.json"
        self.log_file = self.folder / "stderr.log"
        self.out_file = self.folder / "stdout.log"
        self.shards, self.listen, self.args, self.cwd = shards, listen, list(args), cwd
        self.env = clean_environment(env)
        if keys:
            self.env.setdefault("SHARDWIRE_DEV_KEY", CLIENT_KEY)
            self.env.setdefault("SHARDWIRE_DEV_SERVER_KEY", SERVER_KEY)
        self.process = None
        self.address = self.admin = None
        self.admin_tls = None  # context of a client, where the admin listener has TLS

    # -- life -----------------------------------------------------------------------------------------------------

    def command(self):
        command = [str(BINARY), "--data-dir", str(self.data_dir), "--ready-file", str(self.ready_file)]
        if self.listen is not None:
            command += ["--listen", self.listen, "--admin-listen", "127.0.0.1:0"]
        if self.shards is not None:
            command += ["--shards", str(self.shards)]
        return command + self.args

    def start(self):
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self):
        """Start the process without waiting for it."""
        assert BINARY.exists(), f"{BINARY} is not built: cargo build --release"
        self.ready_file.unlink(missing_ok=True)
        with open(self.log_file, "ab") as log, open(self.out_file, "ab") as out:
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=self.env,
                cwd=self.cwd or self.folder,
            )
        Server.live.append(self)

    def wait_ready(self, timeout=START_TIMEOUT):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode} at start:\n{self.log()[-4000:]}")
            try:
                return json.loads(self.ready_file.read_text())
            except (FileNotFoundError, ValueError):
                return None

        addresses = wait_until(ready, timeout, "ready file")
        self.address = split_address(addresses["listen"])
        self.admin = split_address(addresses["admin"])

    def restart_on_same_port(self):
        """Start again after the end, on the address of the run before."""
        assert not self.alive()
        self.listen = "%s:%d" % self.address
        return self.start()

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def signal(self, number):
        assert self.alive(), "the server has ended"
        self.process.send_signal(number)

    def wait(self, timeout=STOP_TIMEOUT):
        """Wait for the end; return the exit code (negative: the signal)."""
        code = self.process.wait(timeout)
        self._forget()
        return code

    def stop(self, timeout=STOP_TIMEOUT):
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self):
        if self.alive():
            self.process.kill()
            self.process.wait(10)
        self._forget()

    def _forget(self):
        if self in Server.live:
            Server.live.remove(self)

    # -- looking at it --------------------------------------------------------------------------------------------

    @property
    def url(self):
        return "ws://%s:%d" % self.address

    def log(self):
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def out(self):
        return self.out_file.read_text(errors="replace") if self.out_file.exists() else ""

    def admin_get(self, path, timeout=5.0):
        """(status, headers, body text) of a GET on the admin listener."""
        scheme = "https" if self.admin_tls else "http"
        request = urllib.request.Request("%s://%s:%d%s" % (scheme, *self.admin, path))
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self.admin_tls) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.headers, refused.read().decode()

    def metrics(self):
        status, _, text = self.admin_get("/metrics")
        assert status == 200, text
        return parse_metrics(text)

    def connections(self):
        """Open client connections by shard: `{0: n, 1: m}`."""
        return {int(labels["shard"]): int(value) for labels, value in self.metrics().series("shardwire_connections")}


def split_address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)
