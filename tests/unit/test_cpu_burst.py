"""A hard cap of CPU is asked for by a tag, of the task or of its definition, and goes where the limits are set."""

import pytest
from tests.support.driver_harness import _task

from hutch.base.errors import Invalid
from hutch.host.drivers.container.plan import task_limits
from hutch.rules.cpu_burst import cpu_capped

OFF, ON = {"hutch:cpuBurst": "off"}, {"hutch:cpuBurst": "on"}


def test_the_tasks_tag_comes_before_its_definitions() -> None:
    assert not cpu_capped({}, {}, 256)
    assert cpu_capped(OFF, {}, 256) and cpu_capped({}, OFF, 256) and cpu_capped(OFF, ON, 256)
    assert not cpu_capped(ON, OFF, 256)


def test_what_means_nothing_is_refused() -> None:
    for bad in ("", "false", "OFF", "0"):
        with pytest.raises(Invalid, match="neither on nor off"):
            cpu_capped({"hutch:cpuBurst": bad}, {}, 256)
    with pytest.raises(Invalid, match="give the task or its containers"):
        cpu_capped(OFF, {}, 0)
    assert not cpu_capped({}, {}, 0)


@pytest.mark.parametrize(
    ("asked", "of_all", "units", "cap"),
    [
        (False, False, 512, 0),
        (True, False, 512, 512),
        (False, True, 512, 512),
        (True, True, 512, 512),
        (False, True, 0, 0),
    ],
)
def test_containers_are_capped_by_their_task(asked: bool, of_all: bool, units: int, cap: int) -> None:
    import msgspec

    task = msgspec.structs.replace(_task("t", ()), cpu_capped=asked, cpu_units=units)
    assert task_limits(task, cap_cpu=of_all).cpu_cap_units == cap
