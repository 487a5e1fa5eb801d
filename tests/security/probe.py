"""Runs as a VM monitor that a guest has taken over: inside the jail, as its user, with nothing but what QEMU gets. Tries
what an attacker would try, and prints how far it came: {attempt: "ok: ..." or the error's name}.

    probe.py <JSON: what the host has that must not be reached>
"""

import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)
given: dict[str, Any] = json.loads(sys.argv[1])
results: dict[str, str] = {}


def attempt(name: str, action: Callable[[], object]) -> None:
    try:
        results[name] = f"ok: {action()}"
    except OSError as error:
        results[name] = errno_name(error.errno)


def errno_name(number: int | None) -> str:
    import errno

    return errno.errorcode.get(number or 0, str(number))


def call(name: str, *arguments: Any) -> int:
    """A C function; raises `OSError`."""
    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def read(path: str) -> str:
    with open(path) as f:
        return f.read(4096)


def write(path: str) -> None:
    with open(path, "w") as f:
        f.write("x")


def connect(family: int, address: Any) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)
        return "connected"


def bomb() -> int:
    """Processes that could be made beside this one."""
    read_fd, write_fd = os.pipe()
    children = []
    try:
        while len(children) < 10_000:
            pid = os.fork()
            if pid == 0:
                os.close(write_fd)
                os.read(read_fd, 1)
                os._exit(0)
            children.append(pid)
    except OSError:
        pass
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os.close(read_fd)
    os.close(write_fd)
    return len(children)


def eat(size: int) -> str:
    """How a child ends that takes so many bytes of memory."""
    pid = os.fork()
    if pid == 0:
        taken = []
        for _ in range(size >> 20):
            taken.append(bytearray(b"x") * (1 << 20))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "survived" if code == 0 else f"killed by {-code}"


def grow(fd: int) -> int:
    """How far a file that was given can be made to grow."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    written = 0
    try:
        while written < 1 << 30:
            written += os.pwrite(fd, b"x" * 65536, written)
    except OSError:
        pass
    return written


for path in given["paths"]:
    attempt(f"read {path}", lambda path=path: os.listdir(path) if path.endswith("/") else read(path))  # type: ignore[misc]
results["root"] = " ".join(sorted(os.listdir("/")))
results["descriptors"] = " ".join(sorted(os.readlink(f"/proc/self/fd/{n}") for n in given["fds"]))
results["open"] = " ".join(sorted(os.listdir("/proc/self/fd"), key=int))
results["processes"] = str(sum(e.isdecimal() for e in os.listdir("/proc")))
results["mounts"] = str(len(read("/proc/self/mountinfo").splitlines()))
results["user"] = f"{os.getresuid()} {os.getresgid()} {os.getgroups()}"
results["environment"] = str(dict(os.environ))
attempt("write root", lambda: write("/x"))
attempt("become root", lambda: os.setuid(0))
attempt("make a device", lambda: os.mknod("/tmp/x", 0o60600, os.makedev(254, 0)))
for pid in given["pids"]:
    attempt(f"kill {pid}", lambda pid=pid: os.kill(pid, 0))  # type: ignore[misc]
    attempt(f"trace {pid}", lambda pid=pid: call("ptrace", 16, pid, 0, 0))  # type: ignore[misc]
attempt("trace process 1's parent", lambda: read(f"/proc/{os.getppid()}/environ"))
attempt("mount", lambda: call("mount", b"none", b"/proc", b"tmpfs", 0, None))
attempt("unmount", lambda: call("umount2", b"/proc", 2))
attempt("change root", lambda: os.chroot("/usr"))
attempt("user namespace", lambda: call("unshare", 0x10000000))
attempt("mount namespace", lambda: call("unshare", 0x20000))
attempt("network namespace of process 1", lambda: call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), 0))
attempt("host name", lambda: socket.sethostname("evil"))
attempt("load a program for the kernel", lambda: call("syscall", 321, 0, b"\0" * 128, 128))
attempt("keys", lambda: call("syscall", 250, 0, -3, 0) and call("syscall", 248, b"user", b"x", b"y", 1, -4))
attempt("clock", lambda: call("settimeofday", b"\0" * 16, None))
attempt("io_uring", lambda: call("syscall", 425, 8, ctypes.create_string_buffer(248)))
for host, port in given["tcp"]:
    attempt(f"tcp {host}", lambda host=host, port=port: connect(socket.AF_INET, (host, port)))  # type: ignore[misc]
for address in given["unix"]:
    attempt(f"unix {address}", lambda address=address: connect(socket.AF_UNIX, address.replace("@", "\0")))  # type: ignore[misc]
attempt("vsock to the host", lambda: connect(40, (2, 22)))
attempt("raw network", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 3).close())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close())
results["links"] = " ".join(name for _, name in socket.if_nameindex()) if given.get("links") else ""
results["bomb"] = str(bomb())
results["eat"] = eat(given["memory_bytes"])
results["grow"] = str(grow(given["fds"][0]))
print(json.dumps(results), flush=True)
