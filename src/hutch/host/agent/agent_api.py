"""What a task finds at `ECS_AGENT_URI`, in the form of ECS's own agent: its protection, and faults to be injected.

A task that no service started can't be protected, which is said as ECS says it; faults are not injected.
"""

from typing import Any

import msgspec

from hutch.host.agent.metadata import TaskView

PROTECTION_PATH = "task-protection/v1/state"
FAULT_PREFIX = "fault/v1/"
MAX_BODY_BYTES = 4096
LONGEST_PROTECTION_MIN = 2880


class _Wanted(msgspec.Struct, rename="pascal"):
    protection_enabled: bool
    expires_in_minutes: int | None = None


def answer(view: TaskView, method: str, what: str, body: bytes) -> tuple[int, dict[str, Any]] | None:
    """HTTP status and document for a path below `ECS_AGENT_URI`; None: there is nothing."""
    if what == PROTECTION_PATH and method in ("GET", "PUT"):
        if method == "PUT" and (wrong := _wrong(body)):
            error = {"Arn": view.spec.arn, "Code": "InvalidParameterException", "Message": wrong}
            return 400, {"error": error}
        detail = "The specified task is not part of an Amazon ECS service."
        return 200, {"failure": {"Arn": view.spec.arn, "Reason": "TASK_NOT_VALID", "Detail": detail}}
    if what.startswith(FAULT_PREFIX) and method == "POST":
        return 400, {"Error": "hutch injects no faults: enableFaultInjection is shown and has no effect"}
    return None


def _wrong(body: bytes) -> str:
    """What is wrong with a request for protection; "" if nothing is."""
    try:
        wanted = msgspec.json.decode(body, type=_Wanted)
    except msgspec.ValidationError as error:
        return f"Invalid request: {error}"
    except msgspec.DecodeError:
        return "Invalid request: the body is not JSON"
    minutes = wanted.expires_in_minutes
    if minutes is not None and not 1 <= minutes <= LONGEST_PROTECTION_MIN:
        return f"Invalid request: expiration duration must be greater than zero minutes and at most {LONGEST_PROTECTION_MIN}"
    return ""
