"""ECS Exec and `hutch exec` on a platform with the fake driver: the protocol, who may, what is refused."""

import json
import os
import select
import subprocess
import time
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from tests.support.looking import LIMIT_S
from tests.support.platform import BIN, Platform
from tests.support.ssm_client import SsmClient
from tests.support.terminal import Terminal

from hutch.client.client import HutchClient
from hutch.client.errors import AwsError


def running_task(platform: Platform, *, enabled: bool = True, containers: tuple[str, ...] = ("app",)) -> str:
    """A running task's ARN."""
    ecs = platform.client("ecs")
    family = f"exec-{'-'.join(containers)}"
    ecs.register_task_definition(
        family=family,
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": c, "image": "nothing"} for c in containers],
    )
    answer = ecs.run_task(taskDefinition=family, launchType="FARGATE", enableExecuteCommand=enabled)
    arn: str = answer["tasks"][0]["taskArn"]
    platform.until("RUNNING", arn)
    return arn


def _session(platform: Platform, arn: str, command: str, **changes: Any) -> dict[str, str]:
    given = {"task": arn, "command": command, "interactive": True, **changes}
    session: dict[str, str] = platform.client("ecs").execute_command(**given)["session"]
    return session


@pytest.fixture(scope="module")
def task(fake_platform: Platform) -> str:
    return running_task(fake_platform)


def test_a_session_shakes_hands_and_carries_bytes_both_ways(fake_platform: Platform, task: str) -> None:
    client = SsmClient(_session(fake_platform, task, "cat"))
    client.shake_hands()
    client.type(b"hello\n")
    assert client.read_until(b"hello") == b"hello\n"
    client.type(b"\x03")
    assert b"^C" in client.read_to_end()
    assert client.closed_text == "The command ended with exit code 130."
    assert client.acknowledged == list(range(client.next))


def test_the_terminal_has_the_clients_size(fake_platform: Platform, task: str) -> None:
    client = SsmClient(_session(fake_platform, task, "size"))
    client.shake_hands(rows=51, cols=211)
    client.read_until(b"51 211")
    client.resize(20, 70)
    client.read_until(b"20 70")
    client.terminate()
    client.read_to_end()
    assert client.closed_text == ""


def test_large_output_waits_for_a_slow_client(fake_platform: Platform, task: str) -> None:
    client = SsmClient(_session(fake_platform, task, "flood 2000000"))
    client.shake_hands()
    assert len(client.read_to_end()) == 2_000_000
    assert client.closed_text == ""


def test_what_is_not_acknowledged_is_sent_again(fake_platform: Platform, task: str) -> None:
    client = SsmClient(_session(fake_platform, task, "echo once"))
    client.shake_hands()
    client.acknowledges = False
    first = client.receive()
    assert first is not None and first["payload"] == b"once\n"
    client.acknowledges, client.expected = True, client.expected - 1
    again = client.receive()
    assert again is not None and again["id"] == first["id"]
    assert client.read_to_end() == b""


def test_a_session_is_resumed_where_it_was(fake_platform: Platform, task: str) -> None:
    session = _session(fake_platform, task, "cat")
    first = SsmClient(session)
    first.shake_hands()
    first.type(b"before\n")
    first.read_until(b"before")
    first.close()
    ssm = fake_platform.client("ssm")
    resumed = ssm.resume_session(SessionId=session["sessionId"])
    second = SsmClient({"streamUrl": resumed["StreamUrl"], "tokenValue": resumed["TokenValue"]})
    second.next, second.expected = first.next, first.expected
    second.type(b"after\n")
    assert second.read_until(b"after") == b"after\n"
    assert ssm.terminate_session(SessionId=session["sessionId"])["SessionId"] == session["sessionId"]
    second.read_to_end()
    assert second.closed_text == "The session was terminated."
    assert "TokenValue" not in ssm.resume_session(SessionId=session["sessionId"])


