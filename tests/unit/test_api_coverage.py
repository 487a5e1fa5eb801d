"""Coverage: the page says what the gateway does, and a path that the model lacks is found at once."""

import pytest

from hutch.api.coverage_page import render, rows
from hutch.api.gateway.coverage import CoverageGuard
from hutch.api.gateway.operation import Coverage, Operation, Request, Service
from hutch.api.gateway.service_model import load_model
from hutch.base.errors import NotServed


async def nothing(request: Request) -> dict:
    return {}


COVERAGE = Coverage(
    enforced=("cluster", "overrides.cpu", "overrides.containerOverrides", "tags.key"),
    inert={"referenceId": "shown | to nobody", "overrides.taskRoleArn": "no roles"},
    refused={"group": "later", "overrides.containerOverrides.environmentFiles": "no files"},
)
RUN = Operation(name="RunTask", handler=nothing, coverage=COVERAGE)


@pytest.fixture(scope="module")
def ecs():
    return load_model("ecs")


def test_rows(ecs) -> None:
    found = {r.path: (r.state, r.reason) for r in rows(RUN, ecs)}
    assert found["cluster"] == ("enforced", "")
    assert found["overrides.cpu"] == ("enforced", "")
    assert found["overrides.containerOverrides.command"] == ("enforced", "")
    assert found["overrides.containerOverrides.environmentFiles"] == ("refused", "no files")
    assert found["overrides.taskRoleArn"] == ("accepted, no effect", "no roles")
    assert found["overrides.memory"][0] == "refused" and found["tags.value"][0] == "refused"
    assert found["group"] == ("refused", "later") and found["launchType"][0] == "refused"


def example(model, path: str) -> dict:
    """The smallest input that uses a member."""
    shape_name = model.operation("RunTask").input.shape
    keys = path.split(".")

    def build(shape_name: str, rest: list[str]):
        shape = model.shape(shape_name)
        if shape.member:
            return [build(shape.member.shape, rest)]
        if shape.value:
            return {"k": build(shape.value.shape, rest)}
        if not rest:
            return {"x": 1} if shape.type == "structure" else "v"
        return {rest[0]: build(shape.members[rest[0]].shape, rest[1:])}

    return build(shape_name, keys)


def test_the_page_is_what_the_guard_does(ecs) -> None:
    guard = CoverageGuard(COVERAGE, ecs, ecs.operation("RunTask").input.shape)
    for row in rows(RUN, ecs):
        if row.state == "refused":
            with pytest.raises(NotServed, match=row.path):
                guard.check(example(ecs, row.path))
        else:
            guard.check(example(ecs, row.path))


@pytest.mark.parametrize("path", ["nonsense", "overrides.nonsense", "cluster.deeper", "overrides.cpu.deeper"])
def test_a_path_that_the_model_lacks(ecs, path: str) -> None:
    for coverage in (Coverage(enforced=(path,)), Coverage(inert={path: "x"}), Coverage(refused={path: "x"})):
        with pytest.raises(ValueError, match=path.replace(".", r"\.")):
            CoverageGuard(coverage, ecs, ecs.operation("RunTask").input.shape)


def test_page() -> None:
    sts = Service(
        name="sts",
        operations=(Operation(name="GetCallerIdentity", handler=nothing, coverage=Coverage()),),
        faults=(),
    )
    page = render([sts, Service(name="ecs", operations=(RUN,), faults=())])
    assert page.index("## ecs") < page.index("## sts")
    assert "| [ecs](#ecs) | 1 | 88 |" in page
    assert "### GetCallerIdentity\n\nTakes no input.\n" in page
    assert "| `referenceId` | accepted, no effect | shown \\| to nobody |" in page
    assert "AssumeRole, " in page and "StopTask" in page.split("### ecs: not served")[1]
    every = set(load_model("ecs").operation_names)
    assert all(name in page for name in every)
