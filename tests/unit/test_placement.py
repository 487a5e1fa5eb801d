"""Where tasks go: never more than a host has, the same answer for the same question, AWS's constraints and strategies."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.model.host import ContainerInstance, DriverFact, Host, Reservation
from hutch.model.task import Task
from hutch.rules.placement import Candidate, Plan, candidate, make_plan
from hutch.rules.placement_expression import matches, parse


def host(host_id: str = "h", **more: object) -> Host:
    driver = DriverFact(name="d", launch_types=("FARGATE", "EC2"), healthy=True)
    given: dict[str, object] = {
        "host_id": host_id,
        "name": host_id,
        "connected": True,
        "cpu_units": 2048,
        "memory_mib": 4096,
        "drivers": (driver,),
        **more,
    }
    return Host(**given)  # type: ignore[arg-type]


def offer(given: Host, used: Reservation | None = None, **more: object) -> Candidate:
    instance = ContainerInstance(
        instance_id=f"i-{given.host_id}", cluster="c", host_id=given.host_id, registered_at=1.0, **more
    )  # type: ignore[arg-type]
    return candidate(given, used, [instance], set(), cpu_overcommit=1.0, memory_reserve_mib=0)


def task(task_id: str = "t", cpu: int = 256, memory_mib: int = 512, **more: object) -> Task:
    given: dict[str, object] = {
        "task_id": task_id,
        "cluster": "c",
        "family": "f",
        "revision": 1,
        "launch_type": "EC2",
        "group": "family:f",
        "cpu": cpu,
        "memory_mib": memory_mib,
        "created_at": 1.0,
        **more,
    }
    return Task(**given)  # type: ignore[arg-type]


def where(plan: Plan) -> list[str]:
    return [p.host_id for p in plan.placements]


_hosts = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 8192), st.booleans()), max_size=5)
_queue = st.lists(
    st.tuples(
        st.integers(1, 3000),
        st.integers(64, 6000),
        st.sampled_from(["EC2", "FARGATE"]),
        st.sampled_from(["", "binpack", "spread", "random"]),
        st.booleans(),
    ),
    max_size=15,
)


@given(_hosts, _queue, st.floats(1, 4))
def test_no_host_is_promised_more_than_it_has_and_the_same_question_has_the_same_answer(
    hosts: list[tuple[int, int, bool]], queue: list[tuple[int, int, str, str, bool]], overcommit: float
) -> None:
    def candidates() -> list[Candidate]:
        found = []
        for n, (cpu, memory, connected) in enumerate(hosts):
            one = host(f"h{n}", cpu_units=cpu, memory_mib=memory, connected=connected)
            instance = ContainerInstance(instance_id=f"i{n}", cluster="c", host_id=f"h{n}", registered_at=1.0)
            found.append(
                candidate(one, None, [instance], set(), cpu_overcommit=overcommit, memory_reserve_mib=100)
            )
        return found

    tasks = [
        task(
            f"t{n}",
            cpu,
            memory,
            launch_type=kind,
            placement_strategy=({"type": strategy, "field": "memory"},) if strategy else (),
            placement_constraints=({"type": "distinctInstance"},) if distinct and kind == "EC2" else (),
        )
        for n, (cpu, memory, kind, strategy, distinct) in enumerate(queue)
    ]
    plan = make_plan(tasks, candidates())
    assert make_plan(tasks, candidates()[::-1]) == plan, "the order of the hosts must not matter"
    assert sorted(
        [p.task.task_id for p in plan.placements] + [w.task.task_id for w in plan.waiting]
    ) == sorted(t.task_id for t in tasks)
    assert all(w.failure and w.reason for w in plan.waiting)
    for n, (cpu, memory, connected) in enumerate(hosts):
        here = [p.task for p in plan.placements if p.host_id == f"h{n}"]
        assert connected or not here
        assert sum(t.memory_mib for t in here) <= max(0, memory - 100)
        assert sum(t.cpu for t in here) <= int(cpu * overcommit)
        distinct = [t for t in here if t.placement_constraints]
        if distinct:
            first = here.index(distinct[-1])
            assert not any(t.group == distinct[-1].group for t in here[:first])


def test_a_task_that_does_not_fit_does_not_hold_up_one_that_does() -> None:
    plan = make_plan([task("big", memory_mib=9999), task("small")], [offer(host())])
    assert [p.task.task_id for p in plan.placements] == ["small"]
    assert [(w.task.task_id, w.failure) for w in plan.waiting] == [("big", "RESOURCE:MEMORY")]
    assert "9999 MiB" in plan.waiting[0].reason and "4096" in plan.waiting[0].reason


@pytest.mark.parametrize(
    ("hosts", "more", "failure"),
    [
        ([], {}, "AGENT"),
        ([host(connected=False)], {}, "AGENT"),
        ([host(status="DRAINING")], {}, "AGENT"),
        ([host(drivers=())], {}, "ATTRIBUTE"),
        ([host()], {"launch_type": "EXTERNAL"}, "ATTRIBUTE"),
        ([host()], {"cluster": "other"}, "NO ACTIVE INSTANCES"),
        ([host()], {"container_instance_id": "i-other"}, "MISSING"),
        ([host()], {"cpu": 4096}, "RESOURCE:CPU"),
        ([host()], {"memory_mib": 8192}, "RESOURCE:MEMORY"),
        (
            [host()],
            {"placement_constraints": ({"type": "memberOf", "expression": "attribute:zone == b"},)},
            "MemberOf placement constraint unsatisfied",
        ),
    ],
)
def test_who_waits_hears_why_in_awss_word(hosts: list[Host], more: dict[str, object], failure: str) -> None:
    plan = make_plan([task(**more)], [offer(h) for h in hosts])  # type: ignore[arg-type]
    assert [w.failure for w in plan.waiting] == [failure]


def test_binpack_fills_and_spread_spreads() -> None:
    def hosts() -> list[Candidate]:
        return [
            offer(host("a"), Reservation(host_id="a", memory_mib=2048, cpu_units=256, task_count=1)),
            offer(host("b"), Reservation(host_id="b", memory_mib=512, cpu_units=1024, task_count=2)),
            offer(host("c")),
        ]

    def placed(*strategy: dict[str, str]) -> str:
        return where(make_plan([task(placement_strategy=strategy)], hosts()))[0]

    assert placed({"type": "binpack", "field": "memory"}) == "a"
    assert placed({"type": "binpack", "field": "cpu"}) == "b"
    assert placed({"type": "spread", "field": "instanceId"}) == "c"
    assert placed() == "c"
    assert placed({"type": "random"}) in ("a", "b", "c")


def test_spread_by_an_attribute_counts_the_tasks_of_the_whole_zone() -> None:
    zone = "attribute:ecs.availability-zone"
    candidates = [
        offer(host("a1", attributes={"ecs.availability-zone": "a"}), Reservation(host_id="a1", task_count=0)),
        offer(host("a2", attributes={"ecs.availability-zone": "a"}), Reservation(host_id="a2", task_count=3)),
        offer(host("b1", attributes={"ecs.availability-zone": "b"}), Reservation(host_id="b1", task_count=1)),
    ]
    tasks = [task(f"t{n}", placement_strategy=({"type": "spread", "field": zone},)) for n in range(3)]
    assert where(make_plan(tasks, candidates))[:2] == ["b1", "b1"]


def test_distinct_instance_puts_each_task_of_a_group_elsewhere() -> None:
    tasks = [task(f"t{n}", placement_constraints=({"type": "distinctInstance"},)) for n in range(3)]
    plan = make_plan(tasks, [offer(host("a")), offer(host("b"))])
    assert sorted(where(plan)) == ["a", "b"] and len(plan.waiting) == 1


def test_member_of_chooses_by_attributes() -> None:
    constraint = ({"type": "memberOf", "expression": "attribute:gpu exists and attribute:size in [m, l]"},)
    hosts = [offer(host("a")), offer(host("b"), attributes={"gpu": "", "size": "l"})]
    assert where(make_plan([task(placement_constraints=constraint)], hosts)) == ["b"]


SUBJECT = {
    "attribute:ecs.instance-type": "t3.small",
    "attribute:zone": "us-east-1a",
    "attribute:empty": "",
    "runningTasksCount": "10",
    "agentConnected": "true",
    "agentVersion": "1.2.3",
    "task:group": frozenset({"family:web", "databases"}),
}


@pytest.mark.parametrize(
    ("expression", "wanted"),
    [
        ("attribute:ecs.instance-type == t3.small", True),
        ("attribute:ecs.instance-type equals t3.small", True),
        ("attribute:ecs.instance-type != t3.small", False),
        ("attribute:ecs.instance-type =~ t3.*", True),
        ("attribute:ecs.instance-type =~ t2.*", False),
        ("attribute:ecs.instance-type !~ t2.*", True),
        ("attribute:ecs.instance-type matches t?.small", False),
        ("attribute:zone in [us-east-1a, us-east-1b]", True),
        ("attribute:zone not_in [us-east-1a]", False),
        ("attribute:zone !in [us-east-1c]", True),
        ("attribute:empty exists", True),
        ("attribute:none exists", False),
        ("attribute:none !exists", True),
        ("attribute:none not_exists", True),
        ("attribute:none == x", False),
        ("runningTasksCount > 9", True),
        ("runningTasksCount >= 10 and runningTasksCount <= 10", True),
        ("runningTasksCount less_than 9", False),
        ("runningTasksCount greater_than 9", True),
        ("agentConnected == true && agentConnected != false", True),
        ("not (agentConnected == true)", False),
        ("!(agentConnected == false)", True),
        ("agentConnected == false or attribute:zone == us-east-1a and runningTasksCount == 10", True),
        ("(agentConnected == false or attribute:zone == us-east-1a) and runningTasksCount == 11", False),
        ("agentConnected == false || !(attribute:zone == b)", True),
        ("task:group == family:web", True),
        ("task:group == family:batch", False),
        ("not(task:group == databases)", False),
        ("task:group != databases", False),
        ("task:group != family:batch", True),
        ("task:group in [family:batch, databases]", True),
        ("task:group !in [family:batch, databases]", False),
        ("task:group =~ data.*", True),
    ],
)
def test_the_cluster_query_language(expression: str, wanted: bool) -> None:
    assert matches(expression, SUBJECT) is wanted


@pytest.mark.parametrize(
    "expression",
    [
        "", "a", "a ==", "== b", "a == b c", "(a == b", "a == b)", "a in b", "a in [", "a in []", "a in [b", "a ? b",
        "a == b and", "not", "a == b or or c == d", "(" * 100 + "a == b" + ")" * 100, "! " * 100 + "a == b",
        "a =~ " + "*a" * 20, "x" * 2001,
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(Invalid):
        parse(expression)


@given(st.text(alphabet="ab=!~<>&|()[], ornti.*", max_size=40))
def test_no_expression_breaks_the_parser(expression: str) -> None:
    with contextlib.suppress(Invalid):
        assert matches(expression, SUBJECT) in (True, False)


def test_a_hostile_pattern_takes_no_time() -> None:
    started = time.process_time()
    assert not matches("attribute:x =~ .*a.*a.*a.*b", {"attribute:x": "a" * 20_000})
    assert time.process_time() - started < 5


def test_hundreds_of_tasks_on_hundreds_of_hosts_are_placed_in_little_time() -> None:
    hosts = [offer(host(f"h{n:04d}")) for n in range(200)]
    started = time.process_time()
    plan = make_plan([task(f"t{n}") for n in range(500)], hosts)
    assert len(plan.placements) == 500 and time.process_time() - started < 5
