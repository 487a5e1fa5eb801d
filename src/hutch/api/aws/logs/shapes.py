"""Log groups and streams in CloudWatch Logs's shape, and the names by which requests call them."""

from typing import Any

from hutch.base.errors import Invalid
from hutch.store.log_records import LogGroup, LogStream


class LogShapes:
    """ARNs and shapes of one account in one region."""

    def __init__(self, region: str, account_id: str) -> None:
        self._prefix = f"arn:aws:logs:{region}:{account_id}:log-group:"

    def group_arn(self, name: str) -> str:
        """Without the `:*` that some answers have at the end."""
        return self._prefix + name

    def group_named(self, given: dict[str, Any]) -> str:
        """The group of a request that names it by logGroupName or logGroupIdentifier. Raises `Invalid`."""
        if ("logGroupName" in given) == ("logGroupIdentifier" in given):
            raise Invalid("Give either logGroupName or logGroupIdentifier.")
        return self.group_of(given.get("logGroupIdentifier") or given["logGroupName"])

    def group_of(self, identifier: str) -> str:
        """The name out of a name or an ARN. Raises `Invalid` if that is another account's."""
        if not identifier.startswith("arn:"):
            return identifier
        if not identifier.startswith(self._prefix):
            raise Invalid("The ARN is not one of a log group of this account and region.")
        return identifier[len(self._prefix) :].removesuffix(":*")

    def group(self, group: LogGroup) -> dict[str, Any]:
        """A `LogGroup`."""
        shape: dict[str, Any] = {
            "logGroupName": group.name,
            "creationTime": group.created_ms,
            "metricFilterCount": 0,
            "arn": f"{self._prefix}{group.name}:*",
            "logGroupArn": self._prefix + group.name,
            "storedBytes": group.stored_bytes,
            "logGroupClass": group.log_class,
        }
        return shape if group.retention_days is None else {**shape, "retentionInDays": group.retention_days}

    def stream(self, stream: LogStream) -> dict[str, Any]:
        """A `LogStream`: times that it has not are left out."""
        shape = {
            "logStreamName": stream.name,
            "creationTime": stream.created_ms,
            "firstEventTimestamp": stream.first_ms,
            "lastEventTimestamp": stream.last_ms,
            "lastIngestionTime": stream.ingested_ms,
            "uploadSequenceToken": "0" * 56,
            "arn": f"{self._prefix}{stream.group}:log-stream:{stream.name}",
            "storedBytes": 0,
        }
        return {k: v for k, v in shape.items() if v is not None}
