"""User ids of jails: no two names share one, and a name finds its own again after a crash."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch.base.errors import StorageFull
from hutch.host.kernel.users import UserLeases


def test_names_get_different_users_and_keep_them(tmp_path: Path) -> None:
    leases = UserLeases(1000, 1002, tmp_path / "leases")
    held = {name: leases.lease(name) for name in ("a", "b", "c")}
    assert sorted(held.values()) == [1000, 1001, 1002]
    again = UserLeases(1000, 1002, tmp_path / "leases")
    assert {name: again.lease(name) for name in held} == held
    with pytest.raises(StorageFull, match="1000 to 1002"):
        leases.lease("d")
    again.release("b")
    again.release("b")
    assert leases.lease("d") == held["b"]


def test_many_at_once_never_share(tmp_path: Path) -> None:
    names = [f"vm-{n}" for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        users = list(pool.map(lambda n: UserLeases(5000, 5063, tmp_path).lease(n), names))
    assert len(set(users)) == len(names)
