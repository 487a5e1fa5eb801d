"""What an agent knows of a task: enough to take it over after any crash (see `taskbook`).

Registry credentials and the values of secrets are left out. An image that was prepared is not pulled again; a container
that is to be started by an agent that has no values of its secrets waits for the next assignment, as does a sandbox with
secrets as files that is to be made.
"""

from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.host.drivers.contract import Attachment, Handle, RootImage
from hutch.wire.facts import PhaseFact, TaskFacts
from hutch.wire.fleet import Stop
from hutch.wire.taskspec import ContainerSpec, TaskSpec, VolumeSpec

FORMAT = 1


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


class TaskState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What changes in the course of a task's life."""

    format: int = FORMAT
    driver: str = ""
    handle: Handle | None = None
    attachment: Attachment | None = None
    images: dict[str, RootImage] = {}
    containers: tuple[SavedContainer, ...] = ()
    phases: tuple[PhaseFact, ...] = ()
    stop: Stop | None = None
    facts: TaskFacts | None = None
    """The newest facts, reported or about to be."""
    suspended_at: float | None = None
    """Since when it is not in memory. The driver knows better: this may be a step behind."""
    ended: bool = False
    """Everything is cleaned up; only the report's acknowledgement is waited for."""


class TaskFile(TaskState, frozen=True, kw_only=True, omit_defaults=True):
    """All of it."""

    spec: TaskSpec

    def state(self) -> TaskState:
        """Without the specification, which stays as it is."""
        return TaskState(**{name: getattr(self, name) for name in TaskState.__struct_fields__})


def without_secrets(spec: TaskSpec) -> TaskSpec:
    """The specification as it may be written to disk."""
    containers = (
        replace(
            c,
            registry_credentials=None,
            secrets={},
            log=replace(c.log, secrets={}),
            log_router=replace(c.log_router, include=None) if c.log_router is not None else None,
        )
        for c in spec.containers
    )
    volumes = (replace(v, files=replace(v.files, secrets={})) if v.files else v for v in spec.volumes)
    return replace(spec, containers=tuple(containers), volumes=tuple(volumes))


def lacks_files(volume: VolumeSpec) -> bool:
    """Whether it can't be made for want of what is to be in its files."""
    return volume.files is not None and bool(set(volume.files.secret_names) - volume.files.secrets.keys())


def lacks_secrets(container: ContainerSpec) -> bool:
    """Whether it can't be started for want of values."""
    return bool(set(container.secret_names) - container.secrets.keys()) or _lacks_include(container)


def _lacks_include(container: ContainerSpec) -> bool:
    router = container.log_router
    return router is not None and bool(router.include_path) and router.include is None


def with_secrets(container: ContainerSpec) -> ContainerSpec:
    """The container as its driver gets it: the values of its secrets are in its environment."""
    environment = {**container.environment, **container.secrets}
    log = replace(container.log, secrets={})
    return replace(container, environment=environment, secrets={}, log=log, registry_credentials=None)


def lacks_log_secrets(container: ContainerSpec) -> bool:
    """Whether its log can't be shipped for want of values."""
    return bool(set(container.log.secret_names) - container.log.secrets.keys())


def renewed(container: ContainerSpec, assigned: ContainerSpec) -> ContainerSpec:
    """The container with those values of a later assignment that it lacks. Environment files may have other names in them
    by now; where the values could not be had, none are there, and the names stay to be missed."""
    if lacks_log_secrets(container):
        container = replace(container, log=replace(container.log, secrets=assigned.log.secrets))
    if _lacks_include(container):
        container = replace(container, log_router=assigned.log_router)
    if not lacks_secrets(container):
        return container
    whole = bool(assigned.secrets) and not lacks_secrets(assigned)
    names = assigned.secret_names if whole else container.secret_names
    return replace(container, secrets=assigned.secrets, secret_names=names)
