"""Links that lose, delay and hold packets: a network of TUN devices with a relay in user space, for kernels without netem.

``with Network(clients) as network`` joins this process' network namespace to another one, in which each client has an address
of its own; what runs by :meth:`Network.run` has its sockets there. Every packet goes through :class:`Link`, of its client and
direction; TCP is the kernel's own and really sends again what was lost. :func:`in_a_namespace` makes this process root of a
namespace where devices may be made. Linux, with ``unshare``, ``ip`` and /dev/net/tun.
"""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import selectors
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

__all__ = ["SERVER", "Link", "Network", "in_a_namespace", "missing"]

SERVER = "10.9.0.1"
"""Of this process on the network."""
CLIENTS = bytes((10, 9, 1))
TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
MTU = 1500
ENTERED = "ANDES_NAMESPACE"
"""Set in the environment of a process that is root of a namespace of its own."""
Result = TypeVar("Result")


@dataclass
class Link:
    """One client's, in one direction: a queue of ``queue`` packets, ``rate`` bytes/s to send them (None: at once), then
    ``delay_s`` on the way; a share of ``loss`` never arrives. lost, dropped: packets lost on the way, and without room."""

    delay_s: float = 0.0
    loss: float = 0.0
    rate: float | None = None
    queue: int = 64
    random: random.Random = field(default_factory=random.Random)
    carried: int = 0
    lost: int = 0
    dropped: int = 0
    _free_s: float = 0.0
    _waiting: list[float] = field(default_factory=list)

    def stall(self, until_s: float) -> None:
        """Nothing is sent until then; what comes waits as far as there is room."""
        self._free_s = max(self._free_s, until_s)

    def arrival_s(self, size: int, now_s: float) -> float | None:
        """When a packet that comes now is there; None: never."""
        while self._waiting and self._waiting[0] <= now_s:
            heapq.heappop(self._waiting)
        if self.random.random() < self.loss:
            self.lost += 1
            return None
        if len(self._waiting) >= self.queue:
            self.dropped += 1
            return None
        self.carried += 1
        self._free_s = max(now_s, self._free_s) + (0.0 if self.rate is None else size / self.rate)
        heapq.heappush(self._waiting, self._free_s)
        return self._free_s + self.delay_s


class Network:
    """``clients`` at most 250. to, back: each client's links, there and back; they may change at any time."""

    def __init__(self, clients: int, seed: int = 1) -> None:
        self.to = [Link(random=random.Random(f"{seed} to {k}")) for k in range(clients)]
        self.back = [Link(random=random.Random(f"{seed} back {k}")) for k in range(clients)]
        self._far = ThreadPoolExecutor(1)
        self._fds: list[int] = []
        self._ended = threading.Event()
        self._relay = threading.Thread(target=self._carry, daemon=True)

    @staticmethod
    def address(client: int) -> str:
        """Of ``client``, to bind its sockets to."""
        return ".".join(map(str, CLIENTS)) + f".{client + 1}"

    def __enter__(self) -> Network:
        _ip("link", "set", "lo", "up")
        self._fds.append(_device([f"{SERVER}/16"]))
        self._fds.append(self.run(lambda: _far_device([f"{self.address(k)}/16" for k in range(len(self.to))])))
        self._relay.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._relay.join()
        self._far.shutdown()
        for fd in self._fds:
            os.close(fd)

    def run(self, work: Callable[[], Result]) -> Result:
        """``work`` done on the clients' side of the network."""
        return self._far.submit(work).result()

    def _carry(self) -> None:
        near, far = self._fds
        coming: list[tuple[float, int, int, bytes]] = []
        count = 0
        with selectors.DefaultSelector() as selector:
            for fd in self._fds:
                selector.register(fd, selectors.EVENT_READ)
            while not self._ended.is_set():
                due_s = coming[0][0] if coming else float("inf")
                ready = selector.select(max(0.0, min(0.1, due_s - time.monotonic())))
                for key, _ in ready:
                    packet = os.read(key.fd, 2 * MTU)
                    count += 1
                    link, out = (
                        (self._link(packet, 16, self.to), far)
                        if key.fd == near
                        else (self._link(packet, 12, self.back), near)
                    )
                    at_s = None if link is None else link.arrival_s(len(packet), time.monotonic())
                    if at_s is not None:
                        heapq.heappush(coming, (at_s, count, out, packet))
                while coming and coming[0][0] <= time.monotonic():
                    _, _, out, packet = heapq.heappop(coming)
                    os.write(out, packet)

    @staticmethod
    def _link(packet: bytes, at: int, links: list[Link]) -> Link | None:
        """Of the client whose IPv4 address is there in the header; none of what is not a client's."""
        number = packet[at + 3] - 1 if packet[0] >> 4 == 4 and packet[at : at + 3] == CLIENTS else -1
        return links[number] if 0 <= number < len(links) else None


def _device(addresses: list[str]) -> int:
    """A TUN device in this thread's namespace, up; what is sent to it is read from the file that is returned."""
    fd = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
    name = (
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"andes%d", IFF_TUN | IFF_NO_PI))[:16].rstrip(b"\0").decode()
    )
    for address in addresses:
        _ip("addr", "add", address, "dev", name)
    _ip("link", "set", name, "mtu", str(MTU), "up")
    return fd


def _far_device(addresses: list[str]) -> int:
    """The same in a namespace that this thread alone moves to."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare: no further network namespace")
    return _device(addresses)


def _ip(*words: str) -> None:
    command = ["ip", *words]
    subprocess.run(command, check=True, capture_output=True)


def missing() -> str:
    """What this machine lacks for a network; empty: nothing."""
    if sys.platform != "linux":
        return "needs Linux"
    if lacking := [program for program in ("unshare", "ip") if not shutil.which(program)]:
        return f"needs {' and '.join(lacking)} (util-linux, iproute2)"
    if not os.access(TUN, os.R_OK | os.W_OK):
        return f"needs {TUN}, readable and writable"
    makes_one = ["unshare", "-rn", "ip", "tuntap", "add", "dev", "andes0", "mode", "tun"]
    tried = subprocess.run(makes_one, capture_output=True, text=True, check=False)
    return f"may make no network namespace: {tried.stderr.strip()}" if tried.returncode else ""


def in_a_namespace() -> None:
    """Start this program again as root of a user and network namespace of its own. Raises ``SystemExit`` without one."""
    if os.environ.get(ENTERED) == "1":
        return
    if lacks := missing():
        raise SystemExit(f"links: {lacks}")
    os.environ[ENTERED] = "1"
    os.execvp("unshare", ["unshare", "-rn", sys.executable, *sys.argv])  # noqa: S606, S607
