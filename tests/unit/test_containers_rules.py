"""Start order, stop order, causes: for any graph of containers and any order of events."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from hutch.model.task import CauseLink
from hutch.rules import containers as rules
from hutch.rules.containers import ContainerRule, Exit, HealthRule, TaskMachine

T0 = 1_000.0


def answer(healthy: bool) -> rules.ProbeAnswer:
    return rules.ProbeAnswer(
        exit_code=0 if healthy else 1, output="it is well" if healthy else "no answer on port 80"
    )


@st.composite
def tasks(draw: st.DrawFn) -> tuple[ContainerRule, ...]:
    """A task of one to five containers; each depends on earlier ones only, so there is no circle."""
    count = draw(st.integers(1, 5))
    made: list[ContainerRule] = []
    for i in range(count):
        conditions = {
            f"c{j}": draw(st.sampled_from(["START", "COMPLETE", "SUCCESS", "HEALTHY"]))
            for j in range(i)
            if draw(st.booleans())
        }
        made.append(
            ContainerRule(
                name=f"c{i}",
                essential=draw(st.booleans()),
                depends_on=tuple(conditions.items()),
                stop_timeout_s=draw(st.sampled_from([0.0, 2.0, 30.0])),
                start_timeout_s=draw(st.sampled_from([None, 5.0])),
                health=draw(st.none() | st.just(HealthRule(interval_s=5, retries=2, start_period_s=0))),
                restart_period_s=draw(st.sampled_from([None, None, 0.0])),
                restart_ignored_codes=(0,),
            )
        )
    return tuple(made)


class World:
    """Carries actions out as a host would, with answers drawn by hypothesis, and watches the rules."""

    def __init__(self, made: tuple[ContainerRule, ...], data: st.DataObject) -> None:
        self.machine = TaskMachine(made, 1024)
        self.rules = {r.name: r for r in made}
        self.data = data
        self.now = T0
        self.timers: dict[str, float] = {}
        self.starting: set[str] = set()
        self.running: set[str] = set()
        self.terminated: list[str] = []
        self.ended_in_order: list[str] = []
        self.probes: set[str] = set()
        self.finished = 0

    def take(self, actions: list[rules.Action]) -> None:
        for action in actions:
            if isinstance(action, rules.Start):
                self.check_start(action.container)
                self.starting.add(action.container)
            elif isinstance(action, rules.Terminate):
                self.check_terminate(action)
            elif isinstance(action, rules.Arm):
                self.timers[action.key] = self.now + action.seconds
            elif isinstance(action, rules.Probe):
                self.probes.add(action.container)
            else:
                self.finished += 1
                assert not self.running and not self.starting
        stopping = self.machine.is_stopping
        assert not stopping or self.machine.causes or self.machine.stop_code == "UserInitiated"

    def check_start(self, name: str) -> None:
        assert not self.machine.is_stopping, "a start after the stop"
        assert name not in self.running and name not in self.starting
        for other, condition in self.rules[name].depends_on:
            state = self.machine.containers[other]
            if state.restarts or self.machine.containers[name].restarts:
                continue
            if condition == "START":
                assert state.started_at is not None
            elif condition == "HEALTHY":
                assert state.status == rules.RUNNING and state.health == "HEALTHY"
            else:
                assert state.exit is not None
                assert condition == "COMPLETE" or state.exit.exit_code == 0

    def check_terminate(self, action: rules.Terminate) -> None:
        assert self.machine.is_stopping and action.container in self.running
        for other in self.rules.values():
            if any(d == action.container for d, _ in other.depends_on):
                assert other.name not in self.running and other.name not in self.starting
        if action.kill:
            assert action.container in self.terminated, "SIGKILL without the stop signal before it"
        else:
            self.terminated.append(action.container)

    def step(self) -> None:
        """One of the things that can happen next."""
        m = self.machine
        choices: list[tuple[Any, ...]] = []
        choices += [("started", n) for n in sorted(self.starting)]
        choices += [("start_failed", n) for n in sorted(self.starting)]
        choices += [("exited", n) for n in sorted(self.running)]
        choices += [("probed", n) for n in sorted(self.probes)]
        choices += [("timer", k) for k in sorted(self.timers)]
        choices += [("stop",), ("gone",)] if not m.is_stopping else []
        what, *rest = self.data.draw(st.sampled_from(choices))
        name = rest[0] if rest else ""
        self.now += self.data.draw(st.sampled_from([0.0, 1.0, 10.0]))
        if what == "started":
            self.starting.discard(name)
            self.running.add(name)
            self.take(m.started(name, self.now))
        elif what == "start_failed":
            self.starting.discard(name)
            cause = CauseLink(kind="X", text="no such program")
            self.take(m.start_failed(name, "CannotStartContainerError: no", cause, self.now))
        elif what == "exited":
            self.running.discard(name)
            code = self.data.draw(st.sampled_from([0, 1, 137]))
            oom = code == 137 and self.data.draw(st.booleans())
            self.take(m.exited(name, Exit(exit_code=code, signal=9 * (code == 137), oom=oom), self.now))
        elif what == "probed":
            self.probes.discard(name)
            self.take(m.probed(name, answer(self.data.draw(st.booleans())), self.now))
        elif what == "timer":
            self.now = max(self.now, self.timers.pop(name))
            if name.startswith("lost/"):
                self.running.discard(name.removeprefix("lost/"))
            self.take(m.timer(name, self.now))
        elif what == "stop":
            self.take(m.stop("UserInitiated", "Task stopped by user", (), self.now))
        else:
            self.starting.clear()
            self.running.clear()
            self.take(m.sandbox_gone("the VM ended", CauseLink(kind="SandboxGone", text="x"), self.now))


@settings(max_examples=300, deadline=None)
@given(tasks(), st.data())
def test_any_run_keeps_the_rules_and_ends_when_all_exits_arrive(
    made: tuple[ContainerRule, ...], data: st.DataObject
) -> None:
    world = World(made, data)
    world.take(world.machine.begin(world.now))
    for _ in range(data.draw(st.integers(0, 40))):
        if world.finished:
            break
        world.step()
    machine = world.machine
    if not machine.is_stopping:
        world.take(machine.stop("UserInitiated", "Task stopped by user", (), world.now))
    while not world.finished:
        assert world.starting or world.running, "the task is stuck"
        for name in sorted(world.starting):
            world.starting.discard(name)
            world.running.add(name)
            world.take(machine.started(name, world.now))
        for name in [n for n in sorted(world.running) if n in world.terminated]:
            world.running.discard(name)
            world.take(machine.exited(name, Exit(exit_code=143, signal=15), world.now))
    assert world.finished == 1
    assert machine.status == "STOPPED" and machine.stop_code and machine.stopped_reason
    assert all(s.status == rules.STOPPED for s in machine.containers.values())


def _running(*made: ContainerRule) -> TaskMachine:
    machine = TaskMachine(made, 2048)
    machine.begin(T0)
    for rule in made:
        machine.started(rule.name, T0)
    return machine


def test_an_essential_exit_with_code_0_stops_the_task() -> None:
    machine = _running(ContainerRule(name="web"), ContainerRule(name="side", essential=False))
    assert machine.status == "RUNNING"
    actions = machine.exited("web", Exit(exit_code=0), T0 + 5)
    assert actions == [rules.Terminate("side"), rules.Arm("kill/side", 30.0)]
    assert (machine.stop_code, machine.stopped_reason) == (
        "EssentialContainerExited",
        "Essential container in task exited",
    )
    assert machine.causes[0].text == 'essential container "web" exited with code 0'


def test_an_exit_that_is_not_essential_leaves_the_task() -> None:
    machine = _running(ContainerRule(name="web"), ContainerRule(name="side", essential=False))
    assert machine.exited("side", Exit(exit_code=3), T0 + 5) == []
    assert machine.status == "RUNNING"


def test_out_of_memory_names_process_evidence_and_the_size_that_fits() -> None:
    machine = _running(ContainerRule(name="app"))
    machine.exited(
        "app",
        Exit(exit_code=137, signal=9, oom=True, oom_process="java", oom_rss_bytes=int(1.9 * 2**30)),
        T0 + 5,
    )
    cause = machine.causes[0]
    assert cause.kind == "OutOfMemory"
    assert cause.text == '"java" was killed by the kernel\'s OOM killer at 1.90 of 2.00 GiB'
    assert cause.fix == "set memory to 3072"
    assert machine.containers["app"].reason == "OutOfMemoryError: Container killed due to memory usage"


def test_a_dependency_that_failed_stops_the_task_although_another_could_start() -> None:
    machine = TaskMachine(
        (
            ContainerRule(name="init", essential=False),
            ContainerRule(name="after", depends_on=(("init", "COMPLETE"),)),
            ContainerRule(name="app", depends_on=(("init", "SUCCESS"),)),
        ),
        1024,
    )
    machine.begin(T0)
    machine.started("init", T0)
    actions = machine.exited("init", Exit(exit_code=1), T0 + 1)
    assert actions == [rules.Finish()]
    assert machine.stop_code == "TaskFailedToStart"
    assert machine.stopped_reason == (
        'TaskDependencyError: container "init" ended with exit code 1, and "app" waits for SUCCESS'
    )


def test_waiting_for_health_ends_when_the_other_is_unhealthy() -> None:
    machine = TaskMachine(
        (
            ContainerRule(name="db", health=HealthRule(interval_s=5, retries=2, start_period_s=0)),
            ContainerRule(name="app", depends_on=(("db", "HEALTHY"),)),
        ),
        1024,
    )
    machine.begin(T0)
    machine.started("db", T0)
    machine.probed("db", answer(False), T0 + 1)
    machine.probed("db", answer(False), T0 + 6)
    assert not machine.is_stopping
    machine.probed("db", answer(False), T0 + 11)
    assert machine.causes[0].kind == "DependencyFailed"
    assert "UNHEALTHY after 2 failed checks" in machine.causes[0].text


def test_failures_in_the_start_period_do_not_count_and_a_success_ends_it() -> None:
    rule = ContainerRule(name="a", health=HealthRule(interval_s=5, retries=1, start_period_s=60))
    machine = _running(rule)
    machine.probed("a", answer(False), T0 + 50)
    assert machine.containers["a"].health == "UNKNOWN"
    machine.probed("a", answer(True), T0 + 51)
    machine.probed("a", answer(False), T0 + 55)
    assert machine.containers["a"].health == "UNHEALTHY"


def test_start_timeout_of_the_dependency() -> None:
    machine = TaskMachine(
        (
            ContainerRule(name="init", essential=False, start_timeout_s=5),
            ContainerRule(name="app", depends_on=(("init", "COMPLETE"),)),
        ),
        1024,
    )
    machine.begin(T0)
    assert rules.Arm("start/init", 5) in machine.started("init", T0)
    assert rules.Terminate("init") in machine.timer("start/init", T0 + 5)
    assert machine.causes[0].kind == "StartTimeout"


def test_restart_policy_restarts_after_its_period_and_not_for_ignored_codes() -> None:
    rule = ContainerRule(name="a", restart_period_s=60, restart_ignored_codes=(7,))
    machine = _running(rule)
    assert machine.exited("a", Exit(exit_code=1), T0 + 61) == [rules.Start("a")]
    assert machine.containers["a"].restarts == 1 and machine.status == "RUNNING"
    machine.started("a", T0 + 62)
    machine.exited("a", Exit(exit_code=1), T0 + 70)
    assert machine.stop_code == "EssentialContainerExited"
    other = _running(rule)
    other.exited("a", Exit(exit_code=7), T0 + 100)
    assert other.is_stopping


def test_what_does_not_end_is_killed_then_given_up_and_both_are_said() -> None:
    machine = _running(ContainerRule(name="a", stop_timeout_s=2))
    machine.stop("UserInitiated", "Task stopped by user", (), T0)
    assert machine.timer("kill/a", T0 + 2) == [
        rules.Terminate("a", kill=True),
        rules.Arm("lost/a", rules.LOST_AFTER_S),
    ]
    assert machine.causes[0].kind == "StopTimeout"
    assert machine.timer("lost/a", T0 + 12) == [rules.Finish()]
    assert machine.containers["a"].reason.startswith("CannotStopContainerError: ")


def test_exits_that_come_twice_or_late_change_nothing() -> None:
    machine = _running(ContainerRule(name="a"), ContainerRule(name="b", essential=False))
    machine.exited("a", Exit(exit_code=1), T0)
    causes = list(machine.causes)
    assert machine.exited("a", Exit(exit_code=2), T0) == []
    assert machine.causes == causes


def test_resume_arms_what_was_armed_and_goes_on() -> None:
    made = (
        ContainerRule(
            name="db", start_timeout_s=20, health=HealthRule(interval_s=30, retries=2, start_period_s=0)
        ),
        ContainerRule(name="app", depends_on=(("db", "HEALTHY"),)),
    )
    machine = TaskMachine(made, 1024)
    state = machine.containers["db"]
    state.status, state.started_at = rules.RUNNING, T0
    assert machine.resume(T0 + 15) == [rules.Arm("probe/db", 1.0), rules.Arm("start/db", 5.0)]


def test_what_ended_by_itself_and_not_well_has_failed() -> None:
    ended: dict[int, TaskMachine] = {}
    for code in (0, 3):
        ended[code] = _running(ContainerRule(name="a"))
        ended[code].exited("a", Exit(exit_code=code), 5.0)
        # The control plane's answer to the report of that exit.
        ended[code].stop("EssentialContainerExited", "Essential container in task exited", (), 6.0)
    assert not rules.has_failed(ended[0]) and rules.has_failed(ended[3])
    stopped = _running(ContainerRule(name="a"))
    stopped.stop("UserInitiated", "Task stopped by user", (), 5.0)
    stopped.exited("a", Exit(exit_code=143, signal=15), 6.0)
    assert not rules.has_failed(stopped)
    gone = _running(ContainerRule(name="a"))
    gone.sandbox_gone("the VM is gone", CauseLink(kind="VmGone", text="x"), 5.0)
    assert rules.has_failed(gone)
    stopped.containers["a"].health = "UNHEALTHY"
    assert rules.has_failed(stopped)
