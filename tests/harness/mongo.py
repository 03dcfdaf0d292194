"""A MongoDB server of a test's own: `secantusd-py` from PyPI, or a real one that SHARDWIRE_TEST_MONGO_URL names."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE_S = 30


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MongoServer:
    """Keeps its data and its port from start to start."""

    def __init__(self, folder=None, is_durable=True, arguments=()):
        self.own_folder = folder is None
        self.folder = Path(folder or tempfile.mkdtemp(prefix="shardwire-mongo-"))
        self.port = free_port()
        self.process, self.arguments = None, list(arguments)
        # Whether commits are on the disk before they are answered.
        self.is_durable = is_durable

    @property
    def url(self):
        return f"mongodb://127.0.0.1:{self.port}/"

    def start(self):
        program = Path(sys.executable).with_name("secantusd-py")
        command = [program, "--port", str(self.port), "--storage-path", self.folder / "data"]
        command += ["--sync-on-commit"] * self.is_durable + self.arguments
        log = open(self.folder / "mongo.log", "ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder)
        log.close()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return self
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.folder / "mongo.log").read_text()[-3000:]) from None
                time.sleep(0.02)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        """As a power cut would leave the process."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            # One that is stopped would not hear of anything else.
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        if self.own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


def main():
    """`python -m harness.mongo COMMAND…`: runs a command with SHARDWIRE_TEST_MONGO_URL, from here if it is not set."""
    if os.environ.get("SHARDWIRE_TEST_MONGO_URL"):
        sys.exit(subprocess.call(sys.argv[1:]))
    with MongoServer(is_durable=False) as server:
        sys.exit(subprocess.call(sys.argv[1:], env={**os.environ, "SHARDWIRE_TEST_MONGO_URL": server.url}))


if __name__ == "__main__":
    main()
