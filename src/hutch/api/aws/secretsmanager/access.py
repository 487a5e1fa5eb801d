"""What Secrets Manager's operations need permission for: the secret that an id means, by its full ARN."""

from collections.abc import Mapping, Sequence

from hutch.api.gateway.operation import Access, AccessRule, Request
from hutch.control.ops.secrets import SecretOps

_ON_SECRETS = (
    "GetSecretValue PutSecretValue UpdateSecret DescribeSecret DeleteSecret RestoreSecret TagResource UntagResource "
    "ListSecretVersionIds UpdateSecretVersionStage GetResourcePolicy"
)


class SecretAccess:
    """The rules of Secrets Manager's operations."""

    def __init__(self, ops: SecretOps) -> None:
        self._ops = ops

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        rules: dict[str, AccessRule] = dict.fromkeys(_ON_SECRETS.split(), self._secret)
        return rules | {"CreateSecret": self._new, "BatchGetSecretValue": self._batch}

    def tags_of(self, arn: str) -> Mapping[str, str]:
        """The tags of a secret."""
        found = self._ops.find(arn)
        return found.tags if found else {}

    def _secret(self, request: Request) -> Sequence[Access]:
        return (Access(resources=(self._arn(request.input["SecretId"]),)),)

    def _arn(self, secret_id: str) -> str:
        return self._ops.resource_of(secret_id)[0]

    def _new(self, request: Request) -> Sequence[Access]:
        """Its six random characters are not known yet: a policy's `name-*` or `name-??????` is what fits."""
        return (Access(resources=(f"{self._ops.arn_prefix}{request.input['Name']}-??????",)),)

    def _batch(self, request: Request) -> Sequence[Access]:
        """The operation itself, and each secret's value."""
        ids = request.input.get("SecretIdList")
        values = tuple(self._arn(i) for i in ids) if ids else ("*",)
        return (Access(), Access(action="secretsmanager:GetSecretValue", resources=values))
