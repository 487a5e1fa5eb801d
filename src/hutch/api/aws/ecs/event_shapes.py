"""What ECS's events show of tasks and container instances."""

from typing import Any

from hutch.api.aws.ecs.common import Arns
from hutch.api.aws.ecs.instances import instance_shape
from hutch.api.aws.ecs.task_shapes import TaskShapes
from hutch.control.ops.instances import InstanceView
from hutch.model.task import Task


class EcsEventShapes:
    """`hutch.control.events.shapes.EcsShapes`."""

    def __init__(self, region: str, account_id: str) -> None:
        self._tasks = TaskShapes(region, account_id)
        self._arns = Arns(region, account_id)

    def task(self, task: Task) -> dict[str, Any]:
        """As DescribeTasks shows it, tags included."""
        return self._tasks.task(task, with_tags=True)

    def instance(self, view: InstanceView) -> dict[str, Any]:
        """As DescribeContainerInstances shows it, tags included."""
        return instance_shape(self._arns, view, with_tags=True)
