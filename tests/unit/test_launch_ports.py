"""Port mappings of launch types EC2 and EXTERNAL become published ports."""

from typing import Any

import pytest

from hutch.base.errors import NotServed
from hutch.control.ops.launch import LaunchRequest, Route, published_ports

EC2 = Route(launch_type="EC2")


def document(*mappings: list[dict[str, Any]], mode: str = "bridge") -> dict[str, Any]:
    containers = [{"name": f"c{i}", "portMappings": m} for i, m in enumerate(mappings)]
    return {"networkMode": mode, "containerDefinitions": containers}


def test_bridge_publishes_what_is_mapped() -> None:
    given = document([{"containerPort": 80}], [{"containerPort": 81, "hostPort": 8081}])
    assert published_ports(LaunchRequest(), EC2, given) == ((0, 80), (8081, 81))


def test_a_tag_comes_before_a_dynamic_mapping() -> None:
    given = document([{"containerPort": 80}])
    request = LaunchRequest(tags={"hutch:publish": "8080:80"})
    assert published_ports(request, EC2, given) == ((8080, 80),)


@pytest.mark.parametrize("mode", ["awsvpc", "host", "none"])
def test_other_modes_publish_nothing_by_themselves(mode: str) -> None:
    assert published_ports(LaunchRequest(), EC2, document([{"containerPort": 80}], mode=mode)) == ()


def test_what_the_ingress_cannot_do_is_refused() -> None:
    with pytest.raises(NotServed, match="TCP only"):
        published_ports(LaunchRequest(), EC2, document([{"containerPort": 53, "protocol": "udp"}]))
    with pytest.raises(NotServed, match="share one network namespace"):
        published_ports(LaunchRequest(), EC2, document([{"containerPort": 80}], [{"containerPort": 80}]))
