"""Environment files, put into the object store by the AWS CLI, on a platform whose driver only pretends: a container's
dials come in files."""

import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.platform import BIN, Platform

pytestmark = pytest.mark.needs("root")


@pytest.fixture(scope="module")
def bucket(fake_platform: Platform) -> str:
    """For the files; the tasks' cluster is there too."""
    fake_platform.client("ecs").create_cluster(clusterName="flow")
    name = f"env-{uuid.uuid4().hex[:8]}"
    fake_platform.client("s3").create_bucket(Bucket=name)
    return name


def launch(
    platform: Platform, files: list[str], overrides: dict[str, Any] | None = None, **container: Any
) -> dict[str, Any]:
    """A task of one container that ends by itself; as it was when it had stopped."""
    ecs = platform.client("ecs")
    given = {
        "name": "main",
        "image": "x",
        "environmentFiles": [{"type": "s3", "value": f"arn:aws:s3:::{f}"} for f in files],
        **container,
    }
    definition = ecs.register_task_definition(
        family="files",
        containerDefinitions=[given],
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
    )["taskDefinition"]
    assert definition["containerDefinitions"][0]["environmentFiles"] == given["environmentFiles"]
    answer = ecs.run_task(
        cluster="flow",
        taskDefinition=definition["taskDefinitionArn"],
        launchType="FARGATE",
        overrides={"containerOverrides": [{"name": "main", **overrides}]} if overrides else {},
    )
    assert answer["failures"] == []
    arns = [t["taskArn"] for t in answer["tasks"]]
    platform.until("STOPPED", *arns)
    task: dict[str, Any] = ecs.describe_tasks(cluster="flow", tasks=arns)["tasks"][0]
    return task


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(str(BIN / "aws"), id="v1"),
        pytest.param("/usr/bin/aws", id="v2", marks=pytest.mark.needs("aws_cli_v2")),
    ],
)
def test_a_file_of_the_aws_cli_reaches_the_container(
    program: str, fake_platform: Platform, bucket: str, tmp_path: Path
) -> None:
    environment = fake_platform.aws_environment()

    def aws(*arguments: str) -> str:
        argv = [program, "--endpoint-url", environment["AWS_ENDPOINT_URL"], "s3", *arguments]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    other = f"in-the-clear-{uuid.uuid4().hex}"
    app = tmp_path / "app.env"
    app.write_text(f"# how it ends\nHUTCH_FAKE_RUN_MS=50\nHUTCH_FAKE_EXIT=41\nOTHER={other}\n")
    name = f"s3://{bucket}/conf/app.env"
    aws("cp", str(app), name)
    task = launch(fake_platform, [f"{bucket}/conf/app.env"])
    assert task["containers"][0]["exitCode"] == 41, task
    large = tmp_path / "large.bin"
    large.write_bytes(bytes(7_000_000))
    aws("cp", str(large), f"s3://{bucket}/large.bin")
    aws("cp", f"s3://{bucket}/large.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == large.read_bytes()
    assert "large.bin" in aws("ls", f"s3://{bucket}/")
    aws("rm", "--recursive", f"s3://{bucket}/")
    assert aws("ls", f"s3://{bucket}/") == ""
    held = [p for p in fake_platform.data_dir.rglob("*") if p.is_file() and other.encode() in p.read_bytes()]
    assert held == []


def test_who_counts(fake_platform: Platform, bucket: str) -> None:
    s3 = fake_platform.client("s3")
    s3.put_object(Bucket=bucket, Key="1.env", Body=b"HUTCH_FAKE_RUN_MS=50\nHUTCH_FAKE_EXIT=1\n")
    s3.put_object(Bucket=bucket, Key="2.env", Body=b"HUTCH_FAKE_RUN_MS=60000\nHUTCH_FAKE_EXIT=2\n")
    files = [f"{bucket}/1.env", f"{bucket}/2.env"]
    assert launch(fake_platform, files)["containers"][0]["exitCode"] == 1
    own = [{"name": "HUTCH_FAKE_EXIT", "value": "3"}]
    assert launch(fake_platform, files, environment=own)["containers"][0]["exitCode"] == 3
    assert launch(fake_platform, files, {"environment": own})["containers"][0]["exitCode"] == 3
    others = [{"type": "s3", "value": f"arn:aws:s3:::{bucket}/1.env"}]
    dials = [{"name": "HUTCH_FAKE_RUN_MS", "value": "50"}]
    instead = launch(fake_platform, [f"{bucket}/2.env"], {"environmentFiles": others}, environment=dials)
    assert instead["containers"][0]["exitCode"] == 1


def test_a_launch_without_its_file_says_why(fake_platform: Platform, bucket: str) -> None:
    s3 = fake_platform.client("s3")
    s3.put_object(Bucket=bucket, Key="binary.env", Body=b"A=\xff\xfe")
    s3.put_object(Bucket=bucket, Key="large.env", Body=b"x" * 600_000)
    prefix = "ResourceInitializationError: failed to download env files: "
    for file, words, fix in (
        (f"{bucket}/none.env", "NoSuchKey: The specified key does not exist.", "upload the file"),
        ("nowhere/none.env", "NoSuchBucket: The specified bucket does not exist", "upload the file"),
        (f"{bucket}/binary.env", "it is not UTF-8", "lines NAME=VALUE"),
        (f"{bucket}/large.env", "it has 600000 bytes", "lines NAME=VALUE"),
    ):
        task = launch(fake_platform, [file])
        assert task["stopCode"] == "TaskFailedToStart", task
        assert task["stoppedReason"].startswith(prefix) and words in task["stoppedReason"]
        told = fake_platform.hutch("why", task["taskArn"].rpartition("/")[2]).stdout
        assert file in told and fix in told, told


def test_what_is_refused_before_anything_runs(fake_platform: Platform, bucket: str) -> None:
    for files, overrides in (
        ([f"{bucket}/app.txt"], None),
        ([f"{bucket}/a.env"] * 11, None),
        ([f"{bucket}/a.env"], {"environmentFiles": [{"type": "s3", "value": "arn:aws:s3:::b/a.txt"}]}),
    ):
        with pytest.raises(ClientError) as refused:
            launch(fake_platform, files, overrides)
        assert refused.value.response["Error"]["Code"] == "ClientException"
