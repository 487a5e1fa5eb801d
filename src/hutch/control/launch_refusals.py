"""Why a task can't be launched: AWS's words for its stoppedReason, and the cause that `hutch why` shows."""

from typing import Any

from hutch.base.errors import HutchError
from hutch.control.execution_roles import AssumedExecutionRole, Denied, Unassumable
from hutch.model.task import CauseLink
from hutch.rules import execution_role as rules

_FIXES = {
    "AccessPointNotFound": "aws efs describe-access-points lists them",
    "FileSystemNotFound": "aws efs describe-file-systems lists them; make one with aws efs create-file-system",
    "EnvironmentFileNotFound": "correct the ARN in the task definition, or upload the file (aws s3 cp)",
    "EnvironmentFileInvalid": "make it a text file of lines NAME=VALUE, and upload it again",
    "EnvironmentFileUnreadable": "restore secrets.key of the data directory from a backup",
    "LogConfigurationNotFound": "correct config-file-value in the task definition, or upload the file (aws s3 cp)",
    "LogConfigurationInvalid": "make it a text file of at most 16 KiB, and upload it again",
    "LogConfigurationUnreadable": "restore secrets.key of the data directory from a backup",
    "SecretNotFound": "correct the reference in the task definition, or create what it names",
    "SecretInvalid": "correct the value, or the JSON key in the task definition",
    "SecretsTooLarge": "put large values into a file of the image or of a volume",
    "SecretUnreadable": "restore secrets.key of the data directory from a backup",
}


class LaunchRefused(HutchError):
    """A task can't be launched for want of a secret, a file, a file system or a permission. `message` is the reason as AWS
    words it; never a value."""

    def __init__(self, message: str, link: CauseLink) -> None:
        super().__init__(message)
        self.link = link


def unavailable(
    kind: str, message: str, taker: dict[str, str], reference: str, prefix: str = rules.RETRIEVAL
) -> LaunchRefused:
    """What is wanted is not there, or is not what it should be. `taker`: which container or volume it is for."""
    evidence = {**taker, "reference": reference}
    return LaunchRefused(
        prefix + message, CauseLink(kind=kind, text=message, evidence=evidence, fix=_FIXES[kind])
    )


def unspeakable(definition: str) -> LaunchRefused:
    """No host can be told what to run: a fault of ours, which the log tells about."""
    text = f"hutch can't make out what task definition {definition} asks for"
    return LaunchRefused(
        f"InternalError: {text}",
        CauseLink(
            kind="InternalError",
            text=text,
            evidence={"taskDefinition": definition},
            fix="report it with the control plane's log",
        ),
    )


def unassumable(role: Unassumable) -> LaunchRefused:
    """The execution role can't be assumed."""
    why = f"does not let {rules.TASKS_SERVICE} assume it" if role.exists else "does not exist"
    link = CauseLink(
        kind="ExecutionRoleUnusable",
        text=f"the execution role {role.arn} {why}",
        evidence={"role": role.arn, "exists": role.exists},
        fix=rules.fix_assume(role.arn, role.exists),
    )
    return LaunchRefused(rules.cannot_assume(role.arn), link)


def not_allowed(
    role: AssumedExecutionRole, denied: Denied, message: str, evidence: dict[str, Any]
) -> LaunchRefused:
    """The execution role may not do what is needed."""
    verb = "denies" if denied.explicit else "does not allow"
    link = CauseLink(
        kind="ExecutionRoleDenied",
        text=f"the execution role {role.arn} {verb} {denied.action} on {denied.resource}",
        evidence={
            "role": role.arn,
            "action": denied.action,
            "resource": denied.resource,
            "explicit": denied.explicit,
            **evidence,
        },
        fix=rules.fix_denied(role.arn, denied.action, denied.resource, denied.explicit),
    )
    return LaunchRefused(message, link)
