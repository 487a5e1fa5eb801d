"""What CloudWatch Logs' operations need permission for.

AWS authorises on streams: what concerns a whole group is asked for with an empty stream name.
"""

from collections.abc import Mapping, Sequence

from hutch.api.gateway.operation import Access, AccessRule, Request

_ON_GROUPS = (
    "CreateLogGroup DeleteLogGroup CreateLogStream DescribeLogStreams DeleteLogStream FilterLogEvents "
    "PutRetentionPolicy DeleteRetentionPolicy TagLogGroup UntagLogGroup ListTagsLogGroup StartLiveTail"
)
_ON_STREAMS = "PutLogEvents GetLogEvents"
_ON_ARNS = "TagResource UntagResource ListTagsForResource"


class LogsAccess:
    """The rules of CloudWatch Logs' operations."""

    def __init__(self, region: str, account_id: str) -> None:
        self._prefix = f"arn:aws:logs:{region}:{account_id}:log-group:"

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        rules: dict[str, AccessRule] = dict.fromkeys(_ON_GROUPS.split(), self._groups)
        rules |= dict.fromkeys(_ON_STREAMS.split(), self._stream)
        return rules | dict.fromkeys(_ON_ARNS.split(), self._by_arn)

    def _groups(self, request: Request) -> Sequence[Access]:
        return (Access(resources=tuple(self._arn(g, "") for g in _named(request))),)

    def _stream(self, request: Request) -> Sequence[Access]:
        stream = request.input["logStreamName"]
        return (Access(resources=tuple(self._arn(g, stream) for g in _named(request))),)

    def _by_arn(self, request: Request) -> Sequence[Access]:
        group = self._short(request.input["resourceArn"])
        return (Access(resources=(self._prefix + group,)),)

    def _arn(self, group: str, stream: str) -> str:
        return f"{self._prefix}{self._short(group)}:log-stream:{stream}"

    def _short(self, identifier: str) -> str:
        """The name that an ARN means; one of elsewhere is refused by the operation itself."""
        return identifier.removeprefix(self._prefix).removesuffix(":*")


def _named(request: Request) -> list[str]:
    given = request.input
    many = given.get("logGroupIdentifiers")
    return list(many) if many else [given.get("logGroupIdentifier") or given.get("logGroupName") or "*"]