def test_a_token_opens_one_connection(fake_platform: Platform, task: str) -> None:
    session = _session(fake_platform, task, "cat")
    wrong = SsmClient(session, token="0" * 64)
    assert wrong.receive() is None
    right = SsmClient(session)
    right.shake_hands()
    again = SsmClient(session)
    assert again.receive() is None
    right.type(b"still here\n")
    right.read_until(b"still here")
    right.terminate()
    right.read_to_end()


def test_noise_ends_only_its_own_session(fake_platform: Platform, task: str) -> None:
    client = SsmClient(_session(fake_platform, task, "cat"))
    client.socket.send(b"noise" * 100)
    while client.receive() is not None:
        pass
    assert client.closed_text and "message" in client.closed_text
    assert fake_platform.hutch("exec", task, "--", "echo", "fine").stdout == "fine\n"


def test_the_clients_agents_are_shown(fake_platform: Platform, task: str) -> None:
    shown = fake_platform.client("ecs").describe_tasks(tasks=[task])["tasks"][0]
    assert shown["enableExecuteCommand"] is True
    agents = shown["containers"][0]["managedAgents"]
    assert [(a["name"], a["lastStatus"]) for a in agents] == [("ExecuteCommandAgent", "RUNNING")]


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"interactive": False}, "InvalidParameterException", "Interactive is the only mode"),
        ({"container": "nobody"}, "InvalidParameterException", "doesn't exist"),
        ({"command": "'open"}, "InvalidParameterException", "split"),
        ({"cluster": "nowhere"}, "ClusterNotFoundException", "Cluster not found"),
    ],
)
def test_what_is_refused(
    fake_platform: Platform, task: str, changes: dict[str, Any], code: str, words: str
) -> None:
    given = {"command": "cat", **changes}
    with pytest.raises(ClientError, match=words) as caught:
        _session(fake_platform, task, given.pop("command"), **given)
    assert caught.value.response["Error"]["Code"] == code


def test_a_task_without_execute_command_is_for_hutch_exec_only(fake_platform: Platform) -> None:
    arn = running_task(fake_platform, enabled=False, containers=("one", "two"))
    with pytest.raises(ClientError, match="execute command was not enabled"):
        _session(fake_platform, arn, "cat", container="one")
    assert fake_platform.hutch("exec", "-c", "two", arn, "--", "echo", "hi").stdout == "hi\n"
    unnamed = fake_platform.hutch("exec", arn, "--", "echo", check=False)
    assert unnamed.returncode == 1 and "container name must be specified" in unnamed.stderr
    fake_platform.client("ecs").stop_task(task=arn)
    with pytest.raises(ClientError, match=r"not running|was not enabled"):
        _session(fake_platform, arn, "cat", container="one")


def test_exit_codes_and_streams_are_passed_on(fake_platform: Platform, task: str) -> None:
    assert fake_platform.hutch("exec", task, "--", "fail", "42", check=False).returncode == 42
    warned = fake_platform.hutch("exec", task, "--", "warn", "careful")
    assert (warned.stdout, warned.stderr) == ("", "careful\n")
    missing = fake_platform.hutch("exec", task, "--", "nothing-such", check=False)
    assert missing.returncode == 127 and "can't be run" in missing.stderr


def test_it_works_in_a_pipe(fake_platform: Platform, task: str) -> None:
    sent = bytes(range(256)) * 8000
    done = subprocess.run(
        [str(BIN / "hutch"), "exec", "-i", task, "--", "cat"],
        env=fake_platform.environment,
        input=sent,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"") and done.stdout == sent


