"""Tasks in ECS's shape."""

from datetime import UTC, datetime
from typing import Any

from hutch.model.task import Container, Endpoint, ManagedVolume, NetworkInterface, Task


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class TaskShapes:
    """Builds the `Task` shape of the ECS service model."""

    def __init__(self, region: str, account_id: str) -> None:
        self.arn_prefix = f"arn:aws:ecs:{region}:{account_id}"

    def task_arn(self, task: Task) -> str:
        return f"{self.arn_prefix}:task/{task.cluster}/{task.task_id}"

    def task(self, task: Task, *, with_tags: bool) -> dict[str, Any]:
        """A `Task`: members that have no value are left out, as AWS does."""
        shape: dict[str, Any] = {
            "taskArn": self.task_arn(task),
            "clusterArn": f"{self.arn_prefix}:cluster/{task.cluster}",
            "taskDefinitionArn": f"{self.arn_prefix}:task-definition/{task.family}:{task.revision}",
            "attachments": _attachments(task),
            "attributes": [{"name": "ecs.cpu-architecture", "value": "x86_64"}],
            "connectivity": task.connectivity or None,
            "connectivityAt": task.connectivity_at,
            "availabilityZone": task.availability_zone or None,
            "capacityProviderName": task.capacity_provider or None,
            "containers": [self._container(task, c) for c in task.containers],
            "cpu": str(task.cpu),
            "memory": str(task.memory_mib),
            "createdAt": task.created_at,
            "desiredStatus": task.desired_status,
            "lastStatus": task.last_status,
            "enableExecuteCommand": task.enable_execute_command,
            "group": task.group,
            "healthStatus": task.health_status,
            "launchType": task.launch_type,
            "overrides": {"containerOverrides": [], "inferenceAcceleratorOverrides": [], **task.overrides},
            "platformVersion": task.platform_version or None,
            "platformFamily": "Linux" if task.launch_type == "FARGATE" else None,
            "pullStartedAt": task.pull_started_at,
            "pullStoppedAt": task.pull_stopped_at,
            "startedAt": task.started_at,
            "startedBy": task.started_by or None,
            "stopCode": task.stop_code or None,
            "stoppedReason": task.stopped_reason or self._waiting(task),
            "stoppingAt": task.stopping_at,
            "executionStoppedAt": task.execution_stopped_at,
            "stoppedAt": task.stopped_at,
            "version": task.event_version,
            "tags": [{"key": k, "value": v} for k, v in task.tags.items()] if with_tags else [],
        }
        if task.container_instance_id:
            shape["containerInstanceArn"] = (
                f"{self.arn_prefix}:container-instance/{task.cluster}/{task.container_instance_id}"
            )
        if task.launch_type == "FARGATE":
            size = task.ephemeral_gib or 20
            shape["fargateEphemeralStorage"] = {"sizeInGiB": size}
            shape["ephemeralStorage"] = {"sizeInGiB": size}
        return {k: v for k, v in shape.items() if v is not None}

    @staticmethod
    def _waiting(task: Task) -> str | None:
        """A task that waits for a host says why in the one free-text member that every tool shows."""
        return f"Waiting for placement, {task.waiting_reason}" if task.waiting_reason else None

    def _container(self, task: Task, container: Container) -> dict[str, Any]:
        shape: dict[str, Any] = {
            "containerArn": f"{self.arn_prefix}:container/{task.cluster}/{task.task_id}/{container.container_id}",
            "taskArn": self.task_arn(task),
            "name": container.name,
            "image": container.image,
            "imageDigest": container.image_digest or None,
            "runtimeId": container.runtime_id or None,
            "lastStatus": container.last_status,
            "exitCode": container.exit_code,
            "reason": container.reason or None,
            "healthStatus": container.health_status,
            "cpu": str(container.cpu),
            "memory": str(container.memory_mib) if container.memory_mib else None,
            "memoryReservation": (
                str(container.memory_reservation_mib) if container.memory_reservation_mib else None
            ),
            "networkBindings": [
                {
                    "bindIP": b.bind_ip,
                    "containerPort": b.container_port,
                    "hostPort": b.host_port,
                    "protocol": b.protocol,
                }
                for b in container.network_bindings
            ],
            "networkInterfaces": [],
        }
        if task.enable_execute_command:
            shape["managedAgents"] = [_exec_agent(container)]
        if task.network and task.network_mode == "awsvpc":
            shape["networkInterfaces"] = [
                {
                    "attachmentId": task.network.attachment_id,
                    "privateIpv4Address": task.network.private_ipv4,
                }
            ]
        return {k: v for k, v in shape.items() if v is not None}


def _attachments(task: Task) -> list[dict[str, Any]]:
    """What the task has besides its containers; endpoints and its suspension are attachments of hutch's own kinds, because
    every tool shows those."""
    found = [_eni(task.network)] if task.network and task.network_mode == "awsvpc" else []
    found += [_disk(v, task) for v in task.volumes]
    found += [_endpoint(e, task) for e in task.endpoints]
    if task.is_suspended:
        found.append(
            {
                "id": f"{task.task_id}-suspension",
                "type": "HutchSuspension",
                "status": "SUSPENDED",
                "details": [{"name": "since", "value": _iso(task.suspended_at or 0.0)}],
            }
        )
    return found


def _endpoint(endpoint: Endpoint, task: Task) -> dict[str, Any]:
    return {
        "id": f"{task.task_id}-{endpoint.container_port}",
        "type": "HutchEndpoint",
        "status": "DELETED" if task.is_stopped else "ATTACHED",
        "details": [
            {"name": "url", "value": f"http://{endpoint.name}.localhost:{endpoint.host_port}/"},
            {"name": "hostPort", "value": str(endpoint.host_port)},
            {"name": "containerPort", "value": str(endpoint.container_port)},
        ],
    }


def _exec_agent(container: Container) -> dict[str, Any]:
    """ECS Exec needs nothing inside the container here: it can be used for as long as the container runs."""
    shape: dict[str, Any] = {"name": "ExecuteCommandAgent", "lastStatus": container.last_status}
    if container.last_status not in ("RUNNING", "STOPPED"):
        shape["lastStatus"] = "PENDING"
    if container.started_at is not None:
        shape["lastStartedAt"] = container.started_at
    return shape


def _disk(volume: ManagedVolume, task: Task) -> dict[str, Any]:
    details = {
        "volumeId": volume.volume_id,
        "volumeName": volume.name,
        "roleArn": volume.role_arn,
        "sizeInGiB": str(volume.size_gib),
        "filesystemType": volume.filesystem,
        "deleteOnTermination": str(volume.delete_on_termination).lower(),
    }
    if volume.snapshot_id:
        details["snapshotId"] = volume.snapshot_id
    ended = "DELETED" if volume.delete_on_termination else "DETACHED"
    return {
        "id": volume.attachment_id,
        "type": "AmazonElasticBlockStorage",
        "status": ended if task.is_stopped else "ATTACHED" if task.started_at else "PRECREATED",
        "details": [{"name": n, "value": v} for n, v in details.items()],
    }


def _eni(network: NetworkInterface) -> dict[str, Any]:
    return {
        "id": network.attachment_id,
        "type": "ElasticNetworkInterface",
        "status": network.status,
        "details": [
            {"name": "subnetId", "value": network.subnet_id},
            {"name": "networkInterfaceId", "value": network.eni_id},
            {"name": "macAddress", "value": network.mac},
            {"name": "privateDnsName", "value": f"ip-{network.private_ipv4.replace('.', '-')}.ec2.internal"},
            {"name": "privateIPv4Address", "value": network.private_ipv4},
        ],
    }
