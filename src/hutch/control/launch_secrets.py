"""What a task is given when it is launched and is in no record: values of its secrets and environment files,
credentials of its registries.

Resolved from the store while the assignment is made, each time that one is made; so nothing of it is kept anywhere.
With an execution role they are only given if that role may have them, as on AWS; so are log streams.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import msgspec
from msgspec.structs import replace

from hutch.base.errors import HutchError, Invalid, LimitExceeded, NotFound
from hutch.control.execution_roles import AssumedExecutionRole, ExecutionRoles, Unassumable
from hutch.control.launch_refusals import LaunchRefused, not_allowed, unassumable, unavailable
from hutch.control.logrouter import include_arn, secret_variables
from hutch.control.ops.objects import ObjectOps
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.placing import store_stopped
from hutch.control.ops.secrets import SecretOps
from hutch.model.record import Cause
from hutch.model.task import PENDING, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules import execution_role as role_rules
from hutch.rules import lifecycle
from hutch.rules.environment_files import MAX_FILE_BYTES, merged_files, parse_environment_file
from hutch.rules.logdrivers.firelens import MAX_INCLUDE_BYTES
from hutch.rules.objects import parse_object_arn
from hutch.rules.secret_references import (
    ParameterReference,
    SecretReference,
    json_member,
    parse_value_from,
    registry_credentials,
)
from hutch.rules.taskdef.file_volumes import secret_files
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx
from hutch.wire.taskspec import ContainerSpec, TaskSpec

T = TypeVar("T")
MAX_SECRETS_BYTES = 512 * 1024
_RESOLVED = ("secrets", "repositoryCredentials", "environmentFiles")


class LaunchSecrets:
    """Fills in what an assignment has besides its records."""

    def __init__(
        self,
        secrets: SecretOps,
        parameters: ParameterOps,
        objects: ObjectOps,
        roles: ExecutionRoles,
        log_group_exists: Callable[[str], bool],
        *,
        region: str,
        account_id: str,
    ) -> None:
        self._secrets = secrets
        self._parameters = parameters
        self._objects = objects
        self._roles = roles
        self._log_group_exists = log_group_exists
        self._region = region
        self._account_id = account_id

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
        files = secret_files(definition.document)
        wanted = bool(files) or any(map(has_secrets, documents.values()))
        role_arn = role_rules.role_of(overrides, definition.document)
        logs = role_rules.awslogs_uses(definition.document) if role_arn else ()
        if not wanted and not logs:
            return spec
        role = self.assume(role_arn, spec.task_id)
        if wanted:
            containers = tuple(self._container(reader, c, documents, role) for c in spec.containers)
            spec = replace(spec, containers=containers)
            if files:
                spec = self._with_files(reader, spec, files, role)
            _check_size(spec)
        for use in logs:
            self.check_logging(use, spec.task_id, role)
        return spec

    def assume(self, role: str, session_name: str) -> AssumedExecutionRole | None:
        """Become an execution role (ARN or name; "" gives None). `session_name` is the task's id. Raises `LaunchRefused`."""
        if not role:
            return None
        assumed = self._roles.assume(role, session_name)
        if isinstance(assumed, Unassumable):
            raise unassumable(assumed)
        return assumed

    def registry_login(
        self, reader: Reader, container: dict[str, Any], role: AssumedExecutionRole | None
    ) -> tuple[str, str] | None:
        """The user name and password for the image of a container of a task definition; None if it names none. Raises
        `LaunchRefused`."""
        given = container.get("repositoryCredentials")
        if not given:
            return None
        return self._credentials(reader, container["name"], given["credentialsParameter"], role)

    def check_logging(
        self, use: role_rules.AwslogsUse, task_id: str, role: AssumedExecutionRole | None
    ) -> None:
        """Whether the role may do what AWS's log driver does before the container starts: make the stream, and the group if
        that is missing. Raises `LaunchRefused`."""
        if role is None:
            return
        needed = [(role_rules.CREATE_STREAM, use.stream(task_id))]
        if use.create_group and not self._log_group_exists(use.group):
            needed.append((role_rules.CREATE_GROUP, ""))
        for action, stream in needed:
            resource = role_rules.log_resource(self._region, self._account_id, use.group, stream)
            if denied := role.denied(action, resource):
                evidence = {"container": use.container, "log_group": use.group}
                raise not_allowed(role, denied, role_rules.logging_denied(action, denied.text), evidence)

    def environment_file(
        self, reader: Reader, container: str, arn: str, role: AssumedExecutionRole | None
    ) -> dict[str, str]:
        """The variables in an environment file. Raises `LaunchRefused`."""
        return self._object(reader, container, arn, role, _ENVIRONMENT_FILE)

    def _object(
        self,
        reader: Reader,
        container: str,
        arn: str,
        role: AssumedExecutionRole | None,
        use: "_ObjectUse[T]",
    ) -> T:
        if role and (denied := role.denied(role_rules.GET_OBJECT, arn)):
            evidence = {"container": container, "reference": arn}
            raise not_allowed(role, denied, role_rules.file_denied(denied.text, use.prefix), evidence)
        try:
            found = self._objects.find(reader, *parse_object_arn(arn))
            if found.size_bytes > use.max_bytes:
                raise LimitExceeded(f"it has {found.size_bytes} bytes, and {use.max_bytes} can be read")
            return use.parse(self._objects.read_content(reader, found))
        except HutchError as error:
            raise _object_refused(error, container, arn, use) from None

    def value(
        self, reader: Reader, container: str, value_from: str, role: AssumedExecutionRole | None
    ) -> str:
        """What a `valueFrom` stands for in a container's environment, in the clear. Raises `LaunchRefused`."""
        return self._value(reader, {"container": container}, value_from, role, _usable)

    def file_content(
        self, reader: Reader, volume: str, value_from: str, role: AssumedExecutionRole | None
    ) -> str:
        """The same for a file of a volume. Raises `LaunchRefused`."""
        return self._value(reader, {"volume": volume}, value_from, role, str)

    def _value(
        self,
        reader: Reader,
        taker: dict[str, str],
        value_from: str,
        role: AssumedExecutionRole | None,
        usable: Callable[[str], str],
    ) -> str:
        reference = parse_value_from(value_from)
        self._check_access(reference, taker, value_from, role)
        try:
            if isinstance(reference, ParameterReference):
                return usable(self._parameter(reader, reference))
            text = self._secret(reader, reference)
            return usable(json_member(text, reference.json_key) if reference.json_key else text)
        except HutchError as error:
            raise _refused(error, reference, taker, value_from) from None

    def _with_files(
        self,
        reader: Reader,
        spec: TaskSpec,
        wanted: list[tuple[str, str, str]],
        role: AssumedExecutionRole | None,
    ) -> TaskSpec:
        """The task with what is in those of its volumes' files that are secrets."""
        values: dict[str, dict[str, str]] = {}
        for volume, path, value_from in wanted:
            values.setdefault(volume, {})[path] = self.file_content(reader, volume, value_from, role)
        volumes = tuple(
            replace(v, files=replace(v.files, secrets=values[v.name])) if v.files and v.name in values else v
            for v in spec.volumes
        )
        return replace(spec, volumes=volumes)

    def _container(
        self,
        reader: Reader,
        spec: ContainerSpec,
        documents: dict[str, dict[str, Any]],
        role: AssumedExecutionRole | None,
    ) -> ContainerSpec:
        document = documents[spec.name]
        given = document.get("environmentFiles", ())
        files = [self.environment_file(reader, spec.name, f["value"], role) for f in given]
        # What is in files is as secret as its owner thinks: it takes the way of the secrets.
        values = merged_files(files, spec.environment)
        for secret in document.get("secrets", ()):
            values[secret["name"]] = self.value(reader, spec.name, secret["valueFrom"], role)
        router = spec.log_router
        if router is not None and (arn := include_arn(document)):
            text = self._object(reader, spec.name, arn, role, _ROUTER_CONFIG)
            router = replace(router, include=text)
        if router is not None:
            for variable, (container, value_from) in secret_variables(documents.values()).items():
                values[variable] = self.value(reader, container, value_from, role)
        log = spec.log
        if log.secret_names:
            options = document["logConfiguration"]["secretOptions"]
            found = {o["name"]: self.value(reader, spec.name, o["valueFrom"], role) for o in options}
            log = replace(log, secrets=found)
        credentials = self.registry_login(reader, document, role)
        names = tuple(dict.fromkeys((*spec.secret_names, *values)))
        return replace(
            spec,
            secret_names=names,
            secrets=values,
            log=log,
            log_router=router,
            registry_credentials=credentials,
        )

    def _credentials(
        self, reader: Reader, container: str, secret_id: str, role: AssumedExecutionRole | None
    ) -> tuple[str, str]:
        reference, taker = SecretReference(secret_id=secret_id), {"container": container}
        self._check_access(reference, taker, secret_id, role)
        try:
            return registry_credentials(self._secret(reader, reference))
        except HutchError as error:
            raise _refused(error, reference, taker, secret_id) from None

    def _check_access(
        self,
        reference: SecretReference | ParameterReference,
        taker: dict[str, str],
        text: str,
        role: AssumedExecutionRole | None,
    ) -> None:
        """Before it is looked for: who may not read it is not told whether it is there, as in AWS."""
        if role is None:
            return
        evidence = {**taker, "reference": text}
        if isinstance(reference, ParameterReference):
            resource, tags = self._parameters.resource_of(reference.name)
            if denied := role.denied(role_rules.GET_PARAMETERS, resource, tags):
                raise not_allowed(role, denied, role_rules.parameter_denied(denied.text), evidence)
            return
        resource, tags = self._secrets.resource_of(reference.secret_id)
        if denied := role.denied(role_rules.GET_SECRET, resource, tags):
            message = role_rules.secret_denied(reference.secret_id, denied.text)
            raise not_allowed(role, denied, message, evidence)

    def _secret(self, reader: Reader, reference: SecretReference) -> str:
        found = self._secrets.read_value(reader, reference.secret_id, reference.version_id, reference.stage)
        if found.version.is_binary:
            raise Invalid("the secret is binary, and what a task is given of it can be text only")
        return found.value.decode()

    def _parameter(self, reader: Reader, reference: ParameterReference) -> str:
        return self._parameters.open(self._parameters.read(reader, reference.name)[0])


