"""Each service's table of permissions names operations that there are; templates name members that they have."""

from pathlib import Path
from typing import Any

import pytest
from tests.api.support.aws import AwsServer

from hutch.api.gateway.access import on
from hutch.api.gateway.operation import Principal, Request
from hutch.api.gateway.service_model import load_model
from hutch.model.iam import ROOT, Caller


def test_rules_are_for_operations_that_there_are(tmp_path: Path) -> None:
    server = AwsServer(tmp_path)
    try:
        for service in server.services:
            unknown = set(service.access) - set(load_model(service.name).operation_names)
            assert not unknown, f"{service.name}: {unknown}"
    finally:
        server.stop()


def request(**given: Any) -> Request:
    caller = Caller(kind=ROOT, arn="a", user_id="u", access_key_id="k")
    principal = Principal(arn="a", account_id="1", user_id="u", access_key_id="k", caller=caller)
    return Request(
        service="ecs",
        operation="X",
        input=given,
        principal=principal,
        request_id="r",
        region="r1",
        account_id="1",
    )


@pytest.mark.parametrize(
    ("template", "given", "resources"),
    [
        ("*", {}, ("*",)),
        ("cluster/{cluster=default}", {}, ("arn:aws:ecs:r1:1:cluster/default",)),
        ("cluster/{cluster=default}", {"cluster": ""}, ("arn:aws:ecs:r1:1:cluster/default",)),
        ("cluster/{c}", {"c": "arn:aws:ecs:r2:2:cluster/x"}, ("arn:aws:ecs:r1:1:cluster/x",)),
        ("task/{c=d}/{t}", {"t": ["1", "a/2"]}, ("arn:aws:ecs:r1:1:task/d/1", "arn:aws:ecs:r1:1:task/d/2")),
        ("task/{c=d}/{t}", {"t": []}, ("arn:aws:ecs:r1:1:task/d/*",)),
        ("set/{s}/*", {"s": "x"}, ("arn:aws:ecs:r1:1:set/x/*",)),
    ],
)
def test_templates(template: str, given: dict[str, Any], resources: tuple[str, ...]) -> None:
    (access,) = on(template)(request(**given))
    assert access.resources == resources


def test_condition_keys_come_from_members_that_are_given() -> None:
    rule = on("*", ecs__cluster="cluster/{cluster=default}", ecs__task_definition="task-definition/{td}")
    (access,) = rule(request())
    assert access.context == {"ecs:cluster": ("arn:aws:ecs:r1:1:cluster/default",)}
    (access,) = rule(request(td="web:1"))
    assert access.context["ecs:task-definition"] == ("arn:aws:ecs:r1:1:task-definition/web:1",)
