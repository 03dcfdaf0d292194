"""`shardwirectl`, run to its end or in a terminal of its own."""

import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

from .admin import token
from .server import BINARY, clean_environment

CTL = pathlib.Path(os.environ.get("SHARDWIRE_CTL_BIN", BINARY.with_name("shardwirectl")))


def environment(server):
    return clean_environment({"SHARDWIRE_ADMIN_URL": "http://%s:%d" % server.admin, "SHARDWIRE_ADMIN_TOKEN": token(server)})


def ctl(server, *args, code=0, stdin=None, env=None, timeout=30, cwd=None):
    """Run it to its end, which must have exit code `code`; the finished process."""
    done = subprocess.run(
        [str(CTL), *map(str, args)], env=env or environment(server), input="" if stdin is None else stdin,
        capture_output=True, text=True, timeout=timeout, cwd=cwd,
    )
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}: {done.stdout}{done.stderr}"
    return done


def ctl_json(server, *args, **how):
    """What `shardwirectl --json` prints, parsed."""
    return json.loads(ctl(server, "--json", *args, **how).stdout)


class Terminal:
    """The program in a pseudo-terminal of 160 by 40; ended when the block is left."""

    def __init__(self, server, *args, env=None):
        self.main, sub = pty.openpty()
        fcntl.ioctl(sub, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        self.process = subprocess.Popen(
            [str(CTL), *map(str, args)], env=env or environment(server), stdin=sub, stdout=sub, stderr=sub,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(sub)
        self.shown = ""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.main)

    def read_until(self, pattern, timeout=15):
        """Read until `pattern` is shown; the match. Escape sequences are left out."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.text(), re.M)
            if found:
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} is not in:\n{self.text()}"
            if not select.select([self.main], [], [], left)[0]:
                continue
            try:
                data = os.read(self.main, 65536)
            except OSError:
                data = b""
            assert data, f"ended without {pattern!r}:\n{self.text()}"
            self.shown += data.decode(errors="replace")

    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.shown).replace("\r", "")

    def type(self, text):
        os.write(self.main, text.encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def wait(self, timeout=10):
        """The exit code; what is printed meanwhile is read, or the program could not end."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"has not ended:\n{self.text()}"
            self.read_some(0.05)
        while self.read_some(0):
            pass
        return self.process.returncode

    def read_some(self, timeout):
        """Read what is there, or comes in time; whether that was anything."""
        if not select.select([self.main], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self.main, 65536)
        except OSError:
            data = b""
        self.shown += data.decode(errors="replace")
        return bool(data)
