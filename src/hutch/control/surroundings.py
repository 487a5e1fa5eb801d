"""What a task's containers are told of where they are: addresses at which they can ask, in their environment.

What a task definition sets itself is not touched.
"""

import hmac

import msgspec
from msgspec.structs import replace

from hutch.model.network import Subnet
from hutch.model.task import Task
from hutch.rules.netplan import TASK_API_PORT, TASK_ENDPOINT
from hutch.wire.taskspec import ContainerSpec, Surroundings, TaskSpec

TASK_PATHS = {
    "ECS_CONTAINER_METADATA_URI_V4": "v4",
    "ECS_CONTAINER_METADATA_URI": "v3",
    "ECS_AGENT_URI": "api",
}
"""Variables, and the beginnings of the paths that they lead to."""


class TaskAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """Where tasks find things. `path_key` (hexadecimal) makes the ids in paths, so that nobody guesses one.

    `api_of_host`: the API's URL for tasks that share their host's network; "": the API is not for tasks.
    """

    path_key: str
    api_of_host: str = ""

    def add(self, spec: TaskSpec, task: Task, subnet: Subnet | None) -> TaskSpec:
        """The task with all that it may know and ask for; where it has no interface nobody could tell who asks, so
        there is no metadata for it."""
        # A copy's containers ask by what they know from the first one; who asks is told by the address.
        owner = task.fork_of or task.task_id
        containers = tuple(self._container(spec, c, owner) for c in spec.containers)
        return replace(spec, containers=containers, surroundings=_surroundings(task, subnet))

    def _container(self, spec: TaskSpec, container: ContainerSpec, owner: str) -> ContainerSpec:
        ours, metadata_id = {}, ""
        if spec.interface is not None:
            metadata_id = self._metadata_id(owner, container.name)
            base = f"http://{TASK_ENDPOINT[0]}"
            ours = {name: f"{base}/{path}/{metadata_id}" for name, path in TASK_PATHS.items()}
        if api := self._api(spec):
            ours["AWS_ENDPOINT_URL"] = api
        return replace(container, environment={**ours, **container.environment}, metadata_id=metadata_id)

    def _api(self, spec: TaskSpec) -> str:
        if self.api_of_host and spec.interface is not None:
            return f"http://{TASK_ENDPOINT[0]}:{TASK_API_PORT}"
        return self.api_of_host if spec.network_mode == "host" else ""

    def _metadata_id(self, task_id: str, container: str) -> str:
        key, what = bytes.fromhex(self.path_key), f"metadata/{task_id}/{container}"
        return f"{task_id}-{hmac.digest(key, what.encode(), 'sha256').hex()[:32]}"


def _surroundings(task: Task, subnet: Subnet | None) -> Surroundings:
    address = task.network.private_ipv4 if task.network is not None else ""
    return Surroundings(
        availability_zone=task.availability_zone,
        vpc_id=subnet.vpc_id if subnet is not None else "",
        private_dns_name=f"ip-{address.replace('.', '-')}.ec2.internal" if address else "",
        service=task.group.removeprefix("service:") if task.group.startswith("service:") else "",
        tags=task.tags,
    )
