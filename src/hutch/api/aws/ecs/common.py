"""What the ECS handlers share: ARNs, causes, tags, pages."""

from typing import Any

from hutch.api.gateway.paging import Paging
from hutch.base.errors import Invalid


class Arns:
    """ECS ARNs of this platform."""

    def __init__(self, region: str, account_id: str) -> None:
        self.prefix = f"arn:aws:ecs:{region}:{account_id}"

    def of(self, kind: str, name: str) -> str:
        return f"{self.prefix}:{kind}/{name}"


def tag_list(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": k, "value": v} for k, v in tags.items()]


def without_none(shape: dict[str, Any]) -> dict[str, Any]:
    """Members that have no value are left out, as AWS does."""
    return {k: v for k, v in shape.items() if v is not None}


def page_size(given: dict[str, Any], largest: int = 100) -> int:
    """`maxResults`, checked."""
    limit: int = given.get("maxResults", largest)
    if not 1 <= limit <= largest:
        raise Invalid(f"maxResults must be between 1 and {largest}.")
    return limit


def page_of(
    paging: Paging, scope: str, names: list[str], given: dict[str, Any], largest: int
) -> tuple[list[str], dict[str, str]]:
    """A page of names in order, by `nextToken` and `maxResults`, and the answer's `nextToken` if there are more."""
    start = page_start(paging, scope, given)
    left = sorted(n for n in names if start is None or n > start[0])
    page = left[: page_size(given, largest)]
    more = len(left) > len(page)
    return page, {"nextToken": paging.encode_token(scope, (page[-1],))} if more else {}


def page_start(paging: Paging, scope: str, given: dict[str, Any]) -> tuple[str, ...] | None:
    """Where `nextToken` says to go on."""
    token = given.get("nextToken")
    return paging.decode_token(scope, token) if token else None
