"""hutch's own routes about events and schedules: what happened, what happens now, what a schedule did."""

from typing import Any

from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.base.errors import Invalid
from hutch.control.events.reading import EventReader
from hutch.control.ops.events import EventOps
from hutch.control.ops.schedules import ScheduleOps
from hutch.control.ops.tasks import TaskOps

MAX_WAIT_S = 50.0
MAX_EVENTS = 1000


class EventApi:
    """The handlers."""

    def __init__(self, reader: EventReader, events: EventOps, schedules: ScheduleOps, tasks: TaskOps) -> None:
        self._reader = reader
        self._events = events
        self._schedules = schedules
        self._tasks = tasks

    def routes(self) -> tuple[NativeRoute, ...]:
        return (
            NativeRoute(method="GET", template="/hutch/v1/events", handler=self.list_events),
            NativeRoute(method="GET", template="/hutch/v1/tasks/{task}/findings", handler=self.list_findings),
            NativeRoute(method="GET", template="/hutch/v1/schedules", handler=self.list_schedules),
            NativeRoute(method="GET", template="/hutch/v1/runs/{owner*}", handler=self.list_runs),
        )

    async def list_events(self, request: NativeRequest) -> dict[str, Any]:
        """The newest `limit` events; or with `after` those behind that number, as soon as there are any (50 s).

        `task`: only those about a task. `next` is what to give as `after` to go on.
        """
        task = request.query.get("task", "")
        if task:
            task = self._tasks.find_anywhere(task).task_id
        if "after" in request.query:
            events, number = await self._reader.wait_after(
                _number(request, "after", 0, 0, 10**18), task, MAX_WAIT_S
            )
        else:
            events, number = self._reader.newest(_number(request, "limit", 100, 0, MAX_EVENTS), task)
        return {"events": events, "next": number}

    async def list_findings(self, request: NativeRequest) -> dict[str, Any]:
        """What threat detection found about a task, as long as the event log has it: newest first."""
        task = self._tasks.find_anywhere(request.params["task"])
        limit = _number(request, "limit", 20, 1, MAX_EVENTS)
        return {"findings": [e["detail"] for e in self._reader.findings(task.task_id, limit)]}

    async def list_schedules(self, request: NativeRequest) -> dict[str, Any]:
        """Every schedule, and every rule that has one: when it is due next, what came of its last run."""
        found = [
            {
                "owner": s.owner,
                "expression": s.expression,
                "time_zone": s.time_zone,
                "state": s.state,
                "next_at": s.next_at,
                "target": s.target.arn,
            }
            for s in self._schedules.page("", "", "", None, MAX_EVENTS)[0]
        ]
        found += [
            {
                "owner": r.owner,
                "expression": r.schedule,
                "time_zone": "UTC",
                "state": r.state,
                "next_at": r.next_at,
                "target": " ".join(t.arn for t in r.targets),
            }
            for r in self._events.rules("default", "", None, MAX_EVENTS)[0]
            if r.schedule
        ]
        for shape in found:
            runs, count = self._schedules.runs(str(shape["owner"]))
            shape["last_run_at"] = runs[0].nominal_at if runs else None
            shape["last_outcome"] = runs[0].outcome if runs else ""
            shape["failed"] = count.failed
        return {"schedules": found}

    async def list_runs(self, request: NativeRequest) -> dict[str, Any]:
        """The newest runs of a schedule (`schedule/GROUP/NAME`) or rule (`rule/BUS/NAME`), newest first."""
        owner = request.params["owner"]
        kind, _, name = owner.partition("/")
        group, _, name = name.partition("/")
        if kind == "rule":
            self._events.rule(group, name)
        elif kind == "schedule":
            if not self._schedules.runs(owner)[0]:
                self._schedules.get(group, name)
        else:
            raise Invalid("runs are those of schedule/GROUP/NAME or rule/BUS/NAME")
        runs, count = self._schedules.runs(owner)
        return {
            "runs": [
                {
                    "nominal_at": r.nominal_at,
                    "fired_at": r.fired_at,
                    "outcome": r.outcome,
                    "missed_before": r.missed_before,
                    "detail": r.detail,
                }
                for r in runs
            ],
            "failed": count.failed,
            "last_error": count.last_error,
        }


def _number(request: NativeRequest, name: str, default: int, low: int, high: int) -> int:
    text = request.query.get(name, str(default))
    if not text.isdecimal() or len(text) > 19 or not low <= int(text) <= high:
        raise Invalid(f"{name} must be between {low} and {high}")
    return int(text)