def test_signals_are_passed_on(fake_platform: Platform, task: str) -> None:
    process = subprocess.Popen(
        [str(BIN / "hutch"), "exec", "-i", task, "--", "cat"],
        env=fake_platform.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"x\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"x\n"
    process.terminate()
    assert process.wait(20) == 143
    process.stdin.close()
    process.stdout.close()


def test_an_exec_session_does_not_hold_up_the_platform(fake_platform: Platform, task: str) -> None:
    """One that nobody reads: everything else goes on."""
    session = _session(fake_platform, task, "flood 50000000")
    stuck = SsmClient(session)
    stuck.shake_hands()
    began = time.monotonic()
    assert fake_platform.hutch("exec", task, "--", "echo", "quick").stdout == "quick\n"
    assert time.monotonic() - began < 60
    # Not in order: nobody reads what is on its way.
    stuck.socket.socket.close()


def test_a_terminal(fake_platform: Platform, task: str) -> None:
    """Its size, a change of it, Ctrl-C, the exit code; and the terminal is as it was afterwards."""
    sized = Terminal([str(BIN / "hutch"), "exec", "-it", task, "--", "size"], fake_platform.environment)
    try:
        sized.until(b"30 100")
        sized.resize(17, 66)
        sized.until(b"17 66")
        sized.type(b"x")
        assert sized.exit_code() == 0
    finally:
        sized.close()
    cat = Terminal([str(BIN / "hutch"), "exec", "-it", task, "--", "cat", "ready"], fake_platform.environment)
    try:
        cat.until(b"ready")
        cat.type(b"typed\n")
        cat.until(b"typed")
        cat.type(b"\x03")
        cat.until(b"^C")
        assert cat.exit_code() == 130
    finally:
        cat.close()


def test_who_may(fake_platform: Platform, task: str) -> None:
    """ExecuteCommand is asked of both doors; one of them asks for its own permission besides."""
    iam = fake_platform.client("iam")
    iam.create_user(UserName="operator")
    key = iam.create_access_key(UserName="operator")["AccessKey"]
    environment = fake_platform.aws_environment()
    region = environment["AWS_REGION"]
    ecs = boto3.client(
        "ecs",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        region_name=region,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
    )
    client = HutchClient(environment["AWS_ENDPOINT_URL"], key["AccessKeyId"], key["SecretAccessKey"], region)

    def may(*statements: dict[str, str]) -> tuple[bool, bool]:
        """Whether ExecuteCommand, and `hutch exec`, are let through."""
        policy = json.dumps({"Version": "2012-10-17", "Statement": list(statements)})
        iam.put_user_policy(UserName="operator", PolicyName="p", PolicyDocument=policy)
        allowed = []
        for attempt in (
            lambda: ecs.execute_command(task=task, command="cat", interactive=True),
            lambda: client.native("POST", f"/tasks/{task[-32:]}/exec", body={"command": ["cat"]}),
        ):
            try:
                attempt()
                allowed.append(True)
            except (ClientError, AwsError) as error:
                assert "not authorized to perform" in str(error)
                allowed.append(False)
        return allowed[0], allowed[1]

    aws = {"Effect": "Allow", "Action": "ecs:ExecuteCommand", "Resource": task}
    own = {"Effect": "Allow", "Action": "hutch:ExecuteCommand", "Resource": "*"}
    with client:
        assert may(aws) == (True, False)
        assert may(own) == (False, False)
        assert may(aws, own) == (True, True)
        assert may(own, {**aws, "Resource": task[:-32] + "0" * 32}) == (False, False)


def test_who_terminates_it_is_not_kept_waiting_by_a_process_that_takes_no_input(
    fake_platform: Platform, task: str
) -> None:
    """The signal can't get past input that nobody reads; so it hangs up, which ends the process."""
    with subprocess.Popen(
        [str(BIN / "hutch"), "exec", "-i", task, "--", "sleep"],
        env=fake_platform.environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        given = _give_until_stuck(process.stdin.fileno())
        process.terminate()
        try:
            _, errors = process.communicate(timeout=LIMIT_S)
        finally:
            process.kill()
    assert process.returncode == 3 and b"the session ended" in errors, given


def _give_until_stuck(pipe: int) -> int:
    """Write into a pipe until its reader takes no more; how many bytes. The kernel tells when there is room again: that it
    tells nothing for a while, which is long beside what a reader needs on a busy machine, is the event."""
    os.set_blocking(pipe, False)
    given = 0
    while select.select([], [pipe], [], 1.0 if given > 1 << 20 else LIMIT_S)[1]:
        given += os.write(pipe, bytes(1 << 16))
    return given
