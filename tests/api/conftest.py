"""Fixtures of the API tests: a server with toy services, and one with those that hutch really serves."""

import uuid
from collections.abc import Iterator

import pytest
from tests.api.support.aws import AwsServer
from tests.api.support.events import Hook
from tests.api.support.identities import sts_ops
from tests.api.support.server import ApiServer
from tests.api.support.toys import Toys

from hutch.api.aws.sts import service as sts
from hutch.store.memory import MemoryStore


@pytest.fixture(scope="module")
def toys() -> Toys:
    return Toys()


@pytest.fixture(scope="module")
def server(toys: Toys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    store = MemoryStore()
    services = [*toys.services(), sts.service(sts_ops(store))]
    running = ApiServer(services, tmp_path_factory.mktemp("api"), store=store)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsServer]:
    running = AwsServer(tmp_path_factory.mktemp("aws"))
    yield running
    running.stop()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()


@pytest.fixture
def name() -> str:
    return f"r-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def definition(aws: AwsServer) -> str:
    ecs = aws.client("ecs")
    ecs.create_cluster(clusterName="default")
    registered = ecs.register_task_definition(
        family="job",
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "main", "image": "x"}],
    )
    return str(registered["taskDefinition"]["taskDefinitionArn"])
