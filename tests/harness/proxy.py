"""A TCP proxy that can be told to pass nothing on, or to be slow: the network between two processes, as it fails.

One thread per proxy. While it is cut, bytes of open connections stay where they are and connections that come are taken and
hear nothing, as with a network that drops packets. What open connections find afterwards is for `heal` to choose.
"""

import collections
import selectors
import socket
import struct
import threading
import time

CHUNK = 1 << 16
# Bytes on their way in one direction beyond which the sender is not read from.
BUFFER = 1 << 20


class Proxy:
    """Passes connections to `target` (address) on. `delay`: seconds that every byte takes in each direction."""

    def __init__(self, target, delay=0.0):
        self.target, self.delay = target, delay
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.address = self.listener.getsockname()
        self.is_cut, self.passed = False, 0
        self.lock, self.ended = threading.Lock(), False
        self.wake_in, self.wake_out = socket.socketpair()
        self.selector = selectors.EpollSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.selector.register(self.wake_out, selectors.EVENT_READ, None)
        self.links, self.orders = [], collections.deque()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    @property
    def port(self):
        return self.address[1]

    def cut(self):
        """From here on nothing passes."""
        self.order(self.do_cut)

    def heal(self, keep=False):
        """Passes bytes again. Open connections are reset, as by a machine between that has forgotten them; with `keep`
        they go on with what was held, as after a short disturbance."""
        self.order(self.do_keep if keep else self.do_heal)

    def reset(self):
        """Ends all connections; others can be made at once."""
        self.order(self.drop_links)

    def close(self):
        self.order(self.do_end)
        self.thread.join(5)
        # Not by the thread: it may end before `order` has woken it.
        for one in (self.listener, self.wake_in, self.wake_out, self.selector):
            one.close()

    # -- the thread -----------------------------------------------------------------------------------------------

    def order(self, what):
        done = threading.Event()
        self.orders.append((what, done))
        self.wake_in.send(b".")
        assert done.wait(5), "the proxy's thread has ended"

    def do_cut(self):
        self.is_cut = True

    def do_keep(self):
        self.is_cut = False

    def do_heal(self):
        self.is_cut = False
        self.drop_links()

    def do_end(self):
        self.ended = True
        self.drop_links()

    def drop_links(self):
        for link in list(self.links):
            link.end()

    def run(self):
        while not self.ended:
            wait = min((link.due() for link in self.links), default=1.0)
            for key, _ in self.selector.select(0.02 if self.is_cut else min(1.0, wait)):
                if key.fileobj is self.wake_out:
                    self.wake_out.recv(CHUNK)
                elif key.fileobj is self.listener:
                    self.accept()
                elif not self.is_cut:
                    key.data.read(key.fileobj)
            while self.orders:
                what, done = self.orders.popleft()
                what()
                done.set()
            if not self.is_cut:
                for link in list(self.links):
                    link.move()
            else:
                time.sleep(0.01)

    def accept(self):
        try:
            near, _ = self.listener.accept()
        except OSError:
            return
        self.links.append(Link(self, near))


class Link:
    """One connection through the proxy. Its far side is made when bytes may pass."""

    def __init__(self, proxy, near):
        self.proxy, self.near, self.far = proxy, near, None
        self.near.setblocking(False)
        self.near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # By the socket that they are for: (when due, bytes; none: the end).
        self.queues = {near: collections.deque()}

    def connect(self):
        try:
            self.far = socket.create_connection(self.proxy.target, timeout=1)
        except OSError:
            return self.end()
        self.far.setblocking(False)
        self.far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.queues[self.far] = collections.deque()
        for one in (self.near, self.far):
            self.proxy.selector.register(one, selectors.EVENT_READ, self)
        return None

    def other(self, one):
        return self.far if one is self.near else self.near

    def read(self, one):
        if one not in self.queues:
            return
        queue = self.queues[self.other(one)]
        if sum(len(data) for _, data in queue) > BUFFER:
            return
        try:
            data = one.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            return self.end()
        queue.append((time.monotonic() + self.proxy.delay, data))
        if not data:
            self.proxy.selector.unregister(one)

    def due(self):
        """Seconds until something may be written."""
        first = min((queue[0][0] for queue in self.queues.values() if queue), default=None)
        return 1.0 if first is None else max(0.001, first - time.monotonic())

    def move(self):
        if self.far is None:
            self.connect()
        now = time.monotonic()
        for one, queue in list(self.queues.items()):
            while queue and queue[0][0] <= now:
                when, data = queue.popleft()
                try:
                    if not data:
                        one.shutdown(socket.SHUT_WR)
                        continue
                    sent = one.send(data)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    return self.end()
                self.proxy.passed += sent
                if sent < len(data):
                    queue.appendleft((when, data[sent:]))
                    break

    def end(self):
        for one in filter(None, (self.near, self.far)):
            try:
                self.proxy.selector.unregister(one)
            except (KeyError, ValueError):
                pass
            # A reset, not an orderly end.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        self.queues.clear()
        if self in self.proxy.links:
            self.proxy.links.remove(self)
