"""hutch's own API, for what AWS has no words for: signed like the rest, JSON in and out, under /hutch/v1."""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import msgspec

from hutch.api.gateway.operation import Principal


class NativeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose signature and body have been verified."""

    params: dict[str, str]
    """What the path template's `{name}` parts stand for."""
    query: dict[str, str]
    body: Any
    """The decoded JSON body; None where there is none, or where the route takes a file."""
    file_path: str
    """The uploaded file, for a route that takes one; removed after the handler, unless that moved it."""
    principal: Principal
    request_id: str


class NativeRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route. `template`: `/hutch/v1/images/{name}`; the last part may hold slashes (`{name*}`)."""

    method: str
    template: str
    handler: Callable[[NativeRequest], Awaitable[dict[str, Any]]]
    max_body_bytes: int = 1024 * 1024
    takes_file: bool = False

    @property
    def action(self) -> str:
        """What policies call it, behind `hutch:`; the handler's name in camel case (`ListImages`)."""
        name: str = getattr(self.handler, "__name__", "")
        return "".join(word.capitalize() for word in name.split("_"))


def match_route(
    routes: tuple[NativeRoute, ...], method: str, raw_path: str
) -> tuple[NativeRoute, dict[str, str]] | None:
    """The route of a request and its parameters, decoded. `raw_path` is as sent: `%2F` separates nothing."""
    parts = raw_path.strip("/").split("/")
    for route in routes:
        wanted = route.template.strip("/").split("/")
        if route.method != method:
            continue
        if wanted[-1].endswith("*}") and len(parts) >= len(wanted):
            given = [*parts[: len(wanted) - 1], "/".join(parts[len(wanted) - 1 :])]
        elif len(wanted) == len(parts):
            given = parts
        else:
            continue
        pairs = list(zip(wanted, given, strict=True))
        if all(w == g for w, g in pairs if not w.startswith("{")) and all(g for _, g in pairs):
            return route, {w.strip("{}*"): unquote(g) for w, g in pairs if w.startswith("{")}
    return None
