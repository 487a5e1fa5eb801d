"""Clusters, and the account settings that apply to them."""

from hutch.model.record import Record


class Cluster(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A named group of tasks; capacity is the fleet's, not the cluster's."""

    name: str
    status: str = "ACTIVE"
    created_at: float
    settings: dict[str, str] = {}
    configuration: dict[str, object] = {}
    service_connect_defaults: dict[str, str] = {}
    capacity_providers: tuple[str, ...] = ()
    default_capacity_provider_strategy: tuple[dict[str, object], ...] = ()
    tags: dict[str, str] = {}


class AccountSetting(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One ECS account setting of one principal; the principal `""` holds the account's defaults."""

    principal_arn: str
    name: str
    value: str


class IdempotencyToken(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a client token was used for: the same request again gets the same resources back."""

    scope: str
    token: str
    request_digest: str
    resource_ids: tuple[str, ...]
    created_at: float
