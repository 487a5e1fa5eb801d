"""The warm pool's one decision: how many spares of which size."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from hutch.host.drivers.microvm.templates import TemplateKey
from hutch.host.drivers.microvm.warm import WarmLimits, WarmSize, wanted_spares


def size(memory_mib: int, cpu_units: int = 256) -> WarmSize:
    key = TemplateKey(
        origin="o", machine="m", accelerator="tcg", vcpus=1, memory_mib=memory_mib, disk_slots=4
    )
    return WarmSize(key=key, cpu_units=cpu_units, disk_bytes=1 << 30)


SMALL, LARGE = size(512), size(2048)


def test_spares_follow_demand() -> None:
    limits = WarmLimits(count=3, memory_mib=8192)
    assert wanted_spares([SMALL] * 9 + [LARGE], limits) == Counter({SMALL: 3})
    assert wanted_spares([SMALL] * 3 + [LARGE] * 2, limits) == Counter({SMALL: 2, LARGE: 1})


def test_no_more_than_were_launched_and_none_without_demand() -> None:
    limits = WarmLimits(count=5, memory_mib=8192)
    assert wanted_spares([SMALL], limits) == Counter({SMALL: 1})
    assert wanted_spares([], limits) == Counter()
    assert wanted_spares([SMALL], WarmLimits(count=0, memory_mib=8192)) == Counter()


def test_a_size_that_does_not_fit_gives_way_to_one_that_does() -> None:
    limits = WarmLimits(count=4, memory_mib=1024)
    assert wanted_spares([LARGE] * 5 + [SMALL] * 3, limits) == Counter({SMALL: 2})


@given(
    st.lists(st.sampled_from([size(m, c) for m in (256, 512, 1024) for c in (256, 512)]), max_size=30),
    st.integers(0, 6),
    st.integers(0, 4096),
)
def test_limits_hold_and_nothing_that_fits_is_left_out(
    launched: list[WarmSize], count: int, memory: int
) -> None:
    wanted = wanted_spares(launched, WarmLimits(count=count, memory_mib=memory))
    used = sum(s.key.memory_mib * n for s, n in wanted.items())
    assert wanted.total() <= count
    assert used <= memory
    launches = Counter(launched)
    assert wanted <= launches
    if wanted.total() < count:
        assert all(s.key.memory_mib > memory - used for s in launches - wanted)
