"""What `hutch up` looks at before it starts anything, so that a mistake is told to who made it."""

import os
from pathlib import Path

import pytest

from hutch.apps import up
from hutch.base.errors import Invalid
from hutch.settings import load_settings


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Invalid, match="run it as root"):
        up.look_at_surroundings(load_settings({}, {}))
    up.look_at_surroundings(load_settings({"drivers": "fake"}, {}))


def test_registry_logins_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    there, missing = tmp_path / "auth.json", tmp_path / "missing.json"
    there.write_text("{}")
    up.look_at_surroundings(load_settings({"registry_auth_file": str(there)}, {}))
    with pytest.raises(Invalid, match=r"--registry-auth-file: .*missing\.json can't be read: No such file"):
        up.look_at_surroundings(load_settings({"registry_auth_file": str(missing)}, {}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("drivers", "microvm,kvm"), ("drivers", ","), ("vpc_cidr", "here"), ("vpc_cidr", "10.1.2.3/8")],
)
def test_settings_that_mean_nothing_are_refused(name: str, value: str) -> None:
    with pytest.raises(Invalid, match="must be"):
        load_settings({name: value}, {})
