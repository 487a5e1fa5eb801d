"""Matching of hutch's own routes."""

import pytest

from hutch.api.gateway.native import NativeRequest, NativeRoute, match_route


async def nothing(request: NativeRequest) -> dict:
    return {}


ROUTES = tuple(
    NativeRoute(method=method, template=f"/hutch/v1/{path}", handler=nothing)
    for method, path in (("GET", "images"), ("GET", "images/{name*}"), ("PUT", "tasks/{id}/why"))
)


@pytest.mark.parametrize(
    ("method", "path", "template", "params"),
    [
        ("GET", "/hutch/v1/images", "images", {}),
        ("GET", "/hutch/v1/images/", "images", {}),
        ("GET", "/hutch/v1/images/a", "images/{name*}", {"name": "a"}),
        ("GET", "/hutch/v1/images/a/b%20c%3Ad", "images/{name*}", {"name": "a/b c:d"}),
        ("PUT", "/hutch/v1/tasks/a%2Fb/why", "tasks/{id}/why", {"id": "a/b"}),
        ("PUT", "/hutch/v1/tasks//why", None, {}),
        ("PUT", "/hutch/v1/tasks/a/b/why", None, {}),
        ("POST", "/hutch/v1/images", None, {}),
        ("GET", "/hutch/v2/images", None, {}),
    ],
)
def test_match(method: str, path: str, template: str | None, params: dict) -> None:
    found = match_route(ROUTES, method, path)
    if template is None:
        assert found is None
    else:
        assert found is not None
        assert (found[0].template, found[1]) == (f"/hutch/v1/{template}", params)
