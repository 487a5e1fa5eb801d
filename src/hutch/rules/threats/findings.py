"""From facts to findings: which are told, which are the same again, and how many are too many. Pure: time is an argument."""

from typing import Any

import msgspec

from hutch.rules.threats.document import ThreatRule, ThreatRules
from hutch.rules.threats.fields import Subject, event_type

SAME_AGAIN_S = 60.0
"""The same finding within this time is only counted."""
BURST, PER_SECOND = 50.0, 0.5
"""Findings of one task: so many at once, and so many a second from then on."""
MAX_REMEMBERED = 1000
DROPPED = "Facts dropped"
SUPPRESSED = "Findings suppressed"
_EVIDENCE = (
    "pid", "parent_pid", "name", "exe", "command_line", "ancestors", "parent_exe", "uid", "euid", "path", "syscall", "mode",
    "address", "port", "ports", "gained_root", "gained_capabilities", "is_new_file", "is_memory_file", "has_terminal",
    "by_exec", "cpu_percent", "cpu_s",
)  # fmt: skip


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rule found. `count`: so often since the last one was told, this one included."""

    rule: str
    priority: str
    text: str
    description: str = ""
    tags: tuple[str, ...] = ()
    container: str = ""
    event: str = ""
    at: float = 0.0
    count: int = 1
    process: dict[str, Any] = {}


class _Known(msgspec.Struct, kw_only=True):
    told_at: float
    since: int = 0


class Judge:
    """Of one task. All memory is bounded, whatever is told."""

    def __init__(self, rules: ThreatRules) -> None:
        self._rules = rules
        self._known: dict[tuple[str, ...], _Known] = {}
        self._left = BURST
        self._left_at = 0.0
        self._suppressed = 0
        self._dropped = 0

    def take(self, subjects: list[Subject], dropped: int, now: float) -> list[Finding]:
        """What is to be told of some facts. `dropped`: how many facts were lost since the sandbox was made."""
        found = [
            finding
            for subject in subjects
            for rule in self._rules.rules
            if subject["kind"] in rule.condition.kinds and rule.condition.holds(subject)
            if (finding := self._finding(rule, subject, now)) is not None
        ]
        told = [f for f in found if self._spend(now)]
        self._suppressed += len(found) - len(told)
        if self._suppressed and self._spend(now):
            text = f"{self._suppressed} findings more were not told: there were too many"
            told.append(
                Finding(rule=SUPPRESSED, priority="WARNING", text=text, at=now, count=self._suppressed)
            )
            self._suppressed = 0
        if dropped > self._dropped:
            lost = dropped - self._dropped
            if self._spend(now):
                text = f"{lost} facts were dropped before they could be judged: the task's processes do too much at once"
                told.append(Finding(rule=DROPPED, priority="WARNING", text=text, at=now, count=lost))
                self._dropped = dropped
        return told

    def _finding(self, rule: ThreatRule, subject: Subject, now: float) -> Finding | None:
        key = (
            rule.name,
            str(subject["container"]),
            str(subject["exe"]),
            str(subject["path"]) if subject["kind"] != "exec" else str(subject["name"]),
            f"{subject['address']}:{subject['port']}",
        )
        known = self._known.get(key)
        if known is not None and now - known.told_at < SAME_AGAIN_S:
            known.since += 1
            return None
        count = 1 + (known.since if known else 0)
        self._known.pop(key, None)
        self._known[key] = _Known(told_at=now)
        if len(self._known) > MAX_REMEMBERED:
            del self._known[next(iter(self._known))]
        return Finding(
            rule=rule.name,
            priority=rule.priority,
            text=rule.line(subject),
            description=rule.description,
            tags=rule.tags,
            container=str(subject["container"]),
            event=event_type(subject),
            at=subject["time_ns"] / 1e9 or now,
            count=count,
            process={
                k: subject[k] for k in _EVIDENCE if k in ("uid", "euid") or subject[k] not in ("", 0, (), [])
            },
        )

    def _spend(self, now: float) -> bool:
        self._left = min(BURST, self._left + max(0.0, now - self._left_at) * PER_SECOND)
        self._left_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
