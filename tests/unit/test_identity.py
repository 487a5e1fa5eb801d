"""The root key: made once, written where only its owner can read it, written again if the file is lost."""

from pathlib import Path

import msgspec
import pytest

from hutch.base.clock import ManualClock
from hutch.base.errors import StorageFull
from hutch.base.ids import SeededIds
from hutch.control.identity import Credentials, Identity, secret_of
from hutch.control.vault import Vault
from hutch.store.memory import MemoryStore
from hutch.store.tables import ACCESS_KEYS

VAULT = Vault({1: bytes(32)}, SeededIds(9))


async def test_the_root_key(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.open()
    file = tmp_path / "credentials.json"
    assert await Identity(
        store, ManualClock(), SeededIds(1), VAULT, account_id="000000000000"
    ).ensure_root_key(file)
    first = file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    given = msgspec.json.decode(first, type=Credentials)
    with store.read() as reader:
        key = reader.get(ACCESS_KEYS, given.access_key_id)
    assert key is not None and secret_of(VAULT, key) == given.secret_access_key
    assert key.principal_arn == "arn:aws:iam::000000000000:root"

    again = Identity(store, ManualClock(), SeededIds(2), VAULT, account_id="000000000000")
    file.unlink()
    assert not await again.ensure_root_key(file)
    assert file.read_bytes() == first and file.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["credentials.json"]


async def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    store = MemoryStore()
    await store.open()
    identity = Identity(store, ManualClock(), SeededIds(1), VAULT, account_id="000000000000")
    with pytest.raises(StorageFull, match="absent"):
        await identity.ensure_root_key(tmp_path / "absent" / "credentials.json")
