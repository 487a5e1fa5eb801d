"""An image that can build images: the host's busybox, buildah and crun, with the libraries that they load."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.support.archives import make_archive
from tests.support.busybox_image import make_busybox_directory

NAME = "localhost/builder:latest"
PROGRAMS = ("/usr/bin/buildah", "/usr/bin/crun")
STORAGE = (
    '[storage]\ndriver = "overlay"\nrunroot = "/run/containers"\ngraphroot = "/var/lib/containers/storage"\n'
)
POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}\n'


def make_builder_archive(directory: Path) -> Path:
    """The archive's path."""
    root = Path(make_busybox_directory(directory, name="builder").directory)
    for file in (*PROGRAMS, *libraries(PROGRAMS)):
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(file).resolve(), target)
    for place, text in (("policy.json", POLICY), ("registries.conf", ""), ("storage.conf", STORAGE)):
        (root / "etc/containers").mkdir(exist_ok=True)
        (root / "etc/containers" / place).write_text(text)
    (root / "var/tmp").mkdir(parents=True)
    return make_archive(root, directory / "builder.tar", NAME)


def libraries(programs: Iterable[str]) -> list[str]:
    """All that the dynamic loader loads for them, itself included."""
    found = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        found |= {w for line in listed.splitlines() for w in line.split() if w.startswith("/")}
    return sorted(found)
