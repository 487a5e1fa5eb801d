"""What a pre-flight check says of facts: all that is wrong, each thing once, and the same as what a launch would find."""

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.unit.test_placement import host, offer, task
from tests.unit.test_taskdef_rules import definition, log

from hutch.base.errors import Invalid
from hutch.base.units import GIB
from hutch.model.host import Reservation
from hutch.rules import preflight
from hutch.rules.placement import Candidate, make_plan
from hutch.rules.preflight import DeniedFacts, Facts, ImageFacts, LogFacts, RoleFacts, image_findings
from hutch.rules.preflight_capacity import PortFacts, capacity_problems, disk_warnings, port_problems, rooms
from hutch.rules.taskdef.problems import examine
from hutch.rules.taskdef.register import register

ROLE = "arn:aws:iam::000000000000:role/app"

_bytes = st.integers(0, 100)
_images = st.lists(
    st.builds(
        ImageFacts,
        containers=st.just(("c",)),
        reference=st.sampled_from(["a", "b", "c"]),
        host=st.sampled_from(["h1", "h2"]),
        size_bytes=_bytes,
        unpacked_bytes=st.none() | _bytes,
        is_here=st.booleans(),
        error_kind=st.sampled_from(["", "", "ImageNotFound"]),
        free_bytes=st.just(150),
    ),
    max_size=6,
)


@given(_images, _bytes, _bytes)
def test_images_must_fit_and_more_room_never_hurts(images: list[ImageFacts], disk: int, more: int) -> None:
    problems, warnings = image_findings(images, disk)
    there = [i for i in images if not i.error_kind]
    large = [i for i in there if max(i.size_bytes, i.unpacked_bytes or 0) > disk]
    assert [p.kind for p in problems].count("ImageTooLarge") == len(large)
    assert [p.kind for p in problems].count("ImageNotFound") == len(images) - len(there)
    pulled = {h: sum(i.size_bytes for i in there if i.host == h and not i.is_here) for h in ("h1", "h2")}
    assert [p.kind for p in problems].count("HostDiskFull") == sum(b > 150 for b in pulled.values())
    assert {w.kind for w in warnings} <= {"ImageMayBeTooLarge"}
    roomier = image_findings(images, disk + more)
    assert len(roomier[0]) <= len(problems)
    assert len(roomier[0]) + len(roomier[1]) <= len(problems) + len(warnings)


_candidates = st.lists(
    st.tuples(
        st.integers(0, 4096), st.integers(0, 8192), st.booleans(), st.sampled_from(["x86_64", "aarch64"])
    ),
    max_size=4,
)


@given(_candidates, st.integers(1, 5), st.sampled_from(["EC2", "FARGATE", "EXTERNAL"]))
def test_capacity_is_what_placement_says(offers: list[Any], count: int, launch_type: str) -> None:
    candidates: list[Candidate] = [
        offer(
            host(f"h{n}", cpu_units=cpu, memory_mib=memory, connected=up, architecture=machine),
            Reservation(host_id=f"h{n}", cpu_units=100, memory_mib=100, task_count=1),
        )
        for n, (cpu, memory, up, machine) in enumerate(offers)
    ]
    wanted = task(launch_type=launch_type)
    before = copy.deepcopy(candidates)
    found = capacity_problems(wanted, count, candidates, "x86_64")
    shown = rooms(wanted, candidates, "x86_64")
    assert candidates == before, "a question takes no room away"
    able = [c for c in candidates if c.host.architecture == "x86_64"]
    plan = make_plan([wanted] * count, copy.deepcopy(able))
    assert bool(found) == bool(plan.waiting)
    assert all(f.fix and f.text for f in found)
    fits = {r.host_id for r in shown if not r.missing}
    assert fits == {c.host.host_id for c in able if make_plan([wanted], [copy.deepcopy(c)]).placements}


def test_a_cluster_that_could_take_it_is_named() -> None:
    there = offer(host("h"))
    elsewhere = task(cluster="other")
    (found,) = capacity_problems(elsewhere, 1, [there], "x86_64", ["other", "c", "third"])
    assert found.kind == "NoContainerInstance" and found.text.endswith("; cluster c could take it")
    (found,) = capacity_problems(task(), 1, [there], "aarch64")
    assert (found.kind, found.evidence) == ("WrongArchitecture", {"hosts": {"h": "x86_64"}})
    (found,) = capacity_problems(task(), 9, [there], "x86_64")
    assert found.text.startswith("8 of 9 tasks fit now: ") and found.evidence["fits"] == 8
    assert disk_warnings(task(), [there]) == []
    (warning,) = disk_warnings(task(ephemeral_gib=300), [offer(host("h", disk_gib=200))])
    assert "300 GiB" in warning.text and "200 GiB free" in warning.text


