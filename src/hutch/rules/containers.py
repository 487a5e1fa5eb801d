"""When the containers of a task start, stop and restart: events in, actions out. No clock, no I/O.

Rules: reference B.3 and B.4 (dependsOn, essential, stop order, stopTimeout, restartPolicy, health checks).
The caller carries actions out in order and feeds back what happens; `now` is epoch seconds.
"""

from typing import Any

import msgspec

from hutch.model.task import CauseLink
from hutch.rules.signals import signal_name

PENDING, STARTING, RUNNING, STOPPED = "PENDING", "STARTING", "RUNNING", "STOPPED"
ESSENTIAL_EXITED = "EssentialContainerExited"
FAILED_TO_START = "TaskFailedToStart"
LOST_AFTER_S = 10.0
"""A container that has not ended so long after SIGKILL is given up; the sandbox goes with it."""
FIRST_PROBE_AFTER_S = 1.0
"""Until its first interval is over a container is asked more often: a quick one counts as healthy soon."""


class HealthRule(msgspec.Struct, frozen=True, kw_only=True):
    interval_s: float
    retries: int
    start_period_s: float


class ContainerRule(msgspec.Struct, frozen=True, kw_only=True):
    """What matters of a container here. `depends_on`: (container, START | COMPLETE | SUCCESS | HEALTHY)."""

    name: str
    essential: bool = True
    depends_on: tuple[tuple[str, str], ...] = ()
    stop_timeout_s: float = 30.0
    start_timeout_s: float | None = None
    health: HealthRule | None = None
    restart_ignored_codes: tuple[int, ...] = ()
    restart_period_s: float | None = None
    """None: no restart policy."""
    memory_mib: int | None = None


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's process ended. `exit_code` is 128+n for signal n."""

    exit_code: int
    signal: int = 0
    oom: bool = False
    oom_process: str = ""
    oom_rss_bytes: int = 0


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a health check's command gave: `exit_code` None if it did not end or could not be run."""

    exit_code: int | None
    timed_out: bool = False
    output: str = ""

    @property
    def is_healthy(self) -> bool:
        return self.exit_code == 0 and not self.timed_out


class Start(msgspec.Struct, frozen=True):
    """Start the container."""

    container: str


class Terminate(msgspec.Struct, frozen=True):
    """Send the container its stop signal, or (`kill`) SIGKILL."""

    container: str
    kill: bool = False


class Arm(msgspec.Struct, frozen=True):
    """Call `timer(key)` after so many seconds; a timer armed before under the same key is replaced."""

    key: str
    seconds: float


class Probe(msgspec.Struct, frozen=True):
    """Run the container's health check and feed back `probed`."""

    container: str


class Finish(msgspec.Struct, frozen=True):
    """All containers have ended: the sandbox can go."""


Action = Start | Terminate | Arm | Probe | Finish


class ContainerState(msgspec.Struct, kw_only=True):
    """What is known of a container."""

    rule: ContainerRule
    status: str = PENDING
    health: str = "UNKNOWN"
    health_since: float | None = None
    last_probe: ProbeAnswer | None = None
    failures: int = 0
    exit: Exit | None = None
    reason: str = ""
    restarts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    signalled: bool = False


