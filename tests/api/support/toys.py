"""Toy services: real models, handlers that answer from a dictionary. They test the gateway alone."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hutch.api.gateway.operation import Coverage, EventStream, Handler, Operation, Request, Service
from hutch.base.errors import AlreadyExists, Conflict, HutchError, Invalid, NotFound, NotServed, Unavailable

_ERRORS: dict[str, HutchError] = {
    "invalid": Invalid("this is invalid"),
    "missing": NotFound("there is no such thing"),
    "exists": AlreadyExists("it is there already"),
    "conflict": Conflict("another request", resource_ids=("arn:one", "arn:two")),
    "later": Unavailable("try again"),
    "refused": NotServed("not done here"),
    "own-code": NotFound("Cluster not found.", code="ClusterNotFoundException"),
}


class Toys:
    """The handlers. `seen` holds all requests; `closed` is set when a live tail's iterator is closed."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.answers: dict[str, dict[str, Any]] = {"ListSchedules": {"Schedules": []}}
        """By operation; nothing at all otherwise. Without its required members AWS's client would not read it."""
        self.closed = asyncio.Event()

    @property
    def last(self) -> dict[str, Any]:
        return self.seen[-1].input

    async def echo(self, request: Request) -> dict[str, Any]:
        self.seen.append(request)
        cause = str(
            request.input.get("cluster", request.input.get("Name", request.input.get("RoleName", "")))
        )
        if cause == "bug":
            raise RuntimeError("a bug of ours")
        if cause in _ERRORS:
            raise _ERRORS[cause]
        return self.answers.get(request.operation, {})

    async def live_tail(self, request: Request) -> EventStream:
        self.seen.append(request)
        how = request.input["logGroupIdentifiers"][0]

        async def events() -> AsyncIterator[tuple[str, dict[str, Any]]]:
            try:
                yield "sessionStart", {"sessionId": "one", "logGroupIdentifiers": [how]}
                yield "sessionUpdate", {"sessionResults": [{"message": "hello é", "timestamp": 5}]}
                if how == "fails":
                    raise Invalid("it broke off")
                if how == "bug":
                    raise RuntimeError("a bug of ours")
                if how == "endless":
                    await asyncio.Event().wait()
            finally:
                self.closed.set()

        return EventStream(events=events())

    def services(self) -> list[Service]:
        """ecs (json), logs (event stream), scheduler (rest-json), iam (query), ec2 (ec2)."""
        return [
            Service(
                name="ecs",
                operations=(
                    _op("ListClusters", self.echo, "maxResults", "nextToken"),
                    _op("DescribeClusters", self.echo, "clusters", "include"),
                    Operation(
                        name="RunTask",
                        handler=self.echo,
                        coverage=Coverage(
                            enforced=(
                                "cluster",
                                "taskDefinition",
                                "count",
                                "overrides",
                                "launchType",
                                "tags",
                                "clientToken",
                            ),
                            inert={"overrides.taskRoleArn": "no roles yet"},
                            refused={
                                "group": "groups come later",
                                "overrides.containerOverrides.environmentFiles": "files come later",
                            },
                        ),
                    ),
                    Operation(
                        name="CreateCluster",
                        handler=self.echo,
                        coverage=Coverage(enforced=("clusterName",)),
                        faults=((Invalid, "ClientException"),),
                    ),
                    _op("DeleteCluster", self.echo, "cluster"),
                ),
                faults=(
                    (Conflict, "ConflictException"),
                    (Unavailable, "ServerException"),
                    (NotServed, "UnsupportedFeatureException"),
                    (HutchError, "InvalidParameterException"),
                ),
            ),
            Service(
                name="logs",
                operations=(
                    _op("StartLiveTail", self.live_tail, "logGroupIdentifiers"),
                    _op("CreateLogGroup", self.echo, "logGroupName", "tags"),
                    _op("PutLogEvents", self.echo, "logGroupName", "logStreamName", "logEvents"),
                ),
                faults=((HutchError, "InvalidParameterException"),),
            ),
            Service(
                name="scheduler",
                operations=(
                    _op("GetSchedule", self.echo, "Name", "GroupName"),
                    _op("ListSchedules", self.echo, "MaxResults", "State", "NamePrefix"),
                    _op("TagResource", self.echo, "ResourceArn", "Tags"),
                    _op("UntagResource", self.echo, "ResourceArn", "TagKeys"),
                    _op("CreateScheduleGroup", self.echo, "Name", "ClientToken", "Tags"),
                ),
                faults=((NotFound, "ResourceNotFoundException"), (Unavailable, "InternalServerException")),
            ),
            Service(
                name="iam",
                operations=(
                    _op("GetRole", self.echo, "RoleName"),
                    _op("TagRole", self.echo, "RoleName", "Tags"),
                    _op("ListRoles", self.echo, "PathPrefix", "MaxItems"),
                    _op(
                        "SimulatePrincipalPolicy",
                        self.echo,
                        "PolicySourceArn",
                        "ActionNames",
                        "ContextEntries",
                    ),
                ),
                faults=((NotFound, "NoSuchEntity"), (AlreadyExists, "EntityAlreadyExists")),
            ),
            Service(
                name="ec2",
                operations=(
                    _op("DescribeVpcs", self.echo, "Filters", "VpcIds", "MaxResults", "DryRun"),
                    _op("CreateVpc", self.echo, "CidrBlock", "TagSpecifications"),
                ),
                faults=((NotFound, "InvalidVpcID.NotFound"),),
            ),
        ]


def _op(name: str, handler: Handler, *enforced: str) -> Operation:
    return Operation(name=name, handler=handler, coverage=Coverage(enforced=enforced))
