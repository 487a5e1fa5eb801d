"""The hutch command, on a platform whose driver only pretends: what it prints, its JSON, its exit codes."""

import configparser
import hashlib
import io
import json
import os
import subprocess
import tarfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import BIN, Platform, running

pytestmark = pytest.mark.needs("root")


def document(platform: Platform, *arguments: str) -> Any:
    """What a command prints with --json: one document and nothing else."""
    return json.loads(platform.hutch(*arguments, "--json").stdout)


def failure(platform: Platform, *arguments: str) -> tuple[int, str]:
    """Exit code and the one line of cause; nothing is on standard output."""
    done = platform.hutch(*arguments, check=False)
    assert done.returncode != 0 and done.stdout == "" and "Traceback" not in done.stderr
    if done.returncode != 2:
        assert done.stderr.startswith("hutch: ") and done.stderr.count("\n") == 1
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def fake_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its own: all its tasks and images are counted."""
    with running(tmp_path_factory.mktemp("cli"), drivers="fake") as platform:
        yield platform


@pytest.fixture(scope="module")
def task_id(fake_platform: Platform) -> str:
    """A task that runs, with a published port."""
    ran = document(fake_platform, "run", "x", "--name", "web", "-p", "80", "-e", "HUTCH_FAKE_LOG=hello there")
    assert ran["last_status"] == "RUNNING" and ran["endpoints"][0].startswith("http://web.localhost:3")
    return str(ran["task_id"])


def test_a_task_is_listed_shown_and_stopped(fake_platform: Platform, task_id: str) -> None:
    (listed,) = document(fake_platform, "ps")
    assert listed["taskArn"].endswith(task_id) and listed["lastStatus"] == "RUNNING"
    table = fake_platform.hutch("ps").stdout
    assert len(table.splitlines()) == 2, "a row is a line, however long, where it is no terminal"
    assert table.splitlines()[1].split()[:4] == [task_id[:12], "web:1", "default", "FARGATE"]
    why = document(fake_platform, "why", task_id[:8])
    assert why["task_id"] == task_id and why["phases"]
    assert "launched" in fake_platform.hutch("why", task_id).stdout
    lines = document(fake_platform, "logs", task_id)
    assert [line["text"] for line in lines] == ["hello there"]
    assert fake_platform.hutch("logs", task_id).stdout == "hello there\n"
    stopped = document(fake_platform, "stop", task_id, "--reason", "enough")
    assert (stopped["last_status"], stopped["stopped_reason"]) == ("STOPPED", "enough")
    assert document(fake_platform, "ps") == []
    assert document(fake_platform, "ps", "--all")[0]["stopCode"] == "UserInitiated"
    assert "UserInitiated: enough" in fake_platform.hutch("why", task_id).stdout
    # Stopping it again changes nothing, and is no error.
    assert document(fake_platform, "stop", task_id)["stopped_reason"] == "enough"


def test_a_task_that_fails_at_once_is_an_exit_code_and_a_hint(fake_platform: Platform) -> None:
    done = fake_platform.hutch(
        "run", "x", "--name", "bad", "-e", "HUTCH_FAKE_RUN_MS=0", "-e", "HUTCH_FAKE_EXIT=3", check=False
    )
    assert done.returncode == 1
    assert "Essential container in task exited" in done.stderr and "hutch why" in done.stderr


def test_what_is_refused_is_one_line_and_exit_code_1(fake_platform: Platform) -> None:
    assert failure(fake_platform, "why", "0" * 32)[0] == 1
    code, words = failure(fake_platform, "logs", "nothing")
    assert code == 1 and words.startswith("hutch: no task")
    code, words = failure(fake_platform, "run", "x", "--cluster", "nope")
    assert code == 1 and "there is no cluster nope" in words
    code, words = failure(fake_platform, "run", "x", "--cpu", "banana")
    assert code == 1 and "'cpu'" in words and "(ClientException)" in words
    code, words = failure(fake_platform, "image", "import", "/nowhere.tar")
    assert code == 1 and "/nowhere.tar is not a file" in words
    code, words = failure(fake_platform, "image", "rm", "no/such:image")
    assert code == 1 and "no/such:image" in words
    code, words = failure(fake_platform, "run", "x", "--memory", "lots")
    assert code == 1 and "'lots'; it is a number of MiB from 64" in words


def test_a_task_goes_by_its_id_the_beginning_of_it_or_its_arn(fake_platform: Platform) -> None:
    task_id = document(fake_platform, "run", "x", "--name", "named")["task_id"]
    (arn,) = (t["taskArn"] for t in document(fake_platform, "ps") if t["taskArn"].endswith(task_id))
    for name in (task_id, task_id[:12], arn):
        assert document(fake_platform, "why", name)["task_id"] == task_id
    code, words = failure(fake_platform, "why", task_id[:3])
    assert code == 1 and "is too short" in words
    code, words = failure(fake_platform, "logs", "-f", "-c", "other", task_id)
    assert code == 1 and "has no container other; it has named" in words
    document(fake_platform, "stop", task_id)


def test_no_id_is_broken_on_a_narrow_terminal(fake_platform: Platform) -> None:
    task_id = document(fake_platform, "run", "x", "--name", "narrow", "-p", "80")["task_id"]
    reader, terminal = os.openpty()
    with os.fdopen(reader, "rb", buffering=0) as screen:
        termios.tcsetwinsize(terminal, (24, 40))
        subprocess.run([f"{BIN}/hutch", "ps"], stdout=terminal, env=fake_platform.environment, check=True)
        os.close(terminal)
        shown = screen.read(65536).decode()
    assert task_id[:12] in shown and "narrow:1" in shown and "http://narrow.localhost:" in shown
    document(fake_platform, "stop", task_id)


def test_wrong_usage_is_exit_code_2(fake_platform: Platform) -> None:
    for arguments in (
        ("nonsense",),
        ("run",),
        ("run", "x", "-p", "eighty"),
        ("run", "x", "-e", "novalue"),
        ("up", "--no-such-flag"),
        ("up", "--warm-pool", "some"),
        ("up", "--drivers", "foo"),
        ("up", "--vpc-cidr", "10.0.0.1/8"),
        ("stop", ""),
        ("stop", "a/b"),
        ("logs", "x", "--tail", "many"),
    ):
        code, words = failure(fake_platform, *arguments)
        assert code == 2, (arguments, words)


def test_without_a_platform_it_says_how_to_start_one(fake_platform: Platform, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "empty")
    for command in (["ps"], ["env"], ["configure"], ["image", "ls"], ["why", "x"], ["stop", "x"]):
        code, words = failure(fake_platform, *command, "--data-dir", elsewhere)
        assert code == 3 and "hutch up" in words, command


def docker_archive(directory: Path) -> Path:
    """A small image as `docker save` writes it."""
    layer = directory / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        tar.addfile(tarfile.TarInfo("file"), io.BytesIO())
    diff_id = f"sha256:{hashlib.sha256(layer.read_bytes()).hexdigest()}"
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    (directory / "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": ["box:1"], "Layers": ["layer.tar"]}]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    archive = directory / "box.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("layer.tar", "config.json", "manifest.json"):
            tar.add(directory / name, arcname=name)
    return archive


@pytest.mark.needs("skopeo")
def test_images_are_imported_listed_and_removed(fake_platform: Platform, tmp_path: Path) -> None:
    archive = docker_archive(tmp_path)
    imported = document(fake_platform, "image", "import", str(archive), "localhost/box:1")
    assert imported["name"] == "localhost/box:1" and imported["digest"].startswith("sha256:")
    assert "localhost/box:1" in [i["name"] for i in document(fake_platform, "image", "ls")]
    assert "box:1" in fake_platform.hutch("image", "ls").stdout
    assert document(fake_platform, "image", "rm", "localhost/box:1") == {"removed": "localhost/box:1"}
    assert document(fake_platform, "image", "ls") == []


def test_env_is_read_by_a_shell(fake_platform: Platform) -> None:
    values = document(fake_platform, "env")
    script = f'eval "$({BIN}/hutch env)" && printf "%s %s" "$AWS_ENDPOINT_URL" "$AWS_REGION"'
    environment = {**fake_platform.environment, "AWS_PROFILE": "other", "AWS_SESSION_TOKEN": "old"}
    shown = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=30
    ).stdout
    assert shown == f"{values['AWS_ENDPOINT_URL']} {values['AWS_REGION']}"


def test_configure_writes_a_profile_that_the_aws_cli_uses(fake_platform: Platform, tmp_path: Path) -> None:
    directory = Path(fake_platform.environment["HOME"]) / ".aws"
    directory.mkdir(exist_ok=True)
    mine = "# my own\n[profile mine]\nregion = eu-west-1\n"
    (directory / "config").write_text(mine)
    fake_platform.hutch("configure")
    once = (directory / "config").read_text()
    fake_platform.hutch("configure")
    assert (directory / "config").read_text() == once, "a second time changes nothing"
    assert once.startswith(mine), "what was there is kept"
    config = configparser.RawConfigParser()
    config.read(directory / "config")
    assert config["profile hutch"]["endpoint_url"].startswith("http://127.0.0.1:")
    assert (directory / "credentials").stat().st_mode & 0o777 == 0o600
    done = subprocess.run(
        [str(BIN / "aws"), "--profile", "hutch", "sts", "get-caller-identity"],
        env={k: v for k, v in fake_platform.environment.items() if not k.startswith("AWS_")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["Account"] == "000000000000"
    (directory / "credentials").write_bytes(b"\xff\xfe")
    code, words = failure(fake_platform, "configure")
    assert code == 1 and "can't be read" in words


def test_doctor_says_what_is_missing_and_how_to_get_it(fake_platform: Platform) -> None:
    checks = {c["check"]: c for c in document(fake_platform, "doctor")}
    assert checks["root"]["state"] == "ok" and checks["skopeo"]["detail"].startswith("/")
    assert checks["kvm"]["state"] in ("ok", "slower")
    assert "skopeo" in fake_platform.hutch("doctor").stdout
    environment = {**fake_platform.environment, "PATH": "/nowhere"}
    done = subprocess.run(
        [str(BIN / "hutch"), "doctor", "--json"], env=environment, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    found = {c["check"]: c for c in json.loads(done.stdout)}
    assert found["skopeo"]["state"] == "missing"
    assert found["skopeo"]["detail"] == "image pulls: apt-get install skopeo"


def test_version_and_help(fake_platform: Platform) -> None:
    assert fake_platform.hutch("version").stdout.strip()
    assert "--listen" in fake_platform.hutch("up", "--help").stdout
    help_text = fake_platform.hutch("--help").stdout
    for command in ("up", "down", "env", "configure", "doctor", "run", "ps", "logs", "stop", "why", "image"):
        assert command in help_text
