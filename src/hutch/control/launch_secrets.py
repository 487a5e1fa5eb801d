"""What a task is given when it is launched and is in no record: values of its secrets and environment files,
credentials of its registries.

Resolved from the store while the assignment is made, each time that one is made; so nothing of it is kept anywhere.
"""

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from hutch.base.errors import HutchError, Invalid, LimitExceeded, NotFound
from hutch.control.ops.objects import ObjectOps
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.placing import store_stopped
from hutch.control.ops.secrets import SecretOps
from hutch.model.record import Cause
from hutch.model.task import PENDING, CauseLink, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules import lifecycle
from hutch.rules.environment_files import MAX_FILE_BYTES, merged_files, parse_environment_file
from hutch.rules.objects import parse_object_arn
from hutch.rules.secret_references import (
    ParameterReference,
    SecretReference,
    json_member,
    parse_value_from,
    registry_credentials,
)
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx
from hutch.wire.fleet import ContainerSpec, TaskSpec

MAX_SECRETS_BYTES = 512 * 1024
_AWS_PREFIX = "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: "
_FILES_PREFIX = "ResourceInitializationError: failed to download env files: file download command: non empty error stream: "
_FIXES = {
    "EnvironmentFileNotFound": "correct the ARN in the task definition, or upload the file (aws s3 cp)",
    "EnvironmentFileInvalid": "make it a text file of lines NAME=VALUE, and upload it again",
    "EnvironmentFileUnreadable": "restore secrets.key of the data directory from a backup",
    "SecretNotFound": "correct the reference in the task definition, or create what it names",
    "SecretInvalid": "correct the value, or the JSON key in the task definition",
    "SecretsTooLarge": "put large values into a file of the image or of a volume",
    "SecretUnreadable": "restore secrets.key of the data directory from a backup",
}
_RESOLVED = ("secrets", "repositoryCredentials", "environmentFiles")


class LaunchRefused(HutchError):
    """A task can't be launched for want of a secret or an environment file. `message` is the reason as AWS words it; never a value."""

    def __init__(
        self, kind: str, message: str, container: str, reference: str, prefix: str = _AWS_PREFIX
    ) -> None:
        super().__init__(prefix + message)
        self.link = CauseLink(
            kind=kind,
            text=message,
            evidence={"container": container, "reference": reference},
            fix=_FIXES[kind],
        )


