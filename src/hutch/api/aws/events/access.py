"""What EventBridge's operations need permission for."""

from collections.abc import Mapping, Sequence

from hutch.api.gateway.access import nothing
from hutch.api.gateway.operation import Access, AccessRule, Request, RunAccess
from hutch.base.errors import HutchError
from hutch.control.ops.events import EventOps
from hutch.rules.events.targets import overrides_in

EVENTS_SERVICE = "events.amazonaws.com"
_ON_RULES = "PutRule DescribeRule DeleteRule EnableRule DisableRule ListTargetsByRule RemoveTargets"
_ON_BUSES = "CreateEventBus DeleteEventBus DescribeEventBus"
_ON_ARNS = "TagResource UntagResource ListTagsForResource"


class EventAccess:
    """The rules of EventBridge's operations."""

    def __init__(self, ops: EventOps, running: RunAccess) -> None:
        self._ops = ops
        self._running = running
        self._prefix = f"arn:aws:events:{ops.region}:{ops.account_id}:"

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        rules: dict[str, AccessRule] = dict.fromkeys(_ON_RULES.split(), self._rule)
        rules |= dict.fromkeys(_ON_BUSES.split(), self._bus)
        rules |= dict.fromkeys(_ON_ARNS.split(), self._by_arn)
        return rules | {
            "PutTargets": self._targets,
            "PutEvents": self._events,
            "TestEventPattern": nothing,
        }

    def tags_of(self, arn: str) -> Mapping[str, str]:
        """The tags of a rule or bus; none for what is not there."""
        try:
            return self._ops.tags(arn)
        except HutchError:
            return {}

    def _rule_arn(self, request: Request) -> str:
        given = request.input
        name = given.get("Name") or given.get("Rule") or "*"
        bus = given.get("EventBusName", "").rpartition("event-bus/")[2]
        return f"{self._prefix}rule/{name}" if bus in ("", "default") else f"{self._prefix}rule/{bus}/{name}"

    def _rule(self, request: Request) -> Sequence[Access]:
        role = request.input.get("RoleArn")
        own = Access(resources=(self._rule_arn(request),))
        return (own, _passing(role)) if role else (own,)

    def _targets(self, request: Request) -> Sequence[Access]:
        """Whoever lets a rule run tasks must be allowed to run them, and to pass the roles that are named."""
        found = [Access(resources=(self._rule_arn(request),))]
        for target in request.input.get("Targets", ()):
            if role := target.get("RoleArn"):
                found.append(_passing(role))
            if "EcsParameters" in target:
                definition = target["EcsParameters"]["TaskDefinitionArn"]
                overrides = overrides_in(target.get("Input"))
                found += self._running("ecs:RunTask", definition, target["Arn"], overrides)
        return found

    def _bus(self, request: Request) -> Sequence[Access]:
        name = request.input.get("Name", "default").rpartition("event-bus/")[2]
        return (Access(resources=(f"{self._prefix}event-bus/{name}",)),)

    def _events(self, request: Request) -> Sequence[Access]:
        names = {
            e.get("EventBusName", "default").rpartition("event-bus/")[2]
            for e in request.input.get("Entries", ())
        }
        return (Access(resources=tuple(f"{self._prefix}event-bus/{n}" for n in sorted(names)) or ("*",)),)

    def _by_arn(self, request: Request) -> Sequence[Access]:
        return (Access(resources=(request.input["ResourceARN"],)),)


def _passing(role: str) -> Access:
    return Access(
        action="iam:PassRole", resources=(role,), context={"iam:passedtoservice": (EVENTS_SERVICE,)}
    )
