"""A task's execution role: what it must allow for the task, and AWS's words when it does not."""

from collections.abc import Mapping
from typing import Any

import msgspec

TASKS_SERVICE = "ecs-tasks.amazonaws.com"
MANAGED_POLICY = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
GET_SECRET = "secretsmanager:GetSecretValue"
GET_PARAMETERS = "ssm:GetParameters"
GET_OBJECT = "s3:GetObject"
CREATE_GROUP = "logs:CreateLogGroup"
CREATE_STREAM = "logs:CreateLogStream"
PUT_EVENTS = "logs:PutLogEvents"

_PULL = "ResourceInitializationError: unable to pull secrets or registry auth: "
RETRIEVAL = _PULL + "execution resource retrieval failed: "
DOWNLOAD = "ResourceInitializationError: failed to download env files: file download command: non empty error stream: "
DOWNLOAD_CONFIG = "ResourceInitializationError: failed to download the log router's configuration: "
_LOGGER = (
    "ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: "
)


class AwslogsUse(msgspec.Struct, frozen=True, kw_only=True):
    """A container whose log driver is awslogs, as its options say."""

    container: str
    group: str
    stream_prefix: str = ""
    create_group: bool = False

    def stream(self, task_id: str) -> str:
        """The log stream of the container in a task."""
        return "/".join(p for p in (self.stream_prefix, self.container, task_id) if p)


def role_of(overrides: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """ARN (or name) of a task's execution role: the override, else its definition's. "" if it has none."""
    return str(overrides.get("executionRoleArn") or document.get("executionRoleArn") or "")


def awslogs_uses(document: Mapping[str, Any]) -> tuple[AwslogsUse, ...]:
    """The containers of a definition that log to CloudWatch Logs."""
    found = []
    for container in document["containerDefinitions"]:
        log = container.get("logConfiguration", {})
        options = log.get("options", {})
        if log.get("logDriver") == "awslogs" and options.get("awslogs-group"):
            found.append(
                AwslogsUse(
                    container=container["name"],
                    group=options["awslogs-group"],
                    stream_prefix=options.get("awslogs-stream-prefix", ""),
                    create_group=options.get("awslogs-create-group", "false").lower() == "true",
                )
            )
    return tuple(found)


def log_resource(region: str, account_id: str, group: str, stream: str) -> str:
    """What AWS authorises logging on; `stream` "" stands for the group."""
    return f"arn:aws:logs:{region}:{account_id}:log-group:{group}:log-stream:{stream}"


def cannot_assume(role_arn: str) -> str:
    """AWS's words for a role that is not there, or that does not trust ECS tasks."""
    return (
        f"{_PULL}ECS was unable to assume the role '{role_arn}' that was provided for this task. Please verify that the "
        f"role being passed has the proper trust relationship and permissions and that your IAM user has permissions to "
        f"pass this role."
    )


def secret_denied(secret_id: str, denial: str) -> str:
    """AWS's words for a secret (also registry credentials) that the role may not read."""
    return (
        f"{RETRIEVAL}unable to retrieve secret from asm: service call has been retried 1 time(s): failed to fetch secret "
        f"{secret_id} from secrets manager: AccessDeniedException: {denial}"
    )


def parameter_denied(denial: str) -> str:
    """AWS's words for a parameter that the role may not read."""
    return (
        f"{RETRIEVAL}unable to retrieve secrets from ssm: service call has been retried 1 time(s): "
        f"AccessDeniedException: {denial}"
    )


def file_denied(denial: str, prefix: str = DOWNLOAD) -> str:
    """AWS's words for an environment file that the role may not read."""
    return f"{prefix}AccessDenied: {denial} status code: 403"


def logging_denied(action: str, denial: str) -> str:
    """AWS's words for a log stream or group that the role may not make."""
    what = "group" if action == CREATE_GROUP else "stream"
    return f"{_LOGGER}failed to create Cloudwatch log {what}: AccessDeniedException: {denial}"


def fix_assume(role_arn: str, exists: bool) -> str:
    """What to do about a role that can't be assumed."""
    if exists:
        return f"let {TASKS_SERVICE} assume it: aws iam update-assume-role-policy"
    name = role_arn.rpartition("/")[2]
    return (
        f"make it (aws iam create-role --role-name {name}, trusting {TASKS_SERVICE}; then aws iam attach-role-policy "
        f"--policy-arn {MANAGED_POLICY}), or correct executionRoleArn"
    )


def fix_denied(role_arn: str, action: str, resource: str, explicit: bool) -> str:
    """What to do about an action that the role may not."""
    name = role_arn.rpartition("/")[2]
    if explicit:
        return f"a policy of role {name} denies {action} on {resource}: take that statement away"
    if action in (CREATE_STREAM, PUT_EVENTS):
        return f"aws iam attach-role-policy --role-name {name} --policy-arn {MANAGED_POLICY}"
    return f"allow {action} on {resource} in a policy of role {name} (aws iam put-role-policy)"
