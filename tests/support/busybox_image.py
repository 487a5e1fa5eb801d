"""A root disk with nothing but a static busybox: what tests of real VMs run."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hutch.host.drivers.contract import RootImage

APPLETS = (
    "sh", "cat", "echo", "sleep", "id", "ls", "true", "false", "kill", "mkdir", "touch", "hostname", "ip", "mount",
    "yes", "head", "dd", "env", "stat", "grep", "ps", "test", "wc", "seq", "date", "mknod", "ping", "tail", "df", "rm",
    "nc", "chmod", "mv", "su", "timeout", "unshare", "od", "tr", "cut", "cmp", "cp", "sync", "usleep",
)  # fmt: skip


PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"


def make_busybox_directory(directory: Path, *, name: str = "busybox", **config: object) -> RootImage:
    """The same as an unpacked root: `<directory>/<name>.root`."""
    return RootImage(
        reference=f"{name}:test",
        digest=f"sha256:{name}",
        config=dict(config),
        directory=str(_make_tree(directory, name)),
        passwd=PASSWD,
        group=GROUP,
    )


def make_busybox_image(
    directory: Path, *, name: str = "busybox", files: Sequence[Path] = (), **config: object
) -> RootImage:
    """Builds `<directory>/<name>.erofs`, with some files of the host; `config` is the image configuration (Entrypoint,
    Cmd, Env, User...)."""
    tree = _make_tree(directory, name)
    for file in files:
        target = tree / str(file).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.resolve(), target)
    path = directory / f"{name}.erofs"
    subprocess.run(["mkfs.erofs", str(path), str(tree)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return RootImage(
        reference=f"{name}:test",
        digest=f"sha256:{name}",
        config=dict(config),
        erofs_path=str(path),
        passwd=PASSWD,
        group=GROUP,
    )


def _make_tree(directory: Path, name: str) -> Path:
    tree = directory / f"{name}.root"
    for part in ("bin", "usr/bin", "etc", "tmp", "dev", "proc", "sys", "home/app"):
        (tree / part).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    for applet in APPLETS:
        (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/passwd").write_text(PASSWD)
    (tree / "etc/group").write_text(GROUP)
    (tree / "tmp").chmod(0o1777)
    return tree