class LaunchSecrets:
    """Fills in what an assignment has besides its records."""

    def __init__(self, secrets: SecretOps, parameters: ParameterOps, objects: ObjectOps) -> None:
        self._secrets = secrets
        self._parameters = parameters
        self._objects = objects

    def fill(
        self, reader: Reader, spec: TaskSpec, definition: TaskDefinition, overrides: Mapping[str, Any]
    ) -> TaskSpec:
        """The specification with its values in the clear; `overrides` are the task's. Raises `LaunchRefused` for the first
        that can't be had."""
        documents = {c["name"]: c for c in definition.document["containerDefinitions"]}
        for override in overrides.get("containerOverrides", ()):
            if "environmentFiles" in override:
                name = override["name"]
                documents[name] = {**documents[name], "environmentFiles": override["environmentFiles"]}
        if not any(c.get(k) for c in documents.values() for k in _RESOLVED):
            return spec
        containers = tuple(self._container(reader, c, documents[c.name]) for c in spec.containers)
        size = sum(len(k) + len(v.encode()) for c in containers for k, v in c.secrets.items())
        if size > MAX_SECRETS_BYTES:
            text = f"the task's secrets and environment files have {size} bytes in all, and {MAX_SECRETS_BYTES} can be passed"
            raise LaunchRefused("SecretsTooLarge", text, "", "")
        return replace(spec, containers=containers)

    def registry_login(self, reader: Reader, container: dict[str, Any]) -> tuple[str, str] | None:
        """The user name and password for the image of a container of a task definition; None if it names none. Raises
        `LaunchRefused`."""
        given = container.get("repositoryCredentials")
        return self._credentials(reader, container["name"], given["credentialsParameter"]) if given else None

    def _container(self, reader: Reader, spec: ContainerSpec, document: dict[str, Any]) -> ContainerSpec:
        files = [self._file(reader, spec.name, f["value"]) for f in document.get("environmentFiles", ())]
        # What is in files is as secret as its owner thinks: it takes the way of the secrets.
        values = merged_files(files, spec.environment)
        for secret in document.get("secrets", ()):
            values[secret["name"]] = self._value(reader, spec.name, secret["valueFrom"])
        credentials = self.registry_login(reader, document)
        names = tuple(dict.fromkeys((*spec.secret_names, *values)))
        return replace(spec, secret_names=names, secrets=values, registry_credentials=credentials)

    def _file(self, reader: Reader, container: str, arn: str) -> dict[str, str]:
        try:
            found = self._objects.find(reader, *parse_object_arn(arn))
            if found.size_bytes > MAX_FILE_BYTES:
                raise LimitExceeded(f"it has {found.size_bytes} bytes, and {MAX_FILE_BYTES} can be read")
            return parse_environment_file(self._objects.read_content(reader, found))
        except HutchError as error:
            raise _file_refused(error, container, arn) from None

    def _value(self, reader: Reader, container: str, value_from: str) -> str:
        reference = parse_value_from(value_from)
        try:
            if isinstance(reference, ParameterReference):
                return _usable(self._parameter(reader, reference))
            text = self._secret(reader, reference)
            return _usable(json_member(text, reference.json_key) if reference.json_key else text)
        except HutchError as error:
            raise _refused(error, reference, container, value_from) from None

    def _credentials(self, reader: Reader, container: str, secret_id: str) -> tuple[str, str]:
        reference = SecretReference(secret_id=secret_id)
        try:
            return registry_credentials(self._secret(reader, reference))
        except HutchError as error:
            raise _refused(error, reference, container, secret_id) from None

    def _secret(self, reader: Reader, reference: SecretReference) -> str:
        found = self._secrets.read_value(reader, reference.secret_id, reference.version_id, reference.stage)
        if found.version.is_binary:
            raise Invalid("the secret is binary, and an environment variable can hold text only")
        return found.value.decode()

    def _parameter(self, reader: Reader, reference: ParameterReference) -> str:
        return self._parameters.open(self._parameters.read(reader, reference.name)[0])


def _usable(value: str) -> str:
    if "\0" in value:
        raise Invalid("the value holds a null byte, which no environment variable can")
    return value


def _refused(
    error: HutchError, reference: SecretReference | ParameterReference, container: str, text: str
) -> LaunchRefused:
    kind = "SecretUnreadable"
    if isinstance(error, NotFound) or error.code == "InvalidRequestException":
        kind = "SecretNotFound"
    elif isinstance(error, Invalid):
        kind = "SecretInvalid"
    if isinstance(reference, ParameterReference):
        what = f"invalid ssm parameters: {reference.name}" if kind == "SecretNotFound" else error.message
        return LaunchRefused(kind, f"unable to retrieve secrets from ssm: {what}", container, text)
    code = {"SecretNotFound": error.code or "ResourceNotFoundException"}.get(kind, "")
    words = f"{code}: {error.message}" if code else error.message
    message = f"unable to retrieve secret from asm: failed to fetch secret {reference.secret_id} from secrets manager: "
    return LaunchRefused(kind, message + words, container, text)


def _file_refused(error: HutchError, container: str, arn: str) -> LaunchRefused:
    kind, words = "EnvironmentFileUnreadable", error.message
    if isinstance(error, NotFound):
        kind = "EnvironmentFileNotFound"
        words = f"{error.code}: {error.message} status code: 404, {arn}"
    elif isinstance(error, Invalid | LimitExceeded):
        kind, words = "EnvironmentFileInvalid", f"{arn}: {error.message}"
    return LaunchRefused(kind, words, container, arn, _FILES_PREFIX)


async def stop_unlaunched(store: Store, cause: Cause, task: Task, refused: LaunchRefused, now: float) -> None:
    """End a task that no host was given. Nothing happens if it went on or ended meanwhile."""

    def work(tx: Tx) -> None:
        current = tx.get(tables.TASKS, task.cluster, task.task_id)
        if current is None or current.last_status != PENDING:
            return
        store_stopped(tx, current, lifecycle.never_ran(current, refused.message, (refused.link,), now))

    await store.write(cause, work)
