"""What goes with the fake driver: images, a network and an ingress that exist only in memory.

An image reference with one of these words as a part of its path can't be had: `not-found`, `denied`,
`wrong-arch`, `too-large`, `unreachable` (which another try might mend).
"""

import hashlib
import re
import socket
from collections.abc import Mapping, Sequence

from hutch.base.units import GIB
from hutch.host.drivers.contract import Attachment, RootImage
from hutch.host.images.contract import ImageFault, ImageLook
from hutch.host.network.contract import Traffic
from hutch.wire.facts import ImageFact
from hutch.wire.taskspec import TaskSpec

_FAULTS = {
    "not-found": ("ImageNotFound", "there is no such image"),
    "denied": ("ImageAccessDenied", "the registry denies access"),
    "wrong-arch": ("ImageWrongArchitecture", "the image is not for this architecture"),
    "too-large": ("ImageTooLarge", "the image is larger than the task's disk"),
    "unreachable": ("RegistryUnreachable", "the registry can't be reached"),
}


def _digest_of(reference: str) -> str:
    for part in re.split(r"[/:@]", reference):
        if part in _FAULTS:
            kind, text = _FAULTS[part]
            raise ImageFault(
                kind,
                f"{reference}: {text}",
                fix="use another image",
                aws_prefix="CannotPullContainerError",
                retryable=part == "unreachable",
            )
    return f"sha256:{hashlib.sha256(reference.encode()).hexdigest()}"


class FakeImages:
    """Implements `hutch.host.images.contract.ImageStore`: every image is there, and empty."""

    def __init__(self) -> None:
        self.used: dict[str, set[str]] = {}
        """Task ids to the digests that they use."""
        self._local: dict[str, ImageFact] = {}

    async def prepare(
        self,
        reference: str,
        *,
        architecture: str,
        root_format: str,
        credentials: tuple[str, str] | None = None,
        max_bytes: int,
    ) -> RootImage:
        """At once, or the fault that the reference names."""
        return RootImage(reference=reference, digest=_digest_of(reference), config={}, directory="/")

    async def look(
        self, reference: str, *, architecture: str, credentials: tuple[str, str] | None = None
    ) -> ImageLook:
        """As `prepare`. A part `40g` of the reference is its size."""
        digest = _digest_of(reference)
        sizes = [int(p[:-1]) for p in re.split(r"[/:@]", reference) if re.fullmatch(r"[0-9]{1,4}g", p)]
        return ImageLook(
            digest=digest, size_bytes=sum(sizes) * GIB, unpacked_bytes=None if sizes else 0, is_here=not sizes
        )

    def free_bytes(self) -> int:
        return 100 * GIB

    def acquire(self, digest: str, task_id: str) -> None:
        self.used.setdefault(task_id, set()).add(digest)

    def release(self, task_id: str) -> None:
        self.used.pop(task_id, None)

    async def import_archive(self, path: str, name: str | None) -> ImageFact:
        """Take the name for the image; the archive is not looked at."""
        name = name or path.rpartition("/")[2]
        digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        fact = ImageFact(name=name, digest=digest, size_bytes=0, architecture="x86_64", imported_at=0.0)
        self._local[name] = fact
        return fact

    def local_images(self) -> tuple[ImageFact, ...]:
        return tuple(self._local.values())

    async def remove(self, name: str) -> bool:
        return self._local.pop(name, None) is not None

    async def collect_garbage(self) -> int:
        return 0


class FakeNetwork:
    """Implements `hutch.host.network.contract.HostNetwork`: remembers which tasks have a port."""

    def __init__(self) -> None:
        self.ports: set[str] = set()
        self.is_up = False

    async def set_up(self, vpc_cidr: str, subnets: tuple[tuple[str, str], ...]) -> None:
        self.is_up = True

    async def attach(self, task: TaskSpec, kind: str) -> Attachment:
        if task.network_mode == "host":
            return Attachment(host_network=True)
        self.ports.add(task.task_id)
        return Attachment(tap=f"fake{task.task_id[:8]}")

    async def detach(self, task: TaskSpec) -> None:
        self.ports.discard(task.task_id)

    async def remove_strays(self, task_ids: frozenset[str]) -> None:
        self.ports &= task_ids

    def traffic(self, task: TaskSpec) -> Traffic | None:
        return None

    def endpoint_socket(self) -> socket.socket | None:
        return None

    async def tear_down(self) -> None:
        self.ports.clear()
        self.is_up = False


class FakeIngress:
    """Implements `hutch.host.agent.context.Ingress`: remembers what is published."""

    def __init__(self) -> None:
        self.published: dict[str, TaskSpec] = {}
        self.asleep: set[str] = set()

    async def serve_api(self) -> None:
        """There is nobody who could ask."""

    async def listeners(self, ports: Sequence[int]) -> Mapping[int, str]:
        return {}

    async def publish(self, task: TaskSpec, *, is_asleep: bool = False) -> None:
        self.published[task.task_id] = task
        (self.asleep.add if is_asleep else self.asleep.discard)(task.task_id)

    async def withdraw(self, task_id: str) -> None:
        self.published.pop(task_id, None)
