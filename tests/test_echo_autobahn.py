"""RFC 6455 to the letter: the cases of Autobahn's fuzzing client against the echo example, which is the server's own
connection and framing code with a handler that sends every message back."""

import queue
import re
import subprocess
import threading

import pytest

from harness.autobahn import EXPECTED_COUNTS, load_cases, run_cases
from harness.rawws import BINARY, TEXT, RawWs, encode_frame
from harness.server import ECHO_BINARY, clean_environment, split_address

PASSED = {"OK", "NON-STRICT", "INFORMATIONAL"}
MIB = 1 << 20


@pytest.fixture(scope="module")
def echo():
    """The address of a running echo example."""
    assert ECHO_BINARY.exists(), f"{ECHO_BINARY} is not built: cargo build --release --example echo"
    process = subprocess.Popen(
        [str(ECHO_BINARY), "--listen", "127.0.0.1:0"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, env=clean_environment(),
    )
    lines = queue.Queue()

    def pump():
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=pump, daemon=True).start()
    said = []
    try:
        while True:
            line = lines.get(timeout=20)
            said.append(line)
            assert line, f"the echo example ended: {''.join(said)}"
            found = re.search(r"listening on (127\.0\.0\.1:\d+)", line)
            if found:
                break
        yield split_address(found[1])
        assert process.poll() is None, "the echo example ended during the cases"
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("category", EXPECTED_COUNTS)
def test_autobahn_category(echo, category):
    cases = load_cases({category})
    assert len(cases) == EXPECTED_COUNTS[category], sorted(cases)
    heavy = category == 9
    results = run_cases(cases, echo, at_once=2 if heavy else 24, timeout=120 if heavy else 30)
    failed = {
        case: result
        for case, result in results.items()
        if result[0] not in PASSED or result[1] not in PASSED
        # Failing fast on bad UTF-8 is strict behaviour that the example promises.
        or (case.startswith("6.4.") and result[0] != "OK")
    }
    assert not failed, "\n".join(f"{case}: {' / '.join(result)}" for case, result in failed.items())
    print({kind: [r[0] for r in results.values()].count(kind) for kind in PASSED})


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
def test_echo_of_16_mib(echo, opcode):
    payload = b"0123456789abcdef" * MIB
    with RawWs(echo, timeout=60) as client:
        client.send_frame(opcode, payload)
        frame = client.recv_frame()
        assert (frame.opcode, len(frame.payload)) == (opcode, 16 * MIB)
        assert frame.payload == payload


def test_echo_beyond_16_mib_closes_1009_without_the_payload(echo):
    client = RawWs(echo)
    client.send(encode_frame(BINARY, b"", length=16 * MIB + 1))
    client.expect_close(1009)
