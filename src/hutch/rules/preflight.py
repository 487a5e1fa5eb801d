"""What would go wrong with a task, and what AWS would say to it, before anything is started: facts in, findings out.

Problems keep the task from running as it is meant to. Warnings may. What only AWS would refuse is apart from both.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from hutch.base.units import GIB, format_bytes
from hutch.rules import execution_role as role_rules
from hutch.rules.preflight_capacity import HostRoom
from hutch.rules.preflight_findings import Finding
from hutch.rules.taskdef.fargate import fargate_refusals

LIKELY_EXPANSION = 3
"""How much larger than its compressed layers an image usually gets."""


class ImageFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a host found of the image of some containers. Bytes; `unpacked_bytes` None: not known yet."""

    containers: tuple[str, ...]
    reference: str
    host: str
    size_bytes: int = 0
    unpacked_bytes: int | None = None
    is_here: bool = False
    is_stale: bool = False
    free_bytes: int = 0
    error_kind: str = ""
    error: str = ""
    fix: str = ""


class RoleFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A role of the task. `needed`: something is fetched as it at launch, so that without it the task would not start."""

    member: str
    arn: str
    exists: bool
    is_trusting: bool
    needed: bool = True


class DeniedFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the execution role may not do, for a container or a volume."""

    role_arn: str
    container: str = ""
    volume: str = ""
    action: str
    resource: str
    is_explicit: bool
    what_for: str


class LogFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A container that logs to CloudWatch Logs."""

    container: str
    group: str
    group_exists: bool
    creates_group: bool


class UnavailableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A secret, parameter, environment file or registry login that can't be had, for a container or a volume; the words are
    those of a launch. `container`, `volume` and `what` are "" for what concerns all of them."""

    kind: str
    container: str = ""
    volume: str = ""
    what: str
    text: str
    fix: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that was looked at. `document` is the completed task definition."""

    document: dict[str, Any]
    launch_type: str
    refusals: tuple[str, ...] = ()
    """What RegisterTaskDefinition or RunTask would refuse."""
    images: tuple[ImageFacts, ...] = ()
    roles: tuple[RoleFacts, ...] = ()
    denied: tuple[DeniedFacts, ...] = ()
    unavailable: tuple[UnavailableFacts, ...] = ()
    logs: tuple[LogFacts, ...] = ()
    disk_gib: int
    others: tuple[Finding, ...] = ()
    """Findings of ports, network and capacity."""
    warnings: tuple[Finding, ...] = ()
    hosts: tuple[HostRoom, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All findings. `hosts`: which could take the task, and what the others lack."""

    problems: tuple[Finding, ...]
    warnings: tuple[Finding, ...]
    aws: tuple[Finding, ...]
    hosts: tuple[HostRoom, ...]

    @property
    def is_fine(self) -> bool:
        return not self.problems


def report(facts: Facts) -> Report:
    """Everything that can be said, each thing once."""
    image_problems, image_warnings = image_findings(facts.images, facts.disk_gib * GIB)
    problems = [
        *(Finding(kind="Refused", subject="definition", text=t, fix=_FIX_REFUSED) for t in facts.refusals),
        *image_problems,
        *map(_unavailable, facts.unavailable),
        *role_problems(facts.roles),
        *map(_denied, facts.denied),
        *log_problems(facts.logs),
        *port_twice(facts.document),
        *facts.others,
    ]
    return Report(
        problems=_once(problems),
        warnings=_once([*image_warnings, *facts.warnings]),
        aws=_once(aws_refusals(facts)),
        hosts=facts.hosts,
    )


_FIX_REFUSED = "correct the task definition or the request"


