"""From the facts that hosts tell to what the rules of a task's life cycle take."""

from hutch.model.task import CauseLink, Phase
from hutch.rules.facts import ObservedContainer, ObservedTask
from hutch.wire.facts import TaskFacts


def observed_task(facts: TaskFacts) -> ObservedTask:
    """The wire's facts in the model's words."""
    return ObservedTask(
        status=facts.status,
        containers=tuple(
            ObservedContainer(**{f: getattr(c, f) for f in ObservedContainer.__struct_fields__})
            for c in facts.containers
        ),
        stop_code=facts.stop_code,
        stopped_reason=facts.stopped_reason,
        causes=tuple(
            CauseLink(kind=c.kind, text=c.text, evidence=c.evidence, fix=c.fix) for c in facts.causes
        ),
        phases=tuple(
            Phase(name=p.name, started_at=p.started_at, ended_at=p.ended_at, detail=p.detail)
            for p in facts.phases
        ),
        network_ready_at=facts.network_ready_at,
        pull_started_at=facts.pull_started_at,
        pull_stopped_at=facts.pull_stopped_at,
        started_at=facts.started_at,
        suspended_at=facts.suspended_at,
        stopping_at=facts.stopping_at,
        execution_stopped_at=facts.execution_stopped_at,
        stopped_at=facts.stopped_at,
    )
