"""What an agent knows of a task, durable: enough to take it over after any crash.

One JSON file a task, replaced atomically and fsynced before the next step relies on it. Registry credentials are left
out: an image that was prepared is not pulled again.
"""

from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.base.errors import StorageFull
from hutch.base.log import get_logger
from hutch.host.drivers.contract import Attachment, Handle, RootImage
from hutch.host.images.archives import write_atomically
from hutch.wire.fleet import PhaseFact, Stop, TaskFacts, TaskSpec

log = get_logger(__name__)

FORMAT = 1
FILE_NAME = "task.json"


class SavedContainer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A container as the state machine last saw it."""

    name: str
    status: str
    runtime_id: str = ""
    restarts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    reason: str = ""
    health: str = "UNKNOWN"
    exit: dict[str, Any] | None = None


class TaskFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of a task's file."""

    format: int = FORMAT
    spec: TaskSpec
    driver: str = ""
    handle: Handle | None = None
    attachment: Attachment | None = None
    images: dict[str, RootImage] = {}
    containers: tuple[SavedContainer, ...] = ()
    phases: tuple[PhaseFact, ...] = ()
    stop: Stop | None = None
    facts: TaskFacts | None = None
    """The newest facts, reported or about to be."""
    ended: bool = False
    """Everything is cleaned up; only the report's acknowledgement is waited for."""


def without_secrets(spec: TaskSpec) -> TaskSpec:
    """The specification as it may be written to disk."""
    return replace(spec, containers=tuple(replace(c, registry_credentials=None) for c in spec.containers))


def save(directory: Path, content: TaskFile) -> None:
    """Make it durable. Raises `StorageFull`."""
    try:
        write_atomically(directory / FILE_NAME, msgspec.json.encode(content))
    except OSError as error:
        raise StorageFull(f"can't write {directory}: {error.strerror}; free space there") from None


def load(directory: Path) -> TaskFile | None:
    """A task's file; None (and a line in the log) if there is none that can be read."""
    try:
        content = msgspec.json.decode((directory / FILE_NAME).read_bytes(), type=TaskFile)
    except (OSError, msgspec.DecodeError) as error:
        log.warning(
            "task directory without a readable task file", directory=str(directory), reason=str(error)
        )
        return None
    if content.format > FORMAT:
        log.error("task file of a newer hutch", directory=str(directory), format=content.format)
        return None
    return content