def _once(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """In order, without what was said before of the same thing."""
    return tuple({(f.kind, f.subject, f.text): f for f in findings}.values())


def image_findings(images: Sequence[ImageFacts], disk_bytes: int) -> tuple[list[Finding], list[Finding]]:
    """(problems, warnings). An image must fit twice: unpacked on the task's disk, and compressed on the host's."""
    problems: list[Finding] = []
    warnings: list[Finding] = []
    to_pull: dict[str, int] = {}
    for image in images:
        subject = _containers(image.containers)
        evidence = {"image": image.reference, "host": image.host}
        if image.error_kind:
            problems.append(
                Finding(
                    kind=image.error_kind, subject=subject, text=image.error, fix=image.fix, evidence=evidence
                )
            )
            continue
        if image.is_stale:
            text = f"the registry of {image.reference} can't be reached; what was pulled before would be used"
            fix = "check the registry's address and the host's network"
            warnings.append(
                Finding(kind="RegistryUnreachable", subject=subject, text=text, fix=fix, evidence=evidence)
            )
        if not image.is_here:
            to_pull[image.host] = to_pull.get(image.host, 0) + image.size_bytes
        least = max(image.size_bytes, image.unpacked_bytes or 0)
        known = "unpacked" if image.unpacked_bytes is not None else "compressed"
        takes = f"{image.reference} has {format_bytes(least)} {known}, and the task's disk takes {format_bytes(disk_bytes)}"
        fix = "raise ephemeralStorage.sizeInGiB, or use a smaller image"
        if least > disk_bytes:
            problems.append(
                Finding(kind="ImageTooLarge", subject=subject, text=takes, fix=fix, evidence=evidence)
            )
        elif image.unpacked_bytes is None and LIKELY_EXPANSION * image.size_bytes > disk_bytes:
            text = f"{takes}: unpacked it may not fit"
            warnings.append(
                Finding(kind="ImageMayBeTooLarge", subject=subject, text=text, fix=fix, evidence=evidence)
            )
    free = {i.host: i.free_bytes for i in images if not i.error_kind}
    for host, needed in to_pull.items():
        if needed > free[host]:
            text = f"{format_bytes(needed)} are to be pulled, and host {host} can take {format_bytes(free[host])} of images"
            fix = "free space in the data directory of that host"
            problems.append(Finding(kind="HostDiskFull", subject=f"host {host}", text=text, fix=fix))
    return problems, warnings


def _containers(names: Sequence[str]) -> str:
    return f"container{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _taker(facts: UnavailableFacts | DeniedFacts) -> str:
    if facts.volume:
        return f"volume {facts.volume}"
    return _containers([facts.container]) if facts.container else "task"


def _unavailable(facts: UnavailableFacts) -> Finding:
    return Finding(
        kind=facts.kind,
        subject=_taker(facts),
        text=f"{facts.what}: {facts.text}" if facts.what else facts.text,
        fix=facts.fix,
    )


def role_problems(roles: Sequence[RoleFacts]) -> list[Finding]:
    """Roles that can't be assumed, and whose task would miss it."""
    return [_role(r) for r in roles if r.needed and not (r.exists and r.is_trusting)]


def _role(role: RoleFacts) -> Finding:
    why = "does not exist" if not role.exists else f"does not let {role_rules.TASKS_SERVICE} assume it"
    return Finding(
        kind="RoleNotFound" if not role.exists else "RoleNotTrusting",
        subject=role.member,
        text=f"the role {role.arn} {why}",
        fix=role_rules.fix_assume(role.arn, role.exists),
    )


def _denied(facts: DeniedFacts) -> Finding:
    verb = "denies" if facts.is_explicit else "does not allow"
    return Finding(
        kind="ExecutionRoleDenied",
        subject=_taker(facts),
        text=f"the execution role {verb} {facts.action} on {facts.resource}, which {facts.what_for} needs",
        fix=role_rules.fix_denied(facts.role_arn, facts.action, facts.resource, facts.is_explicit),
        evidence={"role": facts.role_arn, "action": facts.action, "resource": facts.resource},
    )


def log_problems(logs: Sequence[LogFacts]) -> list[Finding]:
    """Log groups that nobody makes. hutch would run the task and keep its output on the host only; AWS would not."""
    return [
        Finding(
            kind="LogGroupNotFound",
            subject=_containers([log.container]),
            text=f"log group {log.group} does not exist and awslogs-create-group is not set: nothing would be in CloudWatch "
            "Logs, and AWS would not start the task",
            fix=f"aws logs create-log-group --log-group-name {log.group}, or set awslogs-create-group to true",
        )
        for log in logs
        if not (log.group_exists or log.creates_group)
    ]


def port_twice(document: dict[str, Any]) -> list[Finding]:
    """Containers of a task share one network: a port can be listened on once."""
    if document.get("networkMode", "bridge") == "none":
        return []
    owner: dict[tuple[int, str], str] = {}
    found = []
    for container in document["containerDefinitions"]:
        for mapping in container.get("portMappings", []):
            key = (mapping["containerPort"], mapping.get("protocol", "tcp"))
            other = owner.setdefault(key, container["name"])
            if other != container["name"]:
                found.append(
                    Finding(
                        kind="PortTwice",
                        subject=_containers([other, container["name"]]),
                        text=f"both map port {key[0]}/{key[1]}, and the containers of a task share one network",
                        fix="let one of them listen on another port",
                    )
                )
    return found


def _needs_role(container: dict[str, Any]) -> bool:
    log = container.get("logConfiguration", {})
    return bool(
        container.get("secrets") or container.get("repositoryCredentials") or log.get("secretOptions")
    )


def aws_refusals(facts: Facts) -> list[Finding]:
    """What hutch takes, and AWS refuses when the definition is registered or the task is run."""
    document = facts.document
    texts = []
    if facts.launch_type == "FARGATE":
        texts += [p.message for p in fargate_refusals(document)[1]]
    elif not document.get("executionRoleArn") and any(map(_needs_role, document["containerDefinitions"])):
        texts.append(
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'."
        )
    found = [Finding(kind="AwsRefuses", subject="definition", text=t) for t in texts]
    for role in facts.roles:
        if not role.needed and not (role.exists and role.is_trusting):
            finding = _role(role)
            found.append(Finding(kind="AwsRefuses", subject=role.member, text=finding.text, fix=finding.fix))
    return found
