"""Names inside tasks: a name server on the host answers, nothing beside it does, and files tell of nothing else."""

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from tests.host.test_network import Net, python_in

from hutch.host.drivers.oci_config import etc_files
from hutch.wire.taskspec import ContainerSpec

pytestmark = pytest.mark.needs("root", "nft")
RESOLVE = """
import socket, struct, sys
name = b"".join(bytes([len(p)]) + p for p in b"db.example".split(b".")) + b"\\0"
query = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">2H", 1, 1)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5)
s.sendto(query, (sys.argv[1], int(sys.argv[2])))
answer = s.recv(512)
assert answer[:2] == query[:2] and answer[-4:] == bytes([192, 0, 2, 7]), answer
"""


def answer_once(server: socket.socket) -> None:
    """A name server for one question: whatever is asked has the address 192.0.2.7."""
    query, asker = server.recvfrom(512)
    record = b"\xc0\x0c" + bytes([0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7])
    server.sendto(query[:2] + b"\x81\x80" + query[4:6] + b"\0\1\0\0\0\0" + query[12:] + record, asker)


async def test_a_name_server_of_the_host_answers_tasks(tmp_path: Path) -> None:
    net = Net(tmp_path, 241)
    await net.set_up()
    try:
        _, namespace = await net.attached()
        gateway = f"{net.prefix}.0.1"
        for port in (53, 5353):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
                server.bind((gateway, port))
                server.settimeout(10)
                if port == 53:
                    serving = threading.Thread(target=answer_once, args=(server,))
                    serving.start()
                    await asyncio.to_thread(python_in, namespace, RESOLVE, gateway, "53")
                    serving.join()
                else:
                    with pytest.raises(Exception, match="non-zero exit status"):
                        await asyncio.to_thread(python_in, namespace, RESOLVE, gateway, "5353")
    finally:
        await net.network.tear_down()


def test_files_of_names_tell_of_the_task_alone() -> None:
    spec = ContainerSpec(name="main", container_id="c", image="i", extra_hosts={"db": "10.0.0.9"})
    files = etc_files(spec, "ip-10-0-0-5", "10.0.0.5", ("192.0.2.53",), ())
    assert files["/etc/hosts"].splitlines() == [
        "127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", "10.0.0.5 ip-10-0-0-5", "10.0.0.9 db"
    ]  # fmt: skip
    assert files["/etc/resolv.conf"] == "nameserver 192.0.2.53\n"
    assert socket.gethostname() not in "".join(files.values())
