"""The README's ways to verify a delivery, run in their languages on what the server has signed, and on forgeries."""

import base64
import hashlib
import hmac
import json
import re
import shutil
import subprocess
import sys
import time

import pytest

from harness.hooks import CONFIG, Receiver, add_webhook, webhook
from harness.server import ROOT, Server

# How a snippet is run: the program, and the code around it. It reads cases of secret, header and body (base64) from its
# input, and prints what it says of each.
RUNNERS = {
    "python": ([sys.executable, "-W", "error"], "{snippet}\n"
               "import base64, json, sys\n"
               "cases = json.load(sys.stdin)\n"
               "print(json.dumps([verify(s, h, base64.b64decode(b)) for s, h, b in cases]))\n"),
    "js": (["node"], "{snippet}\n"
           "const cases = JSON.parse(require('fs').readFileSync(0));\n"
           "console.log(JSON.stringify(cases.map(([s, h, b]) => verify(s, h, Buffer.from(b, 'base64')))));\n"),
    "php": (["php", "-d", "error_reporting=-1", "-d", "display_errors=stderr"], "<?php\n{snippet}\n"
            "$cases = json_decode(file_get_contents('php://stdin'));\n"
            "echo json_encode(array_map(fn ($c) => verify($c[0], $c[1], base64_decode($c[2])), $cases));\n"),
}


def snippets():
    section = re.search(r"^## Webhooks$(.*?)^## ", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    return {language: code for language, code in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.M | re.S)
            if "verify(" in code}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """What is to be told apart: `(is right, secret, header, body)`."""
    server = Server(tmp_path_factory.mktemp("snippets"), shards=1, config=CONFIG).start()
    with Receiver() as receiver:
        hook = add_webhook(server, receiver.url)
        webhook(server, hook, "POST", "/test")
        rotated = webhook(server, hook, "POST", "/rotate", {"overlapSeconds": 600})
        webhook(server, hook, "POST", "/test")
    assert server.stop() == 0
    once, twice = receiver.deliveries
    assert twice.signatures == 2
    secret, (header, body) = hook["secret"], (once.headers["X-WSocket-Signature"], once.raw)
    stamp, sum = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", header).groups()

    def signed(at):
        mac = hmac.new(secret.encode(), b"%d." % at + body, hashlib.sha256)
        return f"t={at},v1={mac.hexdigest()}"

    now = int(time.time())
    assert signed(int(stamp)) == header
    return [
        (True, secret, header, body),
        (True, secret, twice.headers["X-WSocket-Signature"], twice.raw),
        (True, rotated["secret"], twice.headers["X-WSocket-Signature"], twice.raw),
        (True, secret, signed(now - 200), body),
        (False, secret, signed(now - 310), body),
        (False, secret, signed(now + 320), body),
        (False, secret, header, body + b" "),
        (False, secret, header, b""),
        (False, rotated["secret"], header, body),
        (False, "", header, body),
        (False, secret, f"t={stamp},v1={sum[:-1]}{'0' if sum[-1] != '0' else '1'}", body),
        (False, secret, f"t={int(stamp) + 1},v1={sum}", body),
        (False, secret, f"t={stamp},v0={sum}", body),
        (False, secret, f"t={stamp},v1={sum[:32]}", body),
        (False, secret, f"t={stamp},v1={'z' * 64}", body),
        (False, secret, f"t={stamp},v1={'é' * 64}", body),
        (False, secret, f"t={stamp}", body),
        (False, secret, f"v1={sum}", body),
        (False, secret, f"t=,v1={sum}", body),
        (False, secret, f"t=soon,v1={sum}", body),
        (False, secret, "nonsense", body),
        (False, secret, "", body),
    ]


def test_each_language_of_the_readme_can_be_run():
    assert set(snippets()) == set(RUNNERS)


@pytest.mark.parametrize("language", RUNNERS)
def test_a_snippet_tells_right_from_forged(language, cases, tmp_path):
    command, frame = RUNNERS[language]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    program = tmp_path / f"verify.{language.replace('js', 'cjs')}"
    program.write_text(frame.replace("{snippet}", snippets()[language]))
    asked = [(secret, header, base64.b64encode(body).decode()) for _, secret, header, body in cases]
    done = subprocess.run([*command, program], input=json.dumps(asked), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and not done.stderr, done.stderr
    said = json.loads(done.stdout)
    wrong = [case for case, answer in zip(cases, said, strict=True) if case[0] is not answer]
    assert not wrong, wrong