def has_secrets(document: Mapping[str, Any]) -> bool:
    """Whether anything of a container definition is fetched for its launch."""
    log = document.get("logConfiguration") or {}
    return any(document.get(k) for k in _RESOLVED) or bool(log.get("secretOptions") or include_arn(document))


def _config_text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Invalid("it is not UTF-8") from None


class _ObjectUse(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What objects are read for: the words of refusals, and how the content is understood (raises `Invalid`)."""

    kind: str
    prefix: str
    max_bytes: int
    parse: Callable[[bytes], T]


_ENVIRONMENT_FILE = _ObjectUse(
    kind="EnvironmentFile",
    prefix=role_rules.DOWNLOAD,
    max_bytes=MAX_FILE_BYTES,
    parse=parse_environment_file,
)
_ROUTER_CONFIG = _ObjectUse(
    kind="LogConfiguration",
    prefix=role_rules.DOWNLOAD_CONFIG,
    max_bytes=MAX_INCLUDE_BYTES,
    parse=_config_text,
)


def _check_size(spec: TaskSpec) -> None:
    given = [values for c in spec.containers for values in (c.secrets, c.log.secrets)]
    given += [v.files.secrets for v in spec.volumes if v.files]
    size = sum(len(k) + len(v.encode()) for values in given for k, v in values.items())
    if size > MAX_SECRETS_BYTES:
        text = f"the task's secrets and environment files have {size} bytes in all, and {MAX_SECRETS_BYTES} can be passed"
        raise unavailable("SecretsTooLarge", text, {}, "")


def _usable(value: str) -> str:
    if "\0" in value:
        raise Invalid("the value holds a null byte, which no environment variable can")
    return value


def _refused(
    error: HutchError, reference: SecretReference | ParameterReference, taker: dict[str, str], text: str
) -> LaunchRefused:
    kind = "SecretUnreadable"
    if isinstance(error, NotFound) or error.code == "InvalidRequestException":
        kind = "SecretNotFound"
    elif isinstance(error, Invalid):
        kind = "SecretInvalid"
    if isinstance(reference, ParameterReference):
        what = f"invalid ssm parameters: {reference.name}" if kind == "SecretNotFound" else error.message
        return unavailable(kind, f"unable to retrieve secrets from ssm: {what}", taker, text)
    code = {"SecretNotFound": error.code or "ResourceNotFoundException"}.get(kind, "")
    words = f"{code}: {error.message}" if code else error.message
    message = f"unable to retrieve secret from asm: failed to fetch secret {reference.secret_id} from secrets manager: "
    return unavailable(kind, message + words, taker, text)


def _object_refused(error: HutchError, container: str, arn: str, use: "_ObjectUse[Any]") -> LaunchRefused:
    kind, words = f"{use.kind}Unreadable", error.message
    if isinstance(error, NotFound):
        kind = f"{use.kind}NotFound"
        words = f"{error.code}: {error.message} status code: 404, {arn}"
    elif isinstance(error, Invalid | LimitExceeded):
        kind, words = f"{use.kind}Invalid", f"{arn}: {error.message}"
    return unavailable(kind, words, {"container": container}, arn, use.prefix)


async def stop_unlaunched(store: Store, cause: Cause, task: Task, refused: LaunchRefused, now: float) -> None:
    """End a task that no host was given. Nothing happens if it went on or ended meanwhile."""

    def work(tx: Tx) -> None:
        current = tx.get(tables.TASKS, task.cluster, task.task_id)
        if current is None or current.last_status != PENDING:
            return
        store_stopped(tx, current, lifecycle.never_ran(current, refused.message, (refused.link,), now))

    await store.write(cause, work)
