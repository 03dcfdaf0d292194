"""A process that holds many named clients, each entered in one channel, until it is killed.

`crowd.py HOST PORT KEY CHANNEL COUNT`; says `entered` on stdout once all have asked to enter.
"""

import selectors
import sys

from rawws import RawWs


def main(host, port, key, channel, count):
    readable = selectors.DefaultSelector()
    for n in range(int(count)):
        client = RawWs((host, int(port)), f"/?key={key}&clientId=crowd-{n}&shape=standard")
        client.send_text(f'{{"action":"presence.enter","channel":"{channel}","data":{{"n":{n}}}}}')
        client.socket.setblocking(False)
        readable.register(client.socket, selectors.EVENT_READ)
        swallow(readable, 0)
    print("entered", flush=True)
    while True:
        swallow(readable, None)


def swallow(readable, timeout):
    """Reads what the others' entering has brought: nobody here is to be a slow client."""
    for ready, _ in readable.select(timeout):
        ready.fileobj.recv(1 << 18)


if __name__ == "__main__":
    main(*sys.argv[1:])
