"""A platform whose machine fails it: full, read-only and damaged disks, killed processes, neighbours, odd paths.

The driver only pretends; supervisor, control plane, store, agent and API are the real ones, in processes of their own.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def platforms(tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Makes platforms; ends them afterwards, whatever became of them."""
    made: list[Platform] = []

    def make(name: str = "p", **settings: str) -> Platform:
        platform = Platform(tmp_path / name, **{"drivers": "fake", **settings})
        made.append(platform)
        return platform

    yield make
    for platform in made:
        platform.hutch("down", check=False)
        assert platform.pids("hutch.apps") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB, mounted where the platform `small` has its data."""
    place = tmp_path / "small" / "data"
    place.mkdir(parents=True)
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=16m", "hutch-test", str(place)], check=True)
    yield place
    subprocess.run(["/bin/umount", "-l", str(place)], check=True)


def impatient(platform: Platform, service: str) -> Any:
    """A client that tries once."""
    return platform.client(service, attempts=1)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with filler.open("wb", buffering=0) as f:
        try:
            while True:
                f.write(b"\0" * 65536)
        except OSError:
            pass
    return filler


def clusters_of(ecs: Any) -> set[str]:
    pages = ecs.get_paginator("list_clusters").paginate()
    return {arn.rpartition("/")[2] for page in pages for arn in page["clusterArns"]}


def control_pid(platform: Platform) -> int:
    pids = platform.pids("hutch.apps.control")
    assert len(pids) == 1
    return pids[0]


def register(ecs: Any) -> str:
    ecs.register_task_definition(
        family="f",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "main", "image": "x"}],
    )
    return "f"


def test_a_full_disk_is_named_loses_nothing_and_passes(
    small_disk: Path, platforms: Callable[..., Platform]
) -> None:
    platform = platforms("small")
    platform.start()
    ecs = impatient(platform, "ecs")
    filler = fill(small_disk)
    acknowledged: set[str] = {"default"} & clusters_of(ecs)
    refusal: ClientError | None = None
    for number in range(2000):
        name = f"c{number:04d}"
        try:
            ecs.create_cluster(clusterName=name, tags=[{"key": "k", "value": "v" * 250}])
            acknowledged.add(name)
        except ClientError as error:
            refusal = error
            break
    assert refusal is not None, "the disk never was full"
    assert refusal.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
    assert "state.sqlite3" in str(refusal) and "free space" in str(refusal)
    # What was there can be read, and the platform is up.
    assert clusters_of(ecs) == acknowledged
    pid = control_pid(platform)
    filler.unlink()
    ecs.create_cluster(clusterName="after")
    assert clusters_of(ecs) == acknowledged | {"after"}
    assert control_pid(platform) == pid, "the control plane must not have died of it"
    os.kill(pid, signal.SIGKILL)
    assert clusters_of(platform.client("ecs")) == acknowledged | {"after"}


def test_log_events_on_a_full_disk_are_refused_not_lost(
    small_disk: Path, platforms: Callable[..., Platform]
) -> None:
    platform = platforms("small")
    platform.start()
    logs = impatient(platform, "logs")
    logs.create_log_group(logGroupName="/g")
    logs.create_log_stream(logGroupName="/g", logStreamName="s")
    now_ms = int(os.stat(platform.data_dir / "platform.json").st_mtime * 1000)

    def put(number: int) -> None:
        event = {"timestamp": now_ms + number, "message": f"{number} " + "x" * 200_000}
        logs.put_log_events(logGroupName="/g", logStreamName="s", logEvents=[event])

    acknowledged = 0
    with pytest.raises(ClientError) as refused:
        while acknowledged < 1000:
            put(acknowledged)
            acknowledged += 1
    assert "logs.sqlite3" in str(refused.value) and "free space" in str(refused.value)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] >= 500
    pages = logs.get_paginator("filter_log_events").paginate(logGroupName="/g")
    seen = [int(e["message"].split()[0]) for p in pages for e in p["events"]]
    assert seen == list(range(acknowledged)) and acknowledged > 5


def test_a_read_only_disk_is_refused_at_start(small_disk: Path, platforms: Callable[..., Platform]) -> None:
    platform = platforms("small")
    subprocess.run(["/bin/mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        done = platform.hutch("up", "--detach", check=False)
        assert done.returncode == 1
        assert str(small_disk) in done.stderr and "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr and "--data-dir" in done.stderr
    finally:
        subprocess.run(["/bin/mount", "-o", "remount,rw", str(small_disk)], check=True)


@pytest.mark.parametrize(
    ("name", "damage"),
    [("state.sqlite3", "overwritten"), ("state.sqlite3", "hole"), ("logs.sqlite3", "overwritten")],
)
def test_a_damaged_database_is_refused_by_name(
    name: str, damage: str, platforms: Callable[..., Platform]
) -> None:
    platform = platforms()
    platform.start()
    platform.client("ecs").create_cluster(clusterName="mine")
    platform.stop()
    path = platform.data_dir / name
    good = path.read_bytes()
    hole = good[:4096] + b"\xff" * 4096 + good[8192:]
    path.write_bytes(b"no database " * 1000 if damage == "overwritten" else hole)
    bad = path.read_bytes()
    done = platform.hutch("up", "--detach", check=False)
    assert done.returncode == 1
    assert str(path) in done.stderr and "is damaged" in done.stderr and "Traceback" not in done.stderr
    assert path.read_bytes() == bad, "what may be saved by hand must not be touched"
    path.write_bytes(good)
    platform.start()
    assert "mine" in clusters_of(platform.client("ecs"))


def test_damage_that_is_met_later_is_named_in_the_answer(platforms: Callable[..., Platform]) -> None:
    platform = platforms()
    platform.start()
    impatient(platform, "logs").create_log_group(logGroupName="/g")
    platform.stop()
    path = platform.data_dir / "logs.sqlite3"
    good = path.read_bytes()
    path.write_bytes(good[:4096] + b"\xff" * (len(good) - 4096))
    if platform.hutch("up", "--detach", check=False).returncode == 0:
        with pytest.raises(ClientError, match=r"logs\.sqlite3 is damaged"):
            impatient(platform, "logs").describe_log_groups()
        assert clusters_of(platform.client("ecs")) is not None


def test_all_that_was_acknowledged_survives_the_killing_of_the_control_plane(
    platforms: Callable[..., Platform],
) -> None:
    platform = platforms()
    platform.start()
    first = platform.client("ecs")
    definition = register(first)
    first.create_cluster(clusterName="load")
    acknowledged: list[str] = []
    tasks: dict[str, str] = {}
    lock, enough, stop = threading.Lock(), threading.Event(), threading.Event()
    broken: list[BaseException] = []

    def client(number: int) -> None:
        ecs = platform.client("ecs")
        count = 0
        while not stop.is_set():
            name, token = f"c{number}-{count}", f"t{number}-{count}"
            count += 1
            try:
                ecs.create_cluster(clusterName=name)
                answer = ecs.run_task(
                    cluster="load", taskDefinition=definition, launchType="FARGATE", clientToken=token
                )
            except (ClientError, BotoCoreError) as error:
                broken.append(error)
                continue
            with lock:
                acknowledged.append(name)
                tasks[token] = answer["tasks"][0]["taskArn"]
                if len(acknowledged) % 12 == 0:
                    enough.set()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    killed = []
    for _ in range(3):
        assert enough.wait(30)
        pid = control_pid(platform)
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        enough.clear()
        assert enough.wait(30)
        enough.clear()
    stop.set()
    for thread in threads:
        thread.join()
    ecs = platform.client("ecs")
    assert control_pid(platform) not in killed
    assert not broken, "the SDK's own retries must be enough to live through a restart"
    assert len(acknowledged) >= 72 and set(acknowledged) <= clusters_of(ecs)
    # The same token gives the same task, after every crash; and none was started twice.
    for token, arn in list(tasks.items())[::7]:
        again = ecs.run_task(
            cluster="load", taskDefinition=definition, launchType="FARGATE", clientToken=token
        )
        assert [t["taskArn"] for t in again["tasks"]] == [arn]
    listed = {
        arn
        for status in ("RUNNING", "STOPPED")
        for page in ecs.get_paginator("list_tasks").paginate(cluster="load", desiredStatus=status)
        for arn in page["taskArns"]
    }
    assert listed == set(tasks.values())


def test_a_killed_host_agent_comes_back_and_goes_on(platforms: Callable[..., Platform]) -> None:
    platform = platforms()
    platform.start()
    ecs = platform.client("ecs")
    definition = register(ecs)
    ecs.create_cluster(clusterName="c")

    def run() -> str:
        answer = ecs.run_task(cluster="c", taskDefinition=definition, launchType="FARGATE")
        return str(answer["tasks"][0]["taskArn"])

    platform.until("RUNNING", run())
    pids = platform.pids("hutch.apps.host")
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    arn = run()
    platform.until("RUNNING", arn)
    assert platform.pids("hutch.apps.host") not in ([], pids)
    ecs.stop_task(cluster="c", task=arn)
    platform.until("STOPPED", arn)


def test_a_killed_supervisor_is_followed_by_the_next(platforms: Callable[..., Platform]) -> None:
    platform = platforms()
    platform.start()
    platform.client("ecs").create_cluster(clusterName="mine")
    supervisors = platform.pids("hutch.apps.up")
    assert len(supervisors) == 1
    os.kill(supervisors[0], signal.SIGKILL)
    # Its children end in their orderly way; the next one waits for them.
    platform.start()
    assert "mine" in clusters_of(platform.client("ecs"))
    assert len(platform.pids("hutch.apps.control")) == len(platform.pids("hutch.apps.host")) == 1


def test_a_second_up_of_the_same_platform_is_refused_and_does_no_harm(
    platforms: Callable[..., Platform],
) -> None:
    platform = platforms()
    platform.start()
    pid = control_pid(platform)
    for more in ((), ("--detach",)):
        done = platform.hutch("up", *more, check=False)
        assert done.returncode == 3
        assert "is in use by process" in done.stderr and "hutch down" in done.stderr
    assert control_pid(platform) == pid
    assert clusters_of(platform.client("ecs")) is not None


def test_a_taken_port_is_refused_by_name(platforms: Callable[..., Platform]) -> None:
    one, two = platforms("one"), platforms("two")
    two.environment["HUTCH_LISTEN"] = one.environment["HUTCH_LISTEN"]
    one.start()
    done = two.hutch("up", "--detach", check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert one.environment["HUTCH_LISTEN"] in done.stderr and "--listen" in done.stderr


def test_two_platforms_do_not_touch_each_other(platforms: Callable[..., Platform]) -> None:
    one, two = platforms("one"), platforms("two")
    one.start()
    two.start()
    assert one.platform_id != two.platform_id
    for platform, name in ((one, "first"), (two, "second")):
        ecs = platform.client("ecs")
        ecs.create_cluster(clusterName=name)
        definition = register(ecs)
        ecs.run_task(cluster=name, taskDefinition=definition, launchType="FARGATE", count=2)
    assert "second" not in clusters_of(one.client("ecs"))
    assert "first" not in clusters_of(two.client("ecs"))
    with pytest.raises(ClientError, match=r"security token|signature|invalid"):
        keys = one.aws_environment()
        stranger = two.client("ecs")
        stranger._request_signer._credentials.access_key = keys["AWS_ACCESS_KEY_ID"]
        stranger._request_signer._credentials.secret_key = keys["AWS_SECRET_ACCESS_KEY"]
        stranger.list_clusters()
    pid = control_pid(two)
    one.stop()
    assert one.pids("hutch.apps") == [] and control_pid(two) == pid
    assert len(two.client("ecs").list_tasks(cluster="second")["taskArns"]) == 2


@pytest.mark.parametrize(
    "name",
    ["with spaces and 'quotes'", "d/" * 20 + "x" * 100, "ümläut-語"],
    ids=["spaces", "long", "unicode"],
)
def test_a_data_directory_may_have_any_name(
    name: str, platforms: Callable[..., Platform], tmp_path: Path
) -> None:
    platform = platforms("p")
    platform.data_dir = tmp_path / name
    platform.environment["HUTCH_DATA_DIR"] = str(platform.data_dir)
    platform.start()
    ecs = platform.client("ecs")
    definition = register(ecs)
    ecs.create_cluster(clusterName="c")
    arn = ecs.run_task(cluster="c", taskDefinition=definition, launchType="FARGATE")["tasks"][0]["taskArn"]
    platform.until("RUNNING", arn)
    platform.stop()
    shutil.rmtree(platform.data_dir)


def test_a_run_directory_too_long_for_sockets_is_refused_with_the_setting(
    platforms: Callable[..., Platform], tmp_path: Path
) -> None:
    platform = platforms("p", run_dir=str(tmp_path / ("r" * 120)))
    done = platform.hutch("up", "--detach", check=False)
    assert done.returncode == 1 and "--run-dir" in done.stderr and "Traceback" not in done.stderr