_BREAKS: dict[str, tuple[Any, str]] = {
    "family": (lambda d: d.update(family="no spaces allowed"), "Family contains invalid characters"),
    "cpu": (lambda d: d.update(cpu="fast"), "Invalid 'cpu' setting"),
    "memory": (lambda d: d.update(memory="1"), "Invalid 'memory' setting"),
    "volume": (lambda d: d.update(volumes=[{"name": "a b"}]), "Volume name"),
    "image": (lambda d: d["containerDefinitions"][0].update(image=""), "Container.image"),
    "health": (
        lambda d: d["containerDefinitions"][1].update(healthCheck={"command": ["x"]}),
        "Health check command",
    ),
    "port": (
        lambda d: d["containerDefinitions"][1].update(portMappings=[{"containerPort": 70000}]),
        "Invalid containerPort",
    ),
    "noport": (
        lambda d: d["containerDefinitions"][2].update(portMappings=[{"hostPort": 1}]),
        "Invalid containerPort None",
    ),
    "secret": (
        lambda d: d["containerDefinitions"][2].update(secrets=[{"name": "A", "valueFrom": "arn:x"}]),
        "is neither the ARN of a secret",
    ),
    "depends": (
        lambda d: d["containerDefinitions"][2].update(
            dependsOn=[{"containerName": "nobody", "condition": "START"}]
        ),
        "because it does not exist",
    ),
    "ipc": (lambda d: d.update(ipcMode="host"), "do not support ipcMode"),
    "constraint": (
        lambda d: d.update(placementConstraints=[{"type": "memberOf", "expression": "attribute:x==y"}]),
        "do not support constraints",
    ),
}


@given(st.sets(st.sampled_from(sorted(_BREAKS))))
def test_all_that_is_wrong_is_found_at_once(breaks: set[str]) -> None:
    given_ = definition({}, {}, {})
    for name in breaks:
        _BREAKS[name][0](given_)
    before = copy.deepcopy(given_)
    found = examine(given_)
    assert given_ == before
    for name in breaks:
        assert any(_BREAKS[name][1] in text for text in found.refusals), (name, found.refusals)
    assert len(found.refusals) <= len(breaks)
    assert found.has_size == (not breaks & {"cpu", "memory"})
    if breaks:
        with pytest.raises(Invalid) as caught:
            register(given_, strict_aws=False)
        assert caught.value.message in found.refusals
    else:
        assert found.document == register(given_, strict_aws=False).document


def facts(document: dict[str, Any], **more: Any) -> Facts:
    made: dict[str, Any] = {"document": document, "launch_type": "FARGATE", "disk_gib": 20, **more}
    return Facts(**made)


def test_what_only_aws_would_refuse_is_apart() -> None:
    given_ = definition(
        {"privileged": True, "stopTimeout": 600, **log()}, cpu="300", ephemeralStorage={"sizeInGiB": 500}
    )
    found = preflight.report(facts(examine(given_).document))
    assert found.is_fine and found.problems == ()
    said = [f.text for f in found.aws]
    for words in ("300 CPU", "'privileged'", "stop timeout", "at most 200", "execution role ARN"):
        assert any(words in text for text in said), words
    on_ec2 = definition(
        {"secrets": [{"name": "A", "valueFrom": "/a"}]}, requiresCompatibilities=["EC2"], networkMode="bridge"
    )
    found = preflight.report(facts(examine(on_ec2).document, launch_type="EC2"))
    assert ["executionRoleArn" in f.text for f in found.aws] == [True]


def test_roles_logs_and_permissions() -> None:
    document = examine(definition({**log()}, executionRoleArn=ROLE)).document
    absent = RoleFacts(member="taskRoleArn", arn=ROLE, exists=False, is_trusting=False)
    unneeded = RoleFacts(member="executionRoleArn", arn=ROLE, exists=True, is_trusting=False, needed=False)
    denied = DeniedFacts(
        role_arn=ROLE, container="main", action="logs:CreateLogGroup", resource="arn:x", is_explicit=True, what_for="x"
    )  # fmt: skip
    logs = (
        LogFacts(container="main", group="/g", group_exists=False, creates_group=False),
        LogFacts(container="other", group="/h", group_exists=False, creates_group=True),
    )
    found = preflight.report(facts(document, roles=(absent, unneeded), denied=(denied, denied), logs=logs))
    assert [f.kind for f in found.problems] == ["RoleNotFound", "ExecutionRoleDenied", "LogGroupNotFound"]
    assert "create-role --role-name app" in found.problems[0].fix
    assert "take that statement away" in found.problems[1].fix
    assert [(f.subject, "ecs-tasks.amazonaws.com" in f.text) for f in found.aws] == [
        ("executionRoleArn", True)
    ]


def test_ports() -> None:
    two = [{"name": n, "portMappings": [{"containerPort": 80}]} for n in ("a", "b")]
    document = examine(definition(*two)).document
    (found,) = preflight.port_twice(document)
    assert found.subject == "containers a, b"
    assert preflight.port_twice({**document, "networkMode": "none"}) == []
    assert port_problems((0, 0), (), 5, 1) == []
    taken = (
        PortFacts(host="h", port=80, task_id="t1"),
        PortFacts(host="h", port=81, program="nginx (process 7)"),
    )
    texts = [f.text for f in port_problems((80, 81, 81), taken, 3, 2)]
    assert texts == [
        "host port 81 is wanted twice by the task itself",
        "host port 80 of host h is published by task t1",
        "host port 81 of host h is taken: nginx (process 7) listens there",
        "3 tasks want host port 80, each on a host of its own, and 2 fit",
    ]


def test_an_image_that_is_not_unpacked_yet_may_be_too_large() -> None:
    image = ImageFacts(
        containers=("a", "b"), reference="x", host="h", size_bytes=8 * GIB, free_bytes=100 * GIB
    )
    problems, warnings = image_findings([image], 20 * GIB)
    assert problems == [] and [w.kind for w in warnings] == ["ImageMayBeTooLarge"]
    known = replace(image, unpacked_bytes=19 * GIB)
    assert image_findings([known], 20 * GIB) == ([], [])
    problems, _ = image_findings([replace(known, is_stale=True)], 18 * GIB)
    assert problems[0].kind == "ImageTooLarge" and problems[0].subject == "containers a, b"
