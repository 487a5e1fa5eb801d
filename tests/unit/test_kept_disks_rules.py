"""Which disks of stopped tasks have to go."""

from hypothesis import given
from hypothesis import strategies as st

from hutch.rules.kept_disks import MAX_DISKS, KeptDiskView, disks_to_drop

HOUR = 3600.0


def _disk(name: str, at: float, size: int, *, failed: bool = True, is_open: bool = False) -> KeptDiskView:
    return KeptDiskView(task_id=name, kept_at=at, bytes=size, is_failure=failed, is_open=is_open)


def _dropped(*disks: KeptDiskView, limit: int = 100, now: float = 10.0) -> list[str]:
    return [d.task_id for d in disks_to_drop(disks, limit_bytes=limit, life_s=HOUR, now=now)]


def test_those_that_did_not_fail_go_first_then_the_oldest() -> None:
    old, new = _disk("old", 1, 40), _disk("new", 2, 40)
    assert _dropped(old, new) == []
    assert _dropped(old, new, _disk("clean", 3, 40, failed=False)) == ["clean"]
    assert _dropped(old, new, _disk("newest", 3, 40)) == ["old"]
    assert _dropped(old, new, _disk("newest", 3, 90)) == ["old", "new"]


def test_age_goes_before_size_and_an_open_one_stays() -> None:
    old = _disk("old", 1, 90)
    assert _dropped(old, _disk("new", 2, 90), now=HOUR + 1) == ["old"]
    assert _dropped(_disk("old", 1, 90, is_open=True), _disk("new", 2, 90), now=HOUR + 1) == ["new"]
    assert _dropped(_disk("old", 1, 900, is_open=True), now=2 * HOUR) == []


def test_their_number_is_bounded() -> None:
    many = [_disk(f"{n:04d}", n, 0) for n in range(MAX_DISKS + 2)]
    assert _dropped(*many, now=300.0) == ["0000", "0001"]


DISKS = st.lists(
    st.builds(
        KeptDiskView,
        task_id=st.text("abcdef", min_size=1, max_size=4),
        kept_at=st.floats(0, 2 * HOUR),
        bytes=st.integers(0, 60),
        is_failure=st.booleans(),
        is_open=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda d: d.task_id,
)


@given(DISKS)
def test_what_stays_fits_or_is_open(disks: list[KeptDiskView]) -> None:
    now = 2 * HOUR
    gone = {d.task_id for d in disks_to_drop(disks, limit_bytes=100, life_s=HOUR, now=now)}
    assert not any(d.is_open for d in disks if d.task_id in gone)
    left = [d for d in disks if d.task_id not in gone]
    closed = [d for d in left if not d.is_open]
    assert sum(d.bytes for d in left) <= 100 or not closed
    assert all(now - d.kept_at < HOUR for d in closed)
