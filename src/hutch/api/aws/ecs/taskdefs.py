"""Task definition operations: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.ecs.common import Arns, page_size, page_start, tag_list, without_none
from hutch.api.gateway.operation import Coverage, Operation, Request, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import HutchError, Unavailable
from hutch.control.ops.taskdefs import TaskDefinitionOps
from hutch.model.taskdef import TaskDefinition
from hutch.rules.tags import tags_from_list

_LATER = "comes with a later version"
_C = "containerDefinitions"
REGISTER_COVERAGE = Coverage(
    enforced=(
        "family",
        "networkMode",
        "cpu",
        "memory",
        "tags",
        "requiresCompatibilities",
        "placementConstraints",
        "ephemeralStorage",
        "runtimePlatform.cpuArchitecture",
        "runtimePlatform.operatingSystemFamily",
        "pidMode",
        "ipcMode",
        "taskRoleArn",
        "executionRoleArn",
        "volumes.name",
        "volumes.host",
        "volumes.configuredAtLaunch",
        "volumes.dockerVolumeConfiguration.scope",
        "volumes.dockerVolumeConfiguration.autoprovision",
        "volumes.dockerVolumeConfiguration.driver",
        "volumes.dockerVolumeConfiguration.driverOpts",
        "volumes.efsVolumeConfiguration.fileSystemId",
        "volumes.efsVolumeConfiguration.rootDirectory",
        "volumes.efsVolumeConfiguration.authorizationConfig.accessPointId",
        *(
            f"{_C}.{m}"
            for m in (
                "name",
                "image",
                "cpu",
                "memory",
                "memoryReservation",
                "portMappings.containerPort",
                "portMappings.hostPort",
                "portMappings.protocol",
                "portMappings.name",
                "essential",
                "restartPolicy",
                "entryPoint",
                "command",
                "environment",
                "environmentFiles",
                "mountPoints",
                "linuxParameters.capabilities",
                "linuxParameters.initProcessEnabled",
                "linuxParameters.sharedMemorySize",
                "linuxParameters.tmpfs",
                "dependsOn",
                "startTimeout",
                "stopTimeout",
                "hostname",
                "user",
                "workingDirectory",
                "privileged",
                "readonlyRootFilesystem",
                "dnsServers",
                "dnsSearchDomains",
                "extraHosts",
                "dockerLabels",
                "ulimits",
                "logConfiguration.logDriver",
                "logConfiguration.options",
                "logConfiguration.secretOptions",
                "firelensConfiguration",
                "healthCheck",
                "systemControls",
                "pseudoTerminal",
                "interactive",
                "disableNetworking",
                "dockerSecurityOptions",
                "volumesFrom",
                "linuxParameters.devices",
                "repositoryCredentials",
                "secrets",
            )
        ),
    ),
    inert={
        "volumes.efsVolumeConfiguration.transitEncryption": "checked; no network lies between a task and its file systems",
        "volumes.efsVolumeConfiguration.transitEncryptionPort": "there is no tunnel",
        "volumes.efsVolumeConfiguration.authorizationConfig.iam": "checked; file systems have no policies, which allows all",
        "volumes.dockerVolumeConfiguration.labels": "shown with the task definition; only volumes of files read some, hutch:mode, "
        "hutch:uid and hutch:gid",
        f"{_C}.portMappings.appProtocol": f"Service Connect {_LATER}",
        f"{_C}.versionConsistency": "an image is resolved to its digest at each start",
        "enableFaultInjection": "shown only; the endpoint is not served",
    },
    refused={
        "proxyConfiguration": "App Mesh was retired by AWS",
        "inferenceAccelerators": "Elastic Inference was retired by AWS",
        "volumes.fsxWindowsFileServerVolumeConfiguration": "hutch runs Linux",
        f"{_C}.portMappings.containerPortRange": "list the ports one by one",
        f"{_C}.links": "Docker's legacy links; containers of a task share one network",
        f"{_C}.linuxParameters.maxSwap": "tasks have no swap",
        f"{_C}.linuxParameters.swappiness": "tasks have no swap",
        f"{_C}.resourceRequirements": "hutch offers no GPUs",
        f"{_C}.credentialSpecs": "Active Directory credentials are not served",
        "trustedExecutionConfiguration": "enclaves need hardware that hutch does not ask for",
        "volumes.s3filesVolumeConfiguration": "hutch has no S3",
    },
)


class TaskDefinitionHandlers:
    """The task definition operations of ECS."""

    def __init__(self, ops: TaskDefinitionOps, arns: Arns, paging: Paging) -> None:
        self._ops = ops
        self._arns = arns
        self._paging = paging

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                name="RegisterTaskDefinition",
                handler=self.register,
                coverage=REGISTER_COVERAGE,
                faults=((Unavailable, "ServerException"), (HutchError, "ClientException")),
            ),
            operation("DescribeTaskDefinition", self.describe, "taskDefinition", "include"),
            operation("DeregisterTaskDefinition", self.deregister, "taskDefinition"),
            operation("DeleteTaskDefinitions", self.delete, "taskDefinitions"),
            operation(
                "ListTaskDefinitions",
                self.list_revisions,
                "familyPrefix",
                "status",
                "sort",
                "nextToken",
                "maxResults",
            ),
            operation(
                "ListTaskDefinitionFamilies",
                self.list_families,
                "familyPrefix",
                "status",
                "nextToken",
                "maxResults",
            ),
        )

    async def register(self, request: Request) -> dict[str, Any]:
        tags = tags_from_list(request.input.get("tags", ()))
        definition = await self._ops.register(request.cause, request.input, tags)
        return {"taskDefinition": self._shape(definition), "tags": tag_list(definition.tags)}

    async def describe(self, request: Request) -> dict[str, Any]:
        definition = self._ops.describe(request.input["taskDefinition"])
        answer: dict[str, Any] = {"taskDefinition": self._shape(definition)}
        if "TAGS" in request.input.get("include", ()):
            answer["tags"] = tag_list(definition.tags)
        return answer

    async def deregister(self, request: Request) -> dict[str, Any]:
        definition = await self._ops.deregister(request.cause, request.input["taskDefinition"])
        return {"taskDefinition": self._shape(definition)}

    async def delete(self, request: Request) -> dict[str, Any]:
        deleted, failures = await self._ops.delete(request.cause, request.input["taskDefinitions"])
        return {
            "taskDefinitions": [self._shape(d) for d in deleted],
            "failures": [
                {"arn": a if a.startswith("arn:") else self._arns.of("task-definition", a), "reason": r}
                for a, r in failures
            ],
        }

    async def list_revisions(self, request: Request) -> dict[str, Any]:
        given = request.input
        scope = f"ListTaskDefinitions/{given.get('familyPrefix', '')}/{given.get('sort', 'ASC')}"
        page, more = self._ops.page(
            given.get("familyPrefix", ""),
            given.get("status", "ACTIVE"),
            page_start(self._paging, scope, given),
            page_size(given),
            newest_first=given.get("sort") == "DESC",
        )
        answer: dict[str, Any] = {
            "taskDefinitionArns": [self._arns.of("task-definition", d.name) for d in page]
        }
        if more:
            last = page[-1]
            answer["nextToken"] = self._paging.encode_token(scope, (last.family, f"{last.revision:010d}"))
        return answer

    async def list_families(self, request: Request) -> dict[str, Any]:
        given = request.input
        scope = "ListTaskDefinitionFamilies"
        page, more = self._ops.families(
            given.get("familyPrefix", ""),
            given.get("status", "ACTIVE"),
            page_start(self._paging, scope, given),
            page_size(given),
        )
        answer: dict[str, Any] = {"families": page}
        if more:
            answer["nextToken"] = self._paging.encode_token(scope, (page[-1],))
        return answer

    def _shape(self, definition: TaskDefinition) -> dict[str, Any]:
        """The `TaskDefinition` shape: what was registered, and what AWS adds."""
        return without_none(
            {
                **definition.document,
                "taskDefinitionArn": self._arns.of("task-definition", definition.name),
                "family": definition.family,
                "revision": definition.revision,
                "status": definition.status,
                "requiresAttributes": [{"name": n} for n in definition.requires_attributes],
                "compatibilities": list(definition.compatibilities),
                "registeredAt": definition.registered_at,
                "registeredBy": definition.registered_by,
                "deregisteredAt": definition.deregistered_at,
                "deleteRequestedAt": definition.delete_requested_at,
            }
        )
