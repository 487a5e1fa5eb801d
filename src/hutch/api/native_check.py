"""`hutch check`: what would go wrong with a task, before anything is started."""

from typing import Any

import msgspec

from hutch.api.aws.ecs.access import EcsAccess
from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.api.registration_input import RegistrationInput
from hutch.base.errors import Invalid, NotFound
from hutch.control.authorizer import Authorizer
from hutch.control.ops.launch import PUBLISH_TAG, LaunchRequest
from hutch.control.ops.taskdefs import find_task_definition
from hutch.control.preflight import MAX_COUNT, Preflight, PreflightRequest
from hutch.rules.preflight import Report
from hutch.rules.preflight_findings import Finding
from hutch.store.contract import Store


class _Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    task_definition: str = ""
    definition: dict[str, Any] | None = None
    cluster: str = ""
    launch_type: str = ""
    count: int = 1
    publish: str = ""


class NativeCheck:
    """The route. Who checks a task asks registries and secrets as a launch would, so it takes the permission to launch it."""

    def __init__(self, store: Store, preflight: Preflight, authorizer: Authorizer, access: EcsAccess) -> None:
        self._store = store
        self._preflight = preflight
        self._authorizer = authorizer
        self._access = access
        self._input = RegistrationInput()

    def routes(self) -> tuple[NativeRoute, ...]:
        return (NativeRoute(method="POST", template="/hutch/v1/check", handler=self.check_task),)

    async def check_task(self, request: NativeRequest) -> dict[str, Any]:
        """All findings. Body: `taskDefinition` (family, family:revision or ARN) or `definition` (an input of
        RegisterTaskDefinition); `cluster`, `launchType`, `count`, `publish` (as the tag `hutch:publish`)."""
        try:
            body = msgspec.convert(request.body, _Body)
        except msgspec.ValidationError as error:
            raise Invalid(f"the request is not what it should be: {error}") from None
        if bool(body.task_definition) == (body.definition is not None):
            raise Invalid("give either taskDefinition or definition")
        if not 1 <= body.count <= MAX_COUNT:
            raise Invalid(f"count must be between 1 and {MAX_COUNT}")
        wanted = LaunchRequest(
            count=body.count,
            launch_type=body.launch_type,
            tags={PUBLISH_TAG: body.publish} if body.publish else {},
        )
        if body.definition is not None:
            return await self._definition(request, body, wanted)
        self._authorise(request, body.task_definition, body.cluster)
        with self._store.read() as reader:
            found = find_task_definition(reader, body.task_definition)
        if found is None:
            raise NotFound(f"there is no task definition {body.task_definition[:300]}")
        report = await self._preflight.check(
            PreflightRequest(definition=found, cluster=body.cluster, launch=wanted)
        )
        return _shape(report, found.name)

    async def _definition(self, request: NativeRequest, body: _Body, wanted: LaunchRequest) -> dict[str, Any]:
        """One that is not registered. What is no input at all is the only finding: nothing else can be looked at."""
        try:
            given, found = self._input.read(body.definition)
        except Invalid as error:
            finding = Finding(kind="Refused", subject="definition", text=error.message, fix="correct it")
            return _shape(Report(problems=(finding,), warnings=(), aws=(), hosts=()), "")
        self._authorise(request, given["family"], body.cluster, given)
        report = await self._preflight.check(
            PreflightRequest(given=given, cluster=body.cluster, launch=wanted)
        )
        return _shape(msgspec.structs.replace(report, problems=(*found, *report.problems)), given["family"])

    def _authorise(
        self, request: NativeRequest, reference: str, cluster: str, given: dict[str, Any] | None = None
    ) -> None:
        caller = request.principal.caller
        if caller.is_root:
            return
        needed = [*self._access.running("ecs:RunTask", reference, cluster or "default", {})]
        if given is not None:
            needed += self._access.registering("ecs:RegisterTaskDefinition", given)
        for access in needed:
            for resource in access.resources:
                self._authorizer.check(caller, access.action, resource, lambda a=access: a.context)  # type: ignore[misc]


def _shape(report: Report, name: str) -> dict[str, Any]:
    return {
        "definition": name,
        "fine": report.is_fine,
        "problems": msgspec.to_builtins(report.problems),
        "warnings": msgspec.to_builtins(report.warnings),
        "aws": msgspec.to_builtins(report.aws),
        "hosts": msgspec.to_builtins(report.hosts),
    }