class TaskMachine:
    """One task's containers. `status` is ACTIVATING, RUNNING, STOPPING or STOPPED."""

    def __init__(self, rules: tuple[ContainerRule, ...], task_memory_mib: int) -> None:
        self.containers = {r.name: ContainerState(rule=r) for r in rules}
        self._task_memory_mib = task_memory_mib
        self.status = "ACTIVATING"
        self.stop_code = ""
        self.stopped_reason = ""
        self.causes: list[CauseLink] = []

    @property
    def is_stopping(self) -> bool:
        return self.status in ("STOPPING", "STOPPED")

    def begin(self, now: float) -> list[Action]:
        """The sandbox is ready."""
        return self._advance(now)

    def started(self, name: str, now: float) -> list[Action]:
        """The container's process runs."""
        state = self.containers[name]
        if state.status != STARTING:
            return []
        state.status, state.started_at, state.finished_at, state.exit = RUNNING, now, None, None
        actions: list[Action] = []
        if state.rule.health:
            state.health, state.failures = "UNKNOWN", 0
            state.health_since, state.last_probe = None, None
            actions.append(Arm(f"probe/{name}", min(FIRST_PROBE_AFTER_S, state.rule.health.interval_s)))
        waited_for = any(
            d == name and c != "START" for s in self.containers.values() for d, c in s.rule.depends_on
        )
        if state.rule.start_timeout_s is not None and waited_for:
            actions.append(Arm(f"start/{name}", state.rule.start_timeout_s))
        return actions + self._advance(now)

    def start_failed(self, name: str, reason: str, cause: CauseLink, now: float) -> list[Action]:
        """The container can't be run: the task ends. `reason` begins with AWS's word for it."""
        state = self.containers[name]
        state.status, state.finished_at, state.reason = STOPPED, now, reason
        if self.is_stopping:
            return self._advance(now)
        return self.stop(FAILED_TO_START, reason, (cause,), now)

    def exited(self, name: str, how: Exit, now: float) -> list[Action]:
        """The container's process ended. To be fed after `started` of the same start."""
        state = self.containers[name]
        if state.status != RUNNING:
            return []
        ran_s = now - (state.started_at if state.started_at is not None else now)
        state.exit, state.finished_at = how, now
        if self._restarts(state, ran_s):
            state.status, state.restarts = STARTING, state.restarts + 1
            return [Start(name)]
        state.status = STOPPED
        if how.oom:
            state.reason = "OutOfMemoryError: Container killed due to memory usage"
        if not self.is_stopping and state.rule.essential:
            return self.stop(
                ESSENTIAL_EXITED, "Essential container in task exited", self._exit_causes(state), now
            )
        return self._advance(now)

    def probed(self, name: str, answer: ProbeAnswer, now: float) -> list[Action]:
        """The container's health check was run."""
        state = self.containers[name]
        healthy, before = answer.is_healthy, state.health
        rule = state.rule.health
        if state.status != RUNNING or rule is None or state.started_at is None:
            return []
        age = now - state.started_at
        if healthy:
            state.health, state.failures = "HEALTHY", 0
        elif state.health == "HEALTHY" or age > max(rule.start_period_s, rule.interval_s):
            state.failures += 1
            if state.failures >= rule.retries:
                state.health = "UNHEALTHY"
        state.last_probe = answer
        if state.health != before:
            state.health_since = now
        soon = state.health == "UNKNOWN" and age < rule.interval_s
        again = Arm(f"probe/{name}", min(FIRST_PROBE_AFTER_S, rule.interval_s) if soon else rule.interval_s)
        return [again, *self._advance(now)]

    def timer(self, key: str, now: float) -> list[Action]:
        """An armed timer fired. One that has become pointless does nothing."""
        kind, _, name = key.partition("/")
        state = self.containers[name]
        if kind == "probe" and state.status == RUNNING and not self.is_stopping:
            return [Probe(name)]
        if kind == "kill" and state.status == RUNNING:
            self.causes.append(_stop_timeout(state))
            return [Terminate(name, kill=True), Arm(f"lost/{name}", LOST_AFTER_S)]
        if kind == "lost" and state.status == RUNNING:
            state.status, state.finished_at = STOPPED, now
            state.reason = f"CannotStopContainerError: no end seen {LOST_AFTER_S:g} s after SIGKILL"
            return self._advance(now)
        if kind == "start" and not self.is_stopping and self._is_waited_for(name):
            limit = state.rule.start_timeout_s
            text = f'container "{name}" did not reach what others wait for in its startTimeout of {limit:g} s'
            state.reason = "TaskDependencyError: " + text
            cause = CauseLink(
                kind="StartTimeout",
                text=text,
                evidence={"container": name, "health": state.health, "status": state.status},
                fix="raise its startTimeout, or find out why it is slow in its log",
            )
            return self.stop(FAILED_TO_START, state.reason, (cause,), now)
        return []

    def stop(self, code: str, reason: str, causes: tuple[CauseLink, ...], now: float) -> list[Action]:
        """End the task. Who asks first gives the reason."""
        if self.is_stopping:
            return []
        self.status, self.stop_code, self.stopped_reason = "STOPPING", code, reason
        self.causes += causes
        for state in self.containers.values():
            if state.status == PENDING:
                state.status = STOPPED
        return self._advance(now)

    def sandbox_gone(self, reason: str, cause: CauseLink, now: float) -> list[Action]:
        """The sandbox ended under the containers."""
        for state in self.containers.values():
            if state.status in (STARTING, RUNNING):
                state.status, state.finished_at = STOPPED, now
                state.reason = state.reason or reason
        if not self.is_stopping:
            code = ESSENTIAL_EXITED if self.status == "RUNNING" else FAILED_TO_START
            self.status, self.stop_code, self.stopped_reason = "STOPPING", code, reason
            self.causes.append(cause)
            for state in self.containers.values():
                state.status = STOPPED
        return self._advance(now)

    def resume(self, now: float) -> list[Action]:
        """After the states were restored from what another process saved: arm the timers again, and go on."""
        actions: list[Action] = []
        for name, state in self.containers.items():
            if state.status != RUNNING or state.started_at is None:
                continue
            if state.rule.health and not self.is_stopping:
                actions.append(Arm(f"probe/{name}", min(FIRST_PROBE_AFTER_S, state.rule.health.interval_s)))
            if state.rule.start_timeout_s is not None and self._is_waited_for(name):
                left_s = state.started_at + state.rule.start_timeout_s - now
                actions.append(Arm(f"start/{name}", max(0.0, left_s)))
        return actions + self._advance(now)

    def _advance(self, now: float) -> list[Action]:
        """Whatever follows from the state as it is."""
        return self._advance_stop() if self.is_stopping else self._advance_start(now)

    def _advance_start(self, now: float) -> list[Action]:
        actions: list[Action] = []
        waiting = [s for s in self.containers.values() if s.status == PENDING]
        for state in waiting:
            if cause := self._unreachable(state):
                state.reason = f"TaskDependencyError: {cause.text}"
                return self.stop(FAILED_TO_START, state.reason, (cause,), now)
        for state in waiting:
            if all(self._holds(d, c) for d, c in state.rule.depends_on):
                state.status = STARTING
                actions.append(Start(state.rule.name))
        if self.status == "ACTIVATING" and all(
            s.status in (RUNNING, STOPPED) for s in self.containers.values()
        ):
            self.status = "RUNNING"
        if all(s.status == STOPPED for s in self.containers.values()):
            codes = {n: s.exit.exit_code if s.exit else None for n, s in self.containers.items()}
            text = "every container of the task has ended"
            cause = CauseLink(kind="AllContainersExited", text=text, evidence={"exit_codes": codes})
            actions += self.stop(ESSENTIAL_EXITED, "All containers in task exited", (cause,), now)
        return actions

    def _advance_stop(self) -> list[Action]:
        actions: list[Action] = []
        for name, state in self.containers.items():
            if state.status != RUNNING or state.signalled:
                continue
            dependents = [s for s in self.containers.values() if any(d == name for d, _ in s.rule.depends_on)]
            if all(s.status == STOPPED for s in dependents):
                state.signalled = True
                actions += [Terminate(name), Arm(f"kill/{name}", state.rule.stop_timeout_s)]
        if self.status == "STOPPING" and all(s.status == STOPPED for s in self.containers.values()):
            self.status = "STOPPED"
            actions.append(Finish())
        return actions

    def _holds(self, name: str, condition: str) -> bool:
        state = self.containers[name]
        if condition == "START":
            return state.started_at is not None
        if condition == "HEALTHY":
            return state.status == RUNNING and state.health == "HEALTHY"
        ended = state.status == STOPPED and state.exit is not None
        return ended and (condition == "COMPLETE" or (state.exit is not None and state.exit.exit_code == 0))

    def _unreachable(self, state: ContainerState) -> CauseLink | None:
        """Why a dependency can never be met any more; None while it can."""
        for name, condition in state.rule.depends_on:
            other = self.containers[name]
            waits = f'"{state.rule.name}" waits for {condition}'
            evidence: dict[str, Any] = {"container": name, "waiting": state.rule.name, "condition": condition}
            if condition == "HEALTHY" and other.status == RUNNING and other.health == "UNHEALTHY":
                retries = other.rule.health.retries if other.rule.health else 0
                return CauseLink(
                    kind="DependencyFailed",
                    text=f'container "{name}" is UNHEALTHY after {retries} failed checks, and {waits}',
                    evidence=evidence | {"health_check": _probe_evidence(other.last_probe)},
                    fix="see what its health check says; raise startPeriod if it needs longer to be ready",
                )
            if other.status != STOPPED or self._holds(name, condition):
                continue
            code = other.exit.exit_code if other.exit else None
            return CauseLink(
                kind="DependencyFailed",
                text=f'container "{name}" ended with exit code {code}, and {waits}',
                evidence=evidence | {"exit_code": code},
                fix=f'see the last log lines of "{name}": hutch logs',
            )
        return None

    def _is_waited_for(self, name: str) -> bool:
        return any(
            s.status == PENDING and any(d == name and not self._holds(d, c) for d, c in s.rule.depends_on)
            for s in self.containers.values()
        )

    def _restarts(self, state: ContainerState, ran_s: float) -> bool:
        rule, how = state.rule, state.exit
        return (
            not self.is_stopping
            and how is not None
            and rule.restart_period_s is not None
            and how.exit_code not in rule.restart_ignored_codes
            and ran_s >= rule.restart_period_s
        )

    def _exit_causes(self, state: ContainerState) -> tuple[CauseLink, ...]:
        how = state.exit
        assert how is not None
        name = state.rule.name
        evidence: dict[str, Any] = {"container": name, "exit_code": how.exit_code}
        if how.oom:
            limit = state.rule.memory_mib or self._task_memory_mib
            process = how.oom_process or name
            at = f" at {how.oom_rss_bytes / 2**30:.2f} of {limit / 1024:.2f} GiB" if how.oom_rss_bytes else ""
            evidence |= {"process": process, "rss_bytes": how.oom_rss_bytes, "limit_mib": limit}
            return (
                CauseLink(
                    kind="OutOfMemory",
                    text=f'"{process}" was killed by the kernel\'s OOM killer{at}',
                    evidence=evidence,
                    fix=f"set memory to {limit * 3 // 2}",
                ),
            )
        if how.signal:
            signal = signal_name(how.signal)
            evidence["signal"] = signal
            text = f'essential container "{name}" was ended by {signal}'
        else:
            text = f'essential container "{name}" exited with code {how.exit_code}'
        return (CauseLink(kind="ContainerExited", text=text, evidence=evidence, fix=_exit_fix(how)),)


