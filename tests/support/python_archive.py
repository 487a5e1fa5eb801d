"""A docker archive with this machine's Python and boto3 as they are, for tests of unmodified SDK programs in tasks."""

import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import boto3
from tests.support.archives import make_archive

NAME = "localhost/python:latest"
PACKAGES = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six.py")
PACKAGES_PATH = "/srv/packages"
SERVICES = ("ecs", "secretsmanager", "sts")
_UNUSED = (
    "test",
    "idlelib",
    "tkinter",
    "lib2to3",
    "pydoc_data",
    "ensurepip",
    "distutils",
    "unittest",
    "turtledemo",
)
_LIBRARY = re.compile(r"(/\S+) \(0x")


def make_python_archive(directory: Path) -> Path:
    """The archive's path; only the service models of `SERVICES` are in it. About 2 s."""
    root = directory / "python.root"
    interpreter = Path(sys.executable).resolve()
    stdlib = Path(sysconfig.get_path("stdlib"))
    skip = shutil.ignore_patterns(*_UNUSED, "config-*", "dist-packages", "site-packages")
    shutil.copytree(stdlib, root / str(stdlib).lstrip("/"), ignore=skip, symlinks=True)
    packages = root / PACKAGES_PATH.lstrip("/")
    packages.mkdir(parents=True)
    source = Path(boto3.__file__).parents[1]
    for name in PACKAGES:
        if (source / name).is_dir():
            shutil.copytree(source / name, packages / name, ignore=_unused_models)
        else:
            shutil.copy2(source / name, packages / name)
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy2(interpreter, root / "usr/bin/python3")
    for library in _libraries([interpreter, *(stdlib / "lib-dynload").glob("*.so")]):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(Path(library).resolve(), target)
    for part in ("tmp", "dev", "proc", "sys", "etc"):
        (root / part).mkdir(exist_ok=True)
    archive = make_archive(
        root,
        directory / "python.tar",
        NAME,
        Entrypoint=["/usr/bin/python3"],
        Env=[f"PYTHONPATH={PACKAGES_PATH}", "PATH=/usr/bin"],
    )
    shutil.rmtree(root)
    return archive


def _unused_models(directory: str, names: list[str]) -> set[str]:
    if not directory.endswith("botocore/data"):
        return set()
    return {n for n in names if (Path(directory) / n).is_dir() and n not in SERVICES}


def _libraries(files: list[Path]) -> set[str]:
    """What the dynamic loader would load for them, itself included."""
    done = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=True)
    return set(_LIBRARY.findall(done.stdout))
