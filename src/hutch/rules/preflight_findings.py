"""One thing that a pre-flight check has to say."""

from typing import Any

import msgspec


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` is a stable word for tools, where it can be that of the stop cause that it foresees; `subject` says what it is
    about ("container web", "executionRoleArn", "capacity")."""

    kind: str
    subject: str
    text: str
    fix: str = ""
    evidence: dict[str, Any] = {}
