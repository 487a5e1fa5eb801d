"""Facts for a pre-flight check: the task's roles, and what is fetched as its execution role."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hutch.base.errors import Invalid
from hutch.control.execution_roles import AssumedExecutionRole, ExecutionRoles, Unassumable
from hutch.control.launch_file_systems import file_system_of
from hutch.control.launch_refusals import LaunchRefused
from hutch.control.launch_secrets import LaunchSecrets, has_secrets
from hutch.control.ops.logs import LogOps
from hutch.control.taskspec import task_spec
from hutch.model.task import CauseLink, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules import execution_role as role_rules
from hutch.rules import preflight as rules
from hutch.rules.taskdef.file_volumes import secret_files
from hutch.store.contract import Reader

SESSION_NAME = "preflight"
Login = tuple[str, str] | None
Fetch = Callable[[AssumedExecutionRole | None], Any]
_LOGIN = "repositoryCredentials"


class RoleFacts:
    """Gathers them from the store."""

    def __init__(
        self,
        secrets: LaunchSecrets,
        roles: ExecutionRoles,
        logs: LogOps,
        *,
        region: str,
        account_id: str,
    ) -> None:
        self._secrets = secrets
        self._roles = roles
        self._logs = logs
        self._region = region
        self._account_id = account_id

    def assume(
        self, document: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> tuple[tuple[rules.RoleFacts, ...], AssumedExecutionRole | None]:
        """The roles that can't be assumed, and the execution role if it can."""
        found = []
        execution: AssumedExecutionRole | None = None
        fetches = any(map(has_secrets, document["containerDefinitions"])) or bool(secret_files(document))
        for member, needed in (
            ("executionRoleArn", fetches or bool(role_rules.awslogs_uses(document))),
            ("taskRoleArn", True),
        ):
            arn = str(overrides.get(member) or document.get(member) or "")
            if not arn:
                continue
            assumed = self._roles.assume(arn, SESSION_NAME)
            if isinstance(assumed, Unassumable):
                found.append(
                    rules.RoleFacts(
                        member=member,
                        arn=assumed.arn,
                        exists=assumed.exists,
                        is_trusting=False,
                        needed=needed,
                    )
                )
            elif member == "executionRoleArn":
                execution = assumed
        return tuple(found), execution

    def fetched(
        self, reader: Reader, document: Mapping[str, Any], role: AssumedExecutionRole | None
    ) -> tuple[list[rules.UnavailableFacts], list[rules.DeniedFacts], dict[str, Login]]:
        """Secrets, parameters, environment files and registry logins: what is not there, what the role may not have; and
        the logins, by container. One that is denied is looked for all the same: all problems are to be said at once."""
        unavailable: list[rules.UnavailableFacts] = []
        denied: list[rules.DeniedFacts] = []
        logins: dict[str, Login] = {}
        as_roles = (role, None) if role else (None,)
        for taker, what, fetch in self._wants(reader, document):
            for as_role in as_roles:
                try:
                    value = fetch(as_role)
                except LaunchRefused as refused:
                    if refused.link.kind == "ExecutionRoleDenied":
                        denied.append(_denied(taker, what, refused.link))
                        continue
                    unavailable.append(_unavailable(taker, what, refused.link))
                except Invalid:
                    pass  # a reference that can't be read is among the refusals already
                else:
                    if what == _LOGIN:
                        logins[taker["container"]] = value
                break
        return unavailable, denied, logins

    def file_systems(self, reader: Reader, document: Mapping[str, Any]) -> list[rules.UnavailableFacts]:
        """Volumes whose file system or access point is not there."""
        found = []
        for volume in document.get("volumes", ()):
            try:
                if "efsVolumeConfiguration" in volume:
                    file_system_of(reader, volume["efsVolumeConfiguration"], self._region)
            except LaunchRefused as refused:
                found.append(_unavailable({}, f"volume {volume['name']}", refused.link))
        return found

    def rehearsed(
        self, reader: Reader, task: Task, definition: TaskDefinition
    ) -> list[rules.UnavailableFacts]:
        """What the launch itself says, for a task of which nothing else that is fetched is wrong: some things show only in all
        of it together (its size)."""
        spec = task_spec(task, definition, None, region=self._region, account_id=self._account_id)
        try:
            self._secrets.fill(reader, spec, definition, task.overrides)
        except LaunchRefused as refused:
            link = refused.link
            if link.kind not in ("ExecutionRoleDenied", "ExecutionRoleUnusable"):
                return [_unavailable(_taker(link), "", link)]
        return []

    def _wants(self, reader: Reader, document: Mapping[str, Any]) -> list[tuple[dict[str, str], str, Fetch]]:
        """(container or volume, what for, how it is fetched as a role) of all that a task is given at its launch."""
        found: list[tuple[dict[str, str], str, Fetch]] = []
        for container in document["containerDefinitions"]:
            wanted = self._container_wants(reader, container)
            found += [({"container": container["name"]}, what, fetch) for what, fetch in wanted]
        for volume, path, reference in secret_files(document):
            fetch = partial(self._secrets.file_content, reader, volume, reference)
            found.append(({"volume": volume}, f"secret {path}", fetch))
        return found

    def _container_wants(self, reader: Reader, container: Mapping[str, Any]) -> list[tuple[str, Fetch]]:
        name, secrets = container["name"], self._secrets
        found: list[tuple[str, Fetch]] = []
        options = container.get("logConfiguration", {}).get("secretOptions") or ()
        for kind, secret in (
            *(("secret", s) for s in container.get("secrets", ())),
            *(("log option", s) for s in options),
        ):
            what = f"{kind} {secret.get('name', '')}"
            found.append((what, partial(secrets.value, reader, name, secret.get("valueFrom", ""))))
        for file in container.get("environmentFiles", ()):
            arn = file.get("value", "")
            found.append((f"environment file {arn}", partial(secrets.environment_file, reader, name, arn)))
        if container.get("repositoryCredentials"):
            login = partial(secrets.registry_login, reader, dict(container))
            found.append((_LOGIN, login))
        return found

    def logs(self, document: Mapping[str, Any]) -> tuple[rules.LogFacts, ...]:
        """Where the containers log to."""
        return tuple(
            rules.LogFacts(
                container=use.container,
                group=use.group,
                group_exists=self._logs.group_exists(use.group),
                creates_group=use.create_group,
            )
            for use in role_rules.awslogs_uses(document)
        )

    def logging_denied(
        self, document: Mapping[str, Any], role: AssumedExecutionRole | None
    ) -> list[rules.DeniedFacts]:
        """Also what a launch does not ask for: without PutLogEvents AWS starts the task and loses its output."""
        found: list[rules.DeniedFacts] = []
        if role is None:
            return found
        for use in role_rules.awslogs_uses(document):
            stream = use.stream(SESSION_NAME)
            needed = [(role_rules.CREATE_STREAM, stream), (role_rules.PUT_EVENTS, stream)]
            if use.create_group and not self._logs.group_exists(use.group):
                needed.append((role_rules.CREATE_GROUP, ""))
            for action, name in needed:
                resource = role_rules.log_resource(self._region, self._account_id, use.group, name)
                if refused := role.denied(action, resource):
                    found.append(
                        rules.DeniedFacts(
                            role_arn=role.arn,
                            container=use.container,
                            action=action,
                            resource=resource,
                            is_explicit=refused.explicit,
                            what_for="log driver awslogs",
                        )
                    )
        return found


def with_files(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the environment files that a launch gives its containers instead of their own."""
    files = {
        o.get("name", ""): o["environmentFiles"]
        for o in overrides.get("containerOverrides", ())
        if "environmentFiles" in o
    }
    containers = [
        {**c, "environmentFiles": files[c["name"]]} if c["name"] in files else c
        for c in document["containerDefinitions"]
    ]
    return {**document, "containerDefinitions": containers}


def _taker(link: CauseLink) -> dict[str, str]:
    return {name: str(link.evidence[name]) for name in ("container", "volume") if name in link.evidence}


def _denied(taker: dict[str, str], what: str, link: CauseLink) -> rules.DeniedFacts:
    evidence = link.evidence
    return rules.DeniedFacts(
        role_arn=evidence["role"],
        **taker,
        action=evidence["action"],
        resource=evidence["resource"],
        is_explicit=evidence["explicit"],
        what_for=what,
    )


def _unavailable(taker: dict[str, str], what: str, link: CauseLink) -> rules.UnavailableFacts:
    return rules.UnavailableFacts(**taker, kind=link.kind, what=what, text=link.text, fix=link.fix)
