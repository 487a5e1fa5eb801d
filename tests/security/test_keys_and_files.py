"""What must not leak: keys into logs, command lines and environments; files and sockets to other users; and what one
caller may not do to the logs and the store of all."""

import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(tmp_path_factory.mktemp("keys"), drivers="fake", log_level="DEBUG")
    os.umask(0)
    try:
        made.start()
        yield made
    finally:
        os.umask(0o022)
        made.stop()


def client(platform: Platform, service: str, **more: str) -> Any:
    env = {**platform.aws_environment(), **more}
    return boto3.session.Session().client(
        service,
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region_name=env["AWS_REGION"],
        aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"total_max_attempts": 1}, inject_host_prefix=False),
    )


def test_no_key_is_in_a_log_a_command_line_or_an_environment(platform: Platform) -> None:
    secret = platform.aws_environment()["AWS_SECRET_ACCESS_KEY"]
    client(platform, "ecs").list_clusters()
    for wrong in (
        {"AWS_SECRET_ACCESS_KEY": secret[:-1] + "x"},
        {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE"},
    ):
        with pytest.raises(ClientError) as refused:
            client(platform, "ecs", **wrong).list_clusters()
        assert secret[:20] not in str(refused.value.response)
    client(platform, "ecs").register_task_definition(
        family="f", containerDefinitions=[{"name": "m", "image": "x", "memory": 64, "environment": [
            {"name": "PASSWORD", "value": "do-not-tell-3141"}]}],
    )  # fmt: skip
    texts = [(platform.data_dir / "hutch.log").read_bytes()]
    for pid in platform.pids("hutch.apps"):
        texts += [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    assert len(texts) == 7
    for text in texts:
        assert secret.encode() not in text and b"do-not-tell-3141" not in text


def test_nobody_else_can_read_or_write_what_is_ours(platform: Platform) -> None:
    """Even with a umask of 0: files of ours are for our own uid."""
    assert stat.S_IMODE(platform.data_dir.stat().st_mode) == 0o700
    run = Path(platform.environment["HUTCH_RUN_DIR"])
    for path in (
        platform.data_dir / "state.sqlite3",
        platform.data_dir / "logs.sqlite3",
        platform.data_dir / "credentials.json",
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    assert stat.S_IMODE((run / "fleet.sock").stat().st_mode) == 0o600


def test_another_user_can_not_speak_to_the_fleet_socket(platform: Platform) -> None:
    path = Path(platform.environment["HUTCH_RUN_DIR"]) / "fleet.sock"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(path))
        except PermissionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_tokens_of_pages_can_not_be_forged(platform: Platform) -> None:
    ecs, logs = client(platform, "ecs"), client(platform, "logs")
    for name in ("one", "two", "three"):
        ecs.create_cluster(clusterName=name)
    token = ecs.list_clusters(maxResults=1)["nextToken"]
    assert ecs.list_clusters(maxResults=1, nextToken=token)["clusterArns"]
    changed = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
    for forged in (changed, "x", "A" * 4000, "../../etc/passwd"):
        with pytest.raises(ClientError) as refused:
            ecs.list_clusters(maxResults=1, nextToken=forged)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    with pytest.raises(ClientError):
        logs.describe_log_groups(nextToken=token)


def test_one_hostile_reader_does_not_hold_up_the_others(platform: Platform) -> None:
    """A pattern that a backtracking engine would work on for ever, over megabytes of what suits it."""
    logs = client(platform, "logs")
    logs.create_log_group(logGroupName="/hostile")
    logs.create_log_stream(logGroupName="/hostile", logStreamName="s")
    now_ms = int(time.time() * 1000)
    for n in range(5):
        event = {"timestamp": now_ms + n, "message": '{"a": "' + "a" * 250_000 + '"}'}
        logs.put_log_events(logGroupName="/hostile", logStreamName="s", logEvents=[event])
    for pattern in ("{ $.a = a*a*a*a*a*a*b }", "%(a+)+$b%", "{ $.a = %(a|aa)+b% }", "[a = a*a*a*a*b]"):
        started = time.monotonic()
        assert logs.filter_log_events(logGroupName="/hostile", filterPattern=pattern)["events"] == []
        assert time.monotonic() - started < 60, pattern


@pytest.mark.parametrize(
    "name", ["a b", "../../x", "a\x00b", "a';DROP TABLE events;--", "a*", "😀", "x" * 513], ids=repr
)
def test_names_are_names_and_nothing_else(platform: Platform, name: str) -> None:
    logs = client(platform, "logs")
    try:
        logs.create_log_group(logGroupName=name)
    except ClientError as refused:
        assert refused.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    else:
        assert [
            g["logGroupName"] for g in logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        ] == [name]
    assert not (platform.data_dir.parent / "x").exists()


def test_what_is_stored_is_data_whatever_it_says(platform: Platform) -> None:
    ecs, logs = client(platform, "ecs"), client(platform, "logs")
    text = "'); DROP TABLE records; --\x1b[2J\U0010ffff\u202e"
    logs.create_log_group(logGroupName="/data")
    logs.create_log_stream(logGroupName="/data", logStreamName="it's")
    event = {"timestamp": int(time.time() * 1000), "message": text}
    logs.put_log_events(logGroupName="/data", logStreamName="it's", logEvents=[event])
    seen = logs.get_log_events(logGroupName="/data", logStreamName="it's")["events"]
    assert [e["message"] for e in seen] == [text]
    assert logs.describe_log_streams(logGroupName="/data", logStreamNamePrefix="%")["logStreams"] == []
    with pytest.raises(ClientError):
        ecs.describe_clusters(clusters=["x"], include=["'; --"])
    assert ecs.list_clusters()["clusterArns"]
