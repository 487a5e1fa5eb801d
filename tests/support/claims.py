"""What tests take of the machine: ports and address ranges that no other run of the tests has at the same time."""

import random
import socket

_PORTS = range(20_000, 30_000)
"""Below what the kernel gives out itself (net.ipv4.ip_local_port_range), so that none of it goes to a passing connection
between the choice of a port and the program that listens there."""
_claimed: list["Claim"] = []


class Claim:
    """A number that is ours as long as this object lives, or until its process ends: a name in the kernel's abstract
    namespace, which one process can have."""

    def __init__(self, kind: str, numbers: range) -> None:
        """One of `numbers` by chance. Fails if all are taken."""
        for number in random.sample(numbers, len(numbers)):
            held = socket.socket(socket.AF_UNIX)
            try:
                held.bind(f"\0hutch-tests/{kind}/{number}")
            except OSError:
                held.close()
                continue
            self.number, self._held = number, held
            return
        raise AssertionError(f"all of {len(numbers)} are taken by other tests: {kind}")


def free_port() -> int:
    """A loopback port for a program that is started later; no other test is given it while this process lives."""
    while True:
        claim = Claim("port", _PORTS)
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                s.bind(("0.0.0.0", claim.number))
            except OSError:
                continue
        _claimed.append(claim)
        return claim.number
