"""What is known of one task on this host: from the state machine and the clock to the facts that are reported,
and back again from a task's file."""

from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.host.agent.logship import ShippingStatus
from hutch.host.agent.metadata import Health
from hutch.host.agent.taskfile import SavedContainer, TaskFile
from hutch.host.agent.tasklogs import read_tail
from hutch.host.drivers.contract import HostFault, ObservedContainer
from hutch.model.task import CauseLink
from hutch.rules import containers as rules
from hutch.rules.last_words import MAX_LINES, fix_from, last_lines
from hutch.wire.facts import CauseFact, ContainerFact, PhaseFact, TaskFacts
from hutch.wire.taskspec import ContainerSpec, TaskSpec

MAX_CAUSES = 16
MAX_CAUSE_CHARACTERS = 2000
MAX_EVIDENCE_BYTES = 16 * 1024
MAX_PHASES = 200
_OF_PROGRAMS = ("ContainerExited", "OutOfMemory", "DependencyFailed", "StartTimeout", "AllContainersExited")
"""Causes for which what a container wrote last is evidence."""
_TIMES = ("network_ready_at", "pull_started_at", "pull_stopped_at", "started_at", "stopping_at",
          "execution_stopped_at", "stopped_at")  # fmt: skip


class Observation:
    """The machine that decides, and all around it that is worth telling. `status` is as in `TaskFacts`."""

    def __init__(self, content: TaskFile) -> None:
        spec = content.spec
        self.machine = rules.TaskMachine(tuple(_rule(c) for c in spec.containers), spec.memory_mib)
        self.status = "ACTIVATING"
        self.runtime_ids: dict[str, str] = {}
        self.digests = {n: i.digest for n, i in content.images.items()}
        self.phases: list[PhaseFact] = list(content.phases)
        self.times: dict[str, float] = {}
        self.suspended_at = content.suspended_at
        self.logs: dict[str, ShippingStatus] = {}
        """Known when the task has ended: to tell it all the time would be a report for each line."""
        self._task_id = spec.task_id
        self._restore(content)

    def note(self, what: str, at: float) -> None:
        """Remember when something happened for the first time; `what` is a member of `TaskFacts`."""
        self.times.setdefault(what, at)

    def measured(self, name: str, detail: str, started_at: float, ended_at: float) -> None:
        """A bar of the launch waterfall. Restarts add bars, so their number is bounded."""
        if len(self.phases) < MAX_PHASES:
            phase = PhaseFact(name=name, started_at=started_at, ended_at=ended_at, detail=detail)
            self.phases.append(phase)

    def facts(self) -> TaskFacts:
        """All that is known of the task now."""
        machine = self.machine
        return TaskFacts(
            task_id=self._task_id,
            status=self.status,
            containers=tuple(self._container_fact(n, s) for n, s in machine.containers.items()),
            stop_code=machine.stop_code,
            stopped_reason=machine.stopped_reason,
            causes=tuple(_cause_fact(c) for c in machine.causes[:MAX_CAUSES]),
            phases=tuple(self.phases),
            suspended_at=self.suspended_at,
            **self.times,
        )

    def health(self) -> dict[str, Health]:
        """Of the containers that have a health check."""
        return {
            name: Health(status=s.health, since=s.health_since, last_probe=s.last_probe)
            for name, s in self.machine.containers.items()
            if s.rule.health is not None
        }

    def catch_up(self, found: dict[str, ObservedContainer], now: float) -> list[rules.Action]:
        """Bring what was saved to what is: the file may be a step behind."""
        actions: list[rules.Action] = []
        for name, state in self.machine.containers.items():
            seen, known_id = found.get(name), self.runtime_ids.get(name, "")
            if state.status == rules.STOPPED:
                continue
            if state.status == rules.RUNNING and seen is None:
                state.reason = "ContainerRuntimeError: it was gone when the host agent came back"
                actions += self.machine.exited(name, rules.Exit(exit_code=255), now)
            elif state.status == rules.RUNNING and seen is not None:
                if seen.runtime_id != known_id:
                    state.restarts += 1
                    state.started_at = seen.started_at or state.started_at
                    self.runtime_ids[name] = seen.runtime_id
            elif seen is not None and seen.runtime_id != known_id:
                state.status = rules.STARTING
                self.runtime_ids[name] = seen.runtime_id
                actions += self.machine.started(name, seen.started_at or now)
            elif state.status == rules.STARTING and self.machine.is_stopping:
                state.status = rules.STOPPED
            elif state.status == rules.STARTING:
                actions.append(rules.Start(name))
        return actions

    @property
    def created_at(self) -> float | None:
        """When the sandbox was there, and its containers could be made."""
        return max(
            (p.ended_at for p in self.phases if p.name in ("boot", "sandbox") and p.ended_at), default=None
        )

    def saved_containers(self) -> tuple[SavedContainer, ...]:
        """The containers as the task's file keeps them."""
        return tuple(
            SavedContainer(
                name=n,
                status=s.status,
                runtime_id=self.runtime_ids.get(n, ""),
                restarts=s.restarts,
                started_at=s.started_at,
                finished_at=s.finished_at,
                reason=s.reason,
                health=s.health,
                exit=msgspec.to_builtins(s.exit) if s.exit else None,
            )
            for n, s in self.machine.containers.items()
        )

    def _container_fact(self, name: str, state: rules.ContainerState) -> ContainerFact:
        return ContainerFact(
            name=name,
            status=rules.PENDING if state.status == rules.STARTING else state.status,
            runtime_id=self.runtime_ids.get(name, ""),
            image_digest=self.digests.get(name, ""),
            # Nobody asks a container that stands still.
            health="UNKNOWN" if self.suspended_at is not None else state.health,
            exit_code=state.exit.exit_code if state.exit else None,
            reason=state.reason[:MAX_CAUSE_CHARACTERS],
            restart_count=state.restarts,
            started_at=state.started_at,
            finished_at=state.finished_at,
            **self._log_members(name),
        )

    def _log_members(self, name: str) -> dict[str, Any]:
        shipping = self.logs.get(name)
        if shipping is None:
            return {}
        return {
            "log_dropped_bytes": shipping.dropped_bytes,
            "log_waiting_bytes": shipping.waiting_bytes,
            "log_problem": shipping.problem[:MAX_CAUSE_CHARACTERS],
        }

    def _restore(self, content: TaskFile) -> None:
        for saved in content.containers:
            state = self.machine.containers[saved.name]
            state.status, state.restarts, state.reason = saved.status, saved.restarts, saved.reason
            state.started_at, state.finished_at = saved.started_at, saved.finished_at
            state.health = saved.health
            state.exit = msgspec.convert(saved.exit, rules.Exit) if saved.exit else None
            self.runtime_ids[saved.name] = saved.runtime_id
        facts = content.facts
        if facts is None:
            return
        self.status = facts.status
        self.times = {t: at for t in _TIMES if (at := getattr(facts, t)) is not None}
        self.machine.causes = [_cause_link(c) for c in facts.causes]
        self.machine.stop_code, self.machine.stopped_reason = facts.stop_code, facts.stopped_reason
        if facts.stop_code:
            self.machine.status = "STOPPING"
        elif facts.started_at is not None:
            self.machine.status = "RUNNING"


