"""The rooms and who may know whom: the table of docs/design/architecture.md, enforced. Type-only imports count."""

import ast
from pathlib import Path

import msgspec
import pytest

from hutch.settings import SETTINGS, Settings

SRC = Path(__file__).resolve().parents[2] / "src" / "hutch"
PURE = {"asyncio", "socket", "subprocess", "sqlite3", "time", "random", "os", "threading", "uuid", "secrets"}

MAY_IMPORT = {
    "base": set(),
    "settings": {"base"},
    "model": {"base"},
    "rules": {"base", "model"},
    "wire": {"base", "model"},
    "store": {"base", "model"},
    "control": {"base", "model", "rules", "wire", "store"},
    "api": {"base", "model", "rules", "store", "control"},
    "host": {"base", "model", "rules", "wire"},
    "client": {"base", "model", "wire"},
    "cli": {"base", "settings", "client"},
    "apps": {"base", "settings", "model", "rules", "wire", "store", "control", "api", "host", "client"},
}
# The lock file is a file, not a database: the supervisor shares it with the store.
READS_ENVIRONMENT = {"settings.py", "apps/paths.py", "cli/platform.py"}


def files() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room(name: str) -> str:
    return name.split(".")[1] if name.startswith("hutch.") else ""


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SRC)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    relative = path.relative_to(SRC)
    here = relative.parts[0].removesuffix(".py")
    if here == "__init__":
        return
    rooms = {room(i) for i in imports(path)} - {"", here, "__version__"}
    assert rooms <= MAY_IMPORT[here], f"{relative} imports {sorted(rooms - MAY_IMPORT[here])}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(SRC)))
def test_the_kernel_is_touched_in_one_place(path: Path) -> None:
    relative = str(path.relative_to(SRC))
    names = imports(path)
    if not relative.startswith("host/kernel/"):
        allowed = {"fcntl"} if relative == "store/lockfile.py" else set()
        if relative.startswith("host/network/"):
            # Says what is to be done on a netlink socket that the kernel room opens.
            allowed = {"pyroute2"}
        assert not ({"subprocess", "ctypes", "fcntl", "pyroute2"} & names) - allowed
    if relative.split("/")[0] in ("model", "rules"):
        assert not PURE & names, f"{relative} must be pure"


def test_service_folders_do_not_know_one_another() -> None:
    for path in (SRC / "api/aws").rglob("*.py"):
        service = path.relative_to(SRC / "api/aws").parts[0]
        others = {i.split(".")[3] for i in imports(path) if i.startswith("hutch.api.aws.")} - {service}
        assert not others, f"{path} imports {others}"


def test_only_the_settings_read_the_environment() -> None:
    for path in files():
        if "os.environ" in path.read_text():
            assert str(path.relative_to(SRC)) in READS_ENVIRONMENT, path


def test_no_file_is_a_drawer() -> None:
    for path in files():
        assert len(path.read_text().splitlines()) <= 800, path


def test_the_typed_settings_are_the_declared_ones() -> None:
    declared = [(s.name, s.type, s.default) for s in SETTINGS]
    typed = [(f.name, f.type, f.default) for f in msgspec.structs.fields(Settings)]
    assert declared == typed
    source = ast.parse((SRC / "settings.py").read_text())
    classes = [n for n in ast.walk(source) if isinstance(n, ast.ClassDef) and n.name == "Settings"]
    annotated = {
        s.target.id
        for s in classes[0].body
        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    }
    assert annotated == {s.name for s in SETTINGS}
