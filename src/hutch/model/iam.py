"""Who there is: users, roles, their policies and keys; and who is calling."""

import msgspec

from hutch.model.record import Record
from hutch.model.secret import Sealed


class Entity(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What users and roles have in common. Names are unique whatever their case, and keep it."""

    name: str
    entity_id: str
    """Unique forever (`AIDA...`, `AROA...`): a new entity of an old name is another one."""
    path: str = "/"
    created_at: float
    inline: dict[str, str] = {}
    """Policy name to document, as it was put."""
    attached: tuple[str, ...] = ()
    """ARNs of managed policies, in order of attachment."""
    boundary_arn: str = ""
    tags: dict[str, str] = {}


class User(Entity, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody with access keys."""


class Role(Entity, frozen=True, kw_only=True, omit_defaults=True):
    """What tasks, services and users can become for a while."""

    trust_policy: str
    """The document that says who may."""
    description: str = ""
    max_session_s: int = 3600
    service: str = ""
    """The service that a service-linked role belongs to (`ecs.amazonaws.com`); only that service may change it."""


class PolicyVersion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A version of a managed policy."""

    version_id: str
    document: str
    created_at: float


class ManagedPolicy(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A policy with a name of its own. AWS's own ones (account `aws`) are data, not records."""

    name: str
    policy_id: str
    path: str = "/"
    description: str = ""
    versions: tuple[PolicyVersion, ...]
    default_version_id: str
    latest_version: int = 1
    created_at: float
    updated_at: float
    tags: dict[str, str] = {}
    is_aws: bool = False

    @property
    def default_document(self) -> str:
        """The document in force."""
        return next(v.document for v in self.versions if v.version_id == self.default_version_id)


class InstanceProfile(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What hands a role to an EC2 instance. At most one role."""

    name: str
    profile_id: str
    path: str = "/"
    roles: tuple[str, ...] = ()
    created_at: float
    tags: dict[str, str] = {}


class AccessKey(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A signing key of a user or of root. The secret must be recoverable: verifying an HMAC signature needs it."""

    access_key_id: str
    sealed: Sealed | None = None
    """The secret, sealed for this key."""
    secret_key: str = msgspec.field(default="")
    """The secret in clear, as the first version stored it; sealed at the next start."""
    principal_arn: str
    user_id: str
    status: str = "Active"
    created_at: float


ROOT = "Root"
USER = "User"
ASSUMED_ROLE = "AssumedRole"


class Session(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What temporary credentials carry with them. Times are epoch seconds."""

    issued_at: float
    expires_at: float
    policies: tuple[str, ...] = ()
    """Documents that only take away from what the role or user may."""
    policy_arns: tuple[str, ...] = ()
    limited: bool = False
    """Whether a session policy was given at all."""
    tags: dict[str, str] = {}
    transitive_tags: tuple[str, ...] = ()
    source_identity: str = ""


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who signed a request. `kind` is ROOT, USER or ASSUMED_ROLE; `name` and `entity_id` are the user's or role's."""

    kind: str
    arn: str
    user_id: str
    access_key_id: str
    name: str = ""
    entity_id: str = ""
    session: Session | None = None

    @property
    def is_root(self) -> bool:
        return self.kind == ROOT