def cause_chain(fault: HostFault) -> tuple[CauseLink, ...]:
    """A fault and what led to it, outermost first."""
    links: list[CauseLink] = []
    at: BaseException | None = fault
    while isinstance(at, HostFault) and len(links) < MAX_CAUSES:
        links.append(CauseLink(kind=at.kind, text=at.message, evidence=at.evidence, fix=at.fix))
        at = at.__cause__
    return tuple(links)


def with_last_output(causes: list[CauseLink], logs: Path) -> list[CauseLink]:
    """The causes that name a container, with its newest lines as evidence, and the fix that these make plain."""
    return [_last_output(c, logs) for c in causes]


def _last_output(cause: CauseLink, logs: Path) -> CauseLink:
    name = cause.evidence.get("container")
    if cause.kind not in _OF_PROGRAMS or not name or "last_output" in cause.evidence:
        return cause
    lines = last_lines([line["text"] for line in read_tail(logs / f"{name}.log", MAX_LINES)])
    if not lines:
        return cause
    evidence = {**cause.evidence, "last_output": list(lines)}
    said = fix_from(lines) if cause.kind != "OutOfMemory" else ""
    return replace(cause, evidence=evidence, fix=said or cause.fix)


def reason_of(fault: HostFault, default_prefix: str) -> str:
    """The reason as AWS words it: "CannotPullContainerError: ..."."""
    return f"{fault.aws_prefix or default_prefix}: {fault.message}"


def _cause_link(fact: CauseFact) -> CauseLink:
    return CauseLink(kind=fact.kind, text=fact.text, evidence=fact.evidence, fix=fact.fix)


def _cause_fact(link: CauseLink) -> CauseFact:
    return CauseFact(
        kind=link.kind,
        text=link.text[:MAX_CAUSE_CHARACTERS],
        evidence=_plain(link.evidence),
        fix=link.fix[:MAX_CAUSE_CHARACTERS],
    )


def _plain(evidence: dict[str, Any]) -> dict[str, Any]:
    """Evidence that can be written and sent, whatever a driver put in, and not more than is good."""
    built: dict[str, Any] = msgspec.to_builtins(evidence, str_keys=True, enc_hook=repr)
    text = msgspec.json.encode(built)
    if len(text) <= MAX_EVIDENCE_BYTES:
        return built
    return {"shortened": text[:MAX_EVIDENCE_BYTES].decode("utf-8", "replace")}


def _rule(container: ContainerSpec) -> rules.ContainerRule:
    check, policy = container.health_check, container.restart_policy
    health = None
    if check is not None:
        health = rules.HealthRule(
            interval_s=check.interval_s, retries=check.retries, start_period_s=check.start_period_s
        )
    return rules.ContainerRule(
        name=container.name,
        essential=container.essential,
        depends_on=tuple((d.container, d.condition) for d in container.depends_on),
        stop_timeout_s=container.stop_timeout_s,
        start_timeout_s=container.start_timeout_s,
        health=health,
        restart_ignored_codes=policy.ignored_exit_codes if policy else (),
        restart_period_s=policy.attempt_period_s if policy else None,
        memory_mib=container.memory_mib,
    )


def container_named(spec: TaskSpec, name: str) -> ContainerSpec:
    """A container of the task; there must be one of that name."""
    return next(c for c in spec.containers if c.name == name)