def has_failed(machine: TaskMachine) -> bool:
    """Whether a task that has ended did so for something that is to be looked into: unhealthy, or by itself and not well."""
    if any(s.health == "UNHEALTHY" for s in machine.containers.values()):
        return True
    first = machine.causes[0] if machine.causes else None
    ended_well = first is not None and first.kind == "ContainerExited" and first.evidence["exit_code"] == 0
    return machine.stop_code in (ESSENTIAL_EXITED, FAILED_TO_START) and not ended_well


def _probe_evidence(answer: ProbeAnswer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    how = {"timed_out": True} if answer.timed_out else {"exit_code": answer.exit_code}
    return {**how, "output": answer.output[-500:]}


def _stop_timeout(state: ContainerState) -> CauseLink:
    name, limit_s = state.rule.name, state.rule.stop_timeout_s
    return CauseLink(
        kind="StopTimeout",
        text=f'container "{name}" did not end within its stopTimeout of {limit_s:g} s and was killed',
        evidence={"container": name, "stop_timeout_s": limit_s},
        fix="let its first process handle the stop signal, or raise stopTimeout",
    )


def _exit_fix(how: Exit) -> str:
    return {
        126: "the command can't be executed: check its permissions",
        127: "the command was not found: check command and PATH",
        139: "the program crashed (segmentation fault): see its log",
        134: "the program aborted itself: see its log",
    }.get(how.exit_code, "" if how.exit_code == 0 else "see the container's last log lines: hutch logs")
