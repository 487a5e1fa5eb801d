"""A task whose image is in a registry that wants a login, and whose container has a secret: all of it real."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Platform
from tests.support.registry import PASSWORD, USER, Image, LocalRegistry, directory, layer, member, symlink

pytestmark = pytest.mark.needs("root", "qemu", "runc", "haproxy", "nft", "guest_image", "skopeo", "registry")
APPLETS = ("sh", "sleep", "test", "sha256sum", "cut", "echo")


@pytest.fixture(scope="module")
def platform(vm_platform: Platform) -> Platform:
    return vm_platform


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    registry = LocalRegistry(tmp_path_factory.mktemp("registry"), login=True)
    busybox = Path(shutil.which("busybox") or "").read_bytes()
    members = [directory("bin"), member("bin/busybox", busybox)]
    members += [symlink(f"bin/{a}", "busybox") for a in APPLETS]
    yield registry.push("team/app", Image(layer(members), docker=True))
    registry.stop()


def register(ecs: Any, image: str, credentials: str, **container: Any) -> str:
    given = {
        "name": "main",
        "image": image,
        "repositoryCredentials": {"credentialsParameter": credentials},
        **container,
    }
    answer = ecs.register_task_definition(
        family="private",
        containerDefinitions=[given],
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
    )
    return str(answer["taskDefinition"]["taskDefinitionArn"])


def test_it_is_pulled_and_run_and_nothing_secret_is_on_the_disk(platform: Platform, reference: str) -> None:
    ecs, secrets = platform.client("ecs"), platform.client("secretsmanager")
    value = f"in-the-clear-{uuid.uuid4().hex}"
    login = json.dumps({"username": USER, "password": PASSWORD})
    good = secrets.create_secret(Name="registry/good", SecretString=login)["ARN"]
    bad = secrets.create_secret(Name="registry/bad", SecretString=login.replace(PASSWORD, "wrong"))["ARN"]
    inside = secrets.create_secret(Name="app/inside", SecretString=value)["ARN"]
    digest = hashlib.sha256(value.encode()).hexdigest()
    check = f"""trap 'exit 143' TERM; test $(echo -n "$SECRET" | sha256sum | cut -c1-64) = {digest} || exit 9; sleep 1000 & wait"""
    container = {
        "command": ["/bin/sh", "-c", check],
        "secrets": [{"name": "SECRET", "valueFrom": inside}],
    }
    refused, running = (
        ecs.run_task(taskDefinition=register(ecs, reference, c, **container), launchType="FARGATE")["tasks"][
            0
        ]
        for c in (bad, good)
    )
    platform.until("STOPPED", refused["taskArn"])
    task = ecs.describe_tasks(tasks=[refused["taskArn"]])["tasks"][0]
    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("CannotPullContainerError: ")
    assert "access denied" in task["stoppedReason"]
    platform.until("RUNNING", running["taskArn"])
    for word in (value, PASSWORD):
        assert files_with(platform, word) == []
    ecs.stop_task(task=running["taskArn"])
    platform.until("STOPPED", running["taskArn"])
    task = ecs.describe_tasks(tasks=[running["taskArn"]])["tasks"][0]
    assert task["stopCode"] == "UserInitiated" and task["containers"][0]["exitCode"] == 143, task


def files_with(platform: Platform, word: str) -> list[Path]:
    found = []
    for root in (platform.data_dir, Path(platform.environment["HUTCH_RUN_DIR"])):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink() and _holds(path, word.encode()):
                found.append(path)
    return found


def _holds(path: Path, word: bytes) -> bool:
    """Also of large files, in pieces that overlap; holes are skipped."""
    with path.open("rb", buffering=0) as f:
        at = 0
        while True:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                return False
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            while at < end:
                piece = os.pread(f.fileno(), min(1 << 22, end - at), at)
                if word in piece:
                    return True
                # Overlapping, but for the last piece of a stretch.
                at += len(piece) - (len(word) if len(piece) > len(word) and at + len(piece) < end else 0)
                if not piece:
                    return False
