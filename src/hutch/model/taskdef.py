"""Task definitions: what a task is made of, revision by revision."""

from typing import Any

from hutch.model.record import Record


class TaskDefinition(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One revision of a family.

    `document` is the registered definition in AWS's own shape (the `TaskDefinition` shape of the ECS service
    model, without the members below), validated and with AWS's defaults filled in. It is kept whole so that
    describing it gives back exactly what was registered.
    """

    family: str
    revision: int
    status: str = "ACTIVE"
    registered_at: float
    registered_by: str
    deregistered_at: float | None = None
    delete_requested_at: float | None = None
    compatibilities: tuple[str, ...] = ()
    requires_attributes: tuple[str, ...] = ()
    document: dict[str, Any]
    tags: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    """Where AWS itself would have refused this definition, in its words."""

    @property
    def name(self) -> str:
        """`family:revision`."""
        return f"{self.family}:{self.revision}"


class Family(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The counter of a family: revisions are never reused, even after deletion."""

    name: str
    latest_revision: int
    latest_active_revision: int | None = None
