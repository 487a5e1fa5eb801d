"""Who listens on a TCP port of this host, by the kernel's own tables."""

import contextlib
import os
import re
import socket

import msgspec

from hutch.host.kernel.process import ProcessRef

_LISTEN = "0A"
_IP_FREEBIND = 15
_BACKLOG = 128
_SOCKET = re.compile(r"socket:\[(\d+)\]")


class Listener(msgspec.Struct, frozen=True, kw_only=True):
    """A process that holds a listening socket; `pid` 0 if it is in another PID namespace."""

    pid: int
    program: str


def listen_on_link(address: str, port: int, link: str) -> socket.socket:
    """A listening TCP socket that only packets which come in through this link can reach. Raises `OSError`."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode() + b"\0")
        listening.bind((address, port))
        listening.listen(_BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def tcp_listener(address: str, port: int, *, but: tuple[ProcessRef, ...] = ()) -> Listener | None:
    """A process besides `but` that keeps others from listening on this address and port; None if there is none."""
    inodes = _listening_inodes(address, port)
    if not inodes:
        return None
    ours = {inode for ref in but for inode in _sockets_of(ref.pid)}
    foreign = inodes - ours
    if not foreign:
        return None
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and foreign & _sockets_of(int(entry)):
            return Listener(pid=int(entry), program=_program(int(entry)))
    return Listener(pid=0, program="another program")


def _listening_inodes(address: str, port: int) -> set[str]:
    """Sockets in state LISTEN that overlap with the address: the same one, or either being the wildcard."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    wanted = _kernel_form(socket.inet_pton(family, address))
    found = set()
    for path in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(path, encoding="ascii") as f:
                rows = [line.split() for line in f.readlines()[1:]]
        except FileNotFoundError:
            continue  # no IPv6
        for row in rows:
            host, _, hex_port = row[1].partition(":")
            overlaps = host == wanted or not host.strip("0") or not wanted.strip("0")
            if row[3] == _LISTEN and int(hex_port, 16) == port and overlaps:
                found.add(row[9])
    return found


def _kernel_form(packed: bytes) -> str:
    """As /proc/net/tcp writes an address: words in the machine's byte order (little-endian on all we run on)."""
    return b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4)).hex().upper()


def _sockets_of(pid: int) -> set[str]:
    found: set[str] = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found  # it ended
    for name in names:
        with contextlib.suppress(OSError):  # closed while we look
            if match := _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{name}")):
                found.add(match[1])
    return found


def _program(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return "another program"
