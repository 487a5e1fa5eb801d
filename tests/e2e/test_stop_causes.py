"""Ways to fail, each with its stop code, AWS's words for it, the cause that was found, evidence and what to do.

Two tables: what needs no VM runs on the fake driver, the rest in real microVMs of one platform.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError
from tests.support.archives import make_archive
from tests.support.busybox_image import make_busybox_directory
from tests.support.claims import free_port
from tests.support.looking import LIMIT_S
from tests.support.platform import BIN, Platform
from tests.support.registry import Image, LocalRegistry

IMAGE, FOREIGN_IMAGE = "localhost/tools:latest", "localhost/foreign:latest"
ESSENTIAL = "Essential container in task exited"
SIZE = {"networkMode": "awsvpc", "requiresCompatibilities": ["FARGATE"], "cpu": "256", "memory": "256"}


class Bench:
    """A platform, and clients of it."""

    def __init__(self, platform: Platform, launch_type: str = "FARGATE") -> None:
        self.platform = platform
        self.launch_type = launch_type
        self.ecs = platform.client("ecs")
        self.native = platform.native()

    def launch(self, name: str, containers: list[dict[str, Any]], **more: Any) -> str:
        """A task's id."""
        tags = more.pop("tags", [])
        self.ecs.register_task_definition(
            **{
                "family": name,
                "containerDefinitions": containers,
                **SIZE,
                "requiresCompatibilities": [self.launch_type],
                **more,
            }
        )
        answer = self.ecs.run_task(taskDefinition=name, launchType=self.launch_type, tags=tags)
        assert answer["failures"] == []
        return str(answer["tasks"][0]["taskArn"].rpartition("/")[2])

    def until(self, task_id: str, status: str) -> dict[str, Any]:
        """The task's causes, as soon as it has a status."""
        return self.platform.until(status, task_id)


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """How a task is to end. `words` are in the stopped reason, `text` in the outermost cause that has this `kind`;
    `reason` begins the reason of the container that the cause is about; `evidence` and `fix` are parts of theirs."""

    code: str
    words: str
    kind: str
    text: str = ""
    reason: str = ""
    evidence: dict[str, Any] = {}
    fix: str
    exit_code: int | None = None

    def check(self, seen: dict[str, Any]) -> None:
        story = json.dumps(seen, indent=1)
        assert (seen["stop_code"], self.words in seen["stopped_reason"]) == (self.code, True), story
        cause = next((c for c in seen["causes"] if c["kind"] == self.kind), None)
        assert cause is not None and self.text in cause["text"], story
        assert {k: cause["evidence"].get(k) for k in self.evidence} == self.evidence, story
        assert self.fix in cause["fix"] and bool(self.fix) == bool(cause["fix"]), story
        reasons = [c["reason"] for c in seen["containers"]]
        assert any(r.startswith(self.reason) for r in reasons), story
        if self.exit_code is not None:
            assert self.exit_code in [c["exit_code"] for c in seen["containers"]], story


def started_not(
    kind: str, words: str, fix: str, *, prefix: str = "CannotStartContainerError", **more: Any
) -> Expected:
    """What never ran: AWS's word for it is at the head of the task's and the container's reasons."""
    reason = more.pop("reason", f"{prefix}: ")
    return Expected(
        code="TaskFailedToStart", words=f"{prefix}: ", kind=kind, text=words, reason=reason, fix=fix, **more
    )


def exited(code: int, fix: str, lines: list[str] | None = None, **more: Any) -> Expected:
    """A program that ended by itself; `lines` are the last that it wrote."""
    evidence = {"container": "main", "exit_code": code, **({"last_output": lines} if lines else {})}
    return Expected(
        **{"code": "EssentialContainerExited", "words": ESSENTIAL, "kind": "ContainerExited", "fix": fix}
        | {"text": f'essential container "main" exited with code {code}', "evidence": evidence, "exit_code": code}
        | more
    )  # fmt: skip


def main(**more: Any) -> dict[str, Any]:
    return {"name": "main", "image": IMAGE, **more}


def sh(script: str, **more: Any) -> dict[str, Any]:
    return main(command=["/bin/sh", "-c", script], **more)


# -- without a VM


def fake(depends: tuple[str, str] | None = None, **dials: str) -> dict[str, Any]:
    more = {"dependsOn": [{"containerName": depends[0], "condition": depends[1]}]} if depends else {}
    return main(environment=[{"name": f"HUTCH_FAKE_{k}", "value": v} for k, v in dials.items()], **more)


def database(**more: Any) -> dict[str, Any]:
    dials = more.pop("dials", {})
    return {**fake(**dials), "name": "db", "essential": False, "stopTimeout": 2, **more}


PULL = "CannotPullContainerError"
SECRETS = "ResourceInitializationError: unable to pull secrets or registry auth: "
PROBE = {"command": ["CMD", "/check"], "interval": 5, "timeout": 2, "retries": 1}
NO_VM: dict[str, tuple[list[dict[str, Any]], Expected]] = {
    "exit 0": ([fake(RUN_MS="50")], exited(0, "")),
    "exit 1 with a log": (
        [fake(RUN_MS="50", EXIT="1", LOG="can't reach the database")],
        exited(1, "hutch logs", ["can't reach the database"]),
    ),
    "exit 127": ([fake(RUN_MS="50", EXIT="127")], exited(127, "the command was not found")),
    "aborted": (
        [fake(RUN_MS="50", EXIT="134")],
        exited(
            134, "the program aborted itself", text='essential container "main" was ended by SIGABRT',
            evidence={"signal": "SIGABRT"},
        ),
    ),
    "disk full, by its last words": (
        [fake(RUN_MS="50", EXIT="1", LOG="write /data/x: No space left on device")],
        exited(1, "raise ephemeralStorage", ["write /data/x: No space left on device"]),
    ),
    "out of memory": (
        [fake(RUN_MS="50", OOM="1")],
        Expected(code="EssentialContainerExited", words=ESSENTIAL, kind="OutOfMemory", text="OOM killer",
                 reason="OutOfMemoryError: Container killed due to memory usage", exit_code=137,
                 evidence={"container": "main", "limit_mib": 256}, fix="set memory to 384"),
    ),
    "image not found": ([main(image="r/not-found/x")], started_not("ImageNotFound", "r/not-found/x", "image", prefix=PULL)),
    "image denied": ([main(image="r/denied/x")], started_not("ImageAccessDenied", "denies access", "image", prefix=PULL)),
    "image too large": ([main(image="r/too-large/x")], started_not("ImageTooLarge", "larger than", "image", prefix=PULL)),
    "sandbox can't be made": (
        [fake(BOOT="fail")],
        started_not("FakeBootFailure", "dialled to fail", "unset", prefix="ResourceInitializationError", reason=""),
    ),
    "sandbox vanishes": (
        [fake(VANISH_MS="300")],
        Expected(code="EssentialContainerExited", words="vanished", kind="SandboxVanished", text="vanished",
                 reason="the fake sandbox vanished", fix=""),
    ),
    "dependency failed": (
        [database(dials={"RUN_MS": "50", "EXIT": "4", "LOG": "no schema"}), fake(("db", "SUCCESS"))],
        started_not(
            "DependencyFailed", 'container "db" ended with exit code 4, and "main" waits for SUCCESS', "hutch logs",
            prefix="TaskDependencyError", evidence={"container": "db", "exit_code": 4, "last_output": ["no schema"]},
        ),
    ),
    "health check failed": (
        [database(dials={"HEALTH": "7"}, healthCheck={**PROBE, "interval": 5}), fake(("db", "HEALTHY"))],
        started_not(
            "DependencyFailed", 'container "db" is UNHEALTHY after 1 failed checks', "startPeriod",
            prefix="TaskDependencyError",
            evidence={"container": "db", "health_check": {"exit_code": 7, "output": "fake health check: 7\n"}},
        ),
    ),
    "start timeout": (
        [database(startTimeout=2), fake(("db", "COMPLETE"))],
        started_not(
            "StartTimeout", 'container "db" did not reach what others wait for in its startTimeout of 2 s',
            "raise its startTimeout", prefix="TaskDependencyError", evidence={"container": "db", "status": "RUNNING"},
        ),
    ),
    "secret missing": (
        [main(secrets=[{"name": "KEY", "valueFrom": "/nowhere"}])],
        Expected(code="TaskFailedToStart", words=SECRETS, kind="SecretNotFound", text="/nowhere", fix="create"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def no_vm(fake_platform: Platform) -> Iterator[tuple[Bench, dict[str, str]]]:
    """The platform with all tasks of the table under way: the slowest says how long it takes."""
    bench = Bench(fake_platform)
    running = {
        name: bench.launch(f"way-{number}", containers)
        for number, (name, (containers, _)) in enumerate(NO_VM.items())
    }
    yield bench, running
    bench.native.close()


@pytest.mark.needs("root")
@pytest.mark.parametrize("way", NO_VM)
def test_ways_to_fail(no_vm: tuple[Bench, dict[str, str]], way: str) -> None:
    bench, running = no_vm
    seen = bench.until(running[way], "STOPPED")
    NO_VM[way][1].check(seen)
    if way == "dependency failed":
        told = bench.platform.hutch("why", running[way]).stdout
        assert "no schema" in told and "because" in told and "fix:" in told


@pytest.mark.needs("root")
def test_a_stop_says_who_asked_for_it(no_vm: tuple[Bench, dict[str, str]]) -> None:
    bench, _ = no_vm
    task_id = bench.launch("asked", [fake()])
    bench.until(task_id, "RUNNING")
    bench.ecs.stop_task(task=task_id, reason="making room")
    who = bench.platform.client("sts").get_caller_identity()["Arn"]
    Expected(
        code="UserInitiated",
        words="making room",
        kind="StopRequested",
        text="making room",
        evidence={"by": who},
        fix="",
    ).check(bench.until(task_id, "STOPPED"))


@pytest.mark.needs("root")
def test_a_host_port_that_another_task_has(no_vm: tuple[Bench, dict[str, str]]) -> None:
    bench, _ = no_vm
    container = {**fake(), "portMappings": [{"containerPort": 80}]}
    tags = [{"key": "hutch:publish", "value": "30500:80"}]
    holder = bench.launch("holder", [container], tags=tags)
    bench.until(holder, "RUNNING")
    started_not(
        "PortInUse", f"host port 30500 is published by task {holder}", "publish on another port",
        prefix="ResourceInitializationError", reason="",
    ).check(bench.until(bench.launch("late", [container], tags=tags), "STOPPED"))  # fmt: skip


@pytest.mark.needs("root")
def test_what_can_not_be_placed_and_what_the_platform_s_end_leaves(tmp_path: Path) -> None:
    platform = Platform(tmp_path, drivers="fake", placement="fail", vpc_cidr="10.99.0.0/26")
    platform.start()
    try:
        bench = Bench(platform)
        bench.ecs.register_task_definition(
            family="big", containerDefinitions=[fake()], **{**SIZE, "cpu": "32768", "memory": "249856"}
        )
        (failure,) = bench.ecs.run_task(taskDefinition="big", launchType="FARGATE")["failures"]
        assert failure["reason"].startswith("RESOURCE:"), failure
        (subnet, *_) = platform.client("ec2").describe_subnets()["Subnets"]
        network = {"awsvpcConfiguration": {"subnets": [subnet["SubnetId"]]}}
        task_id = bench.launch("small", [fake()])
        bench.until(task_id, "RUNNING")
        for _ in range(2):
            tasks = bench.ecs.run_task(
                taskDefinition="small", launchType="FARGATE", count=8, networkConfiguration=network
            )["tasks"]
        late = [bench.native.native("GET", f"/tasks/{t['taskArn'].rpartition('/')[2]}/wait") for t in tasks]
        refused = [t for t in late if t["last_status"] == "STOPPED"]
        assert refused, "a subnet of 16 addresses has none for so many"
        started_not(
            "SubnetFull", f"subnet {subnet['SubnetId']}", "name another subnet",
            prefix="ResourceInitializationError", reason="",
        ).check(refused[0])  # fmt: skip
        platform.stop()
        platform.start()
        seen = Bench(platform).until(task_id, "STOPPED")
    finally:
        platform.stop()
    Expected(
        code="UserInitiated", words="The platform was stopped (hutch down)", kind="PlatformStopped",
        text="the platform was stopped on this host", fix="",
    ).check(seen)  # fmt: skip


# -- in microVMs

CRASH = "echo c >/proc/sysrq-trigger; sleep 60"
IN_VM: dict[str, tuple[list[dict[str, Any]], Expected]] = {
    "exit code and last lines": (
        [sh("echo listening; echo going down >&2; exit 3")],
        exited(3, "hutch logs", ["listening", "going down"]),
    ),
    "crash of a child": (
        [sh("sh -c 'kill -SEGV $$'; exit $?")],
        exited(139, "segmentation fault", text="", evidence={"exit_code": 139}),
    ),
    "out of memory": (
        [sh("echo starting; tail /dev/zero")],
        Expected(code="EssentialContainerExited", words=ESSENTIAL, kind="OutOfMemory",
                 text='"tail" was killed by the kernel\'s OOM killer at 0.2', reason="OutOfMemoryError: ",
                 evidence={"process": "tail", "limit_mib": 256, "last_output": ["starting"]}, fix="set memory to 384",
                 exit_code=137),
    ),
    "program missing": (
        [main(command=["/nope"])],
        started_not("ExecNotFound", "/nope", "check command and entryPoint", evidence={"command": ["/nope"]}),
    ),
    "not executable": (
        [main(command=["/etc/readme"])],
        started_not("ExecNotExecutable", '"/etc/readme" may not be executed', "make the program executable"),
    ),
    "of another machine": (
        [main(command=["/bin/foreign"])],
        exited(1, "for the task's architecture"),
    ),
    "user missing": ([sh("id", user="nobody-here")], started_not("UserNotFound", 'no user "nobody-here"', "numeric uid")),
    "working directory": (
        [sh("pwd", workingDirectory="/etc/readme")],
        started_not("WorkingDirectoryInvalid", "/etc/readme can't be entered", "workingDirectory"),
    ),
    "volume path": (
        [sh("ls", mountPoints=[{"sourceVolume": "v", "containerPath": "/etc/readme"}])],
        started_not("MountFailed", 'volume "v" can\'t be mounted at /etc/readme', "mount it at a directory"),
    ),
    "disk full": (
        [sh("fallocate -l 40000000000 /big")],
        exited(1, "raise ephemeralStorage", ["fallocate: fallocate '/big': No space left on device"]),
    ),
    "image of another architecture": (
        [main(image=FOREIGN_IMAGE)],
        started_not("ImageWrongArchitecture", "is for aarch64", "build the image for", prefix=PULL),
    ),
    "kernel panic": (
        [sh(CRASH, privileged=True)],
        Expected(code="EssentialContainerExited", words="the guest's kernel panicked: sysrq triggered crash",
                 kind="GuestKernelPanicked", text="sysrq", reason="the guest's kernel panicked", fix="console"),
    ),
}  # fmt: skip


@contextlib.contextmanager
def real_platform(directory: Path, driver: str, launch_type: str) -> Iterator[Bench]:
    """A platform with the tables' images."""
    root = Path(make_busybox_directory(directory).directory)
    (root / "bin/fallocate").symlink_to("busybox")
    (root / "bin/foreign").write_bytes(b"\x7fELF\x02 of no machine")
    (root / "bin/foreign").chmod(0o755)
    (root / "etc/readme").write_text("not a program\n")
    platform = Platform(directory, drivers=driver)
    platform.start()
    try:
        for name, architecture in ((IMAGE, "amd64"), (FOREIGN_IMAGE, "arm64")):
            archive = make_archive(
                root, directory / "image.tar", name, architecture=architecture, Cmd=["/bin/sh"]
            )
            platform.hutch("image", "import", str(archive), name)
        bench = Bench(platform, launch_type)
        yield bench
        bench.native.close()
    finally:
        platform.stop()
    assert platform.leftovers() == []


@pytest.fixture(scope="module")
def vms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with real_platform(tmp_path_factory.mktemp("causes"), "microvm", "FARGATE") as bench:
        yield bench


@pytest.fixture(scope="module")
def unreachable(vms: Bench) -> Iterator[subprocess.Popen[str]]:
    """`hutch run` of an image in a registry that nobody serves. It is tried again for a while before that is final: so it
    is under way while other tests run."""
    argv = [str(BIN / "hutch"), "run", "127.0.0.1:9/nothing:here", "--name", "gone"]
    with subprocess.Popen(
        argv, env=vms.platform.environment, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as run:
        yield run
        run.kill()


@pytest.fixture(scope="module")
def shared_kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with real_platform(tmp_path_factory.mktemp("shared"), "container", "EC2") as bench:
        yield bench


@pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")
@pytest.mark.usefixtures("unreachable")
@pytest.mark.parametrize("way", IN_VM)
def test_ways_to_fail_in_a_microvm(vms: Bench, way: str) -> None:
    containers, expected = IN_VM[way]
    volumes = [{"name": "v"}] if way == "volume path" else []
    task_id = vms.launch("way", containers, volumes=volumes)
    expected.check(vms.until(task_id, "STOPPED"))


@pytest.mark.needs("root", "runc", "haproxy", "skopeo", "nft")
@pytest.mark.parametrize(
    "way", [w for w in IN_VM if w not in ("kernel panic", "disk full", "of another machine")]
)
def test_the_same_ways_on_the_host_s_kernel(shared_kernel: Bench, way: str) -> None:
    """But for what there is no wall to stop at: the host's kernel, and its disk."""
    containers, expected = IN_VM[way]
    volumes = [{"name": "v"}] if way == "volume path" else []
    task_id = shared_kernel.launch("way", containers, volumes=volumes)
    expected.check(shared_kernel.until(task_id, "STOPPED"))
    assert not Path("oom").exists(), "conmon leaves such a file where it runs, and that is not to be here"


@pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")
def test_a_vm_that_is_killed(vms: Bench) -> None:
    task_id = vms.launch("killed", [sh("sleep 600")])
    vms.until(task_id, "RUNNING")
    (qemu,) = [
        pid
        for pid in vms.platform.pids("qemu-system")
        if task_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(qemu, signal.SIGKILL)
    Expected(
        code="EssentialContainerExited", words="the VM's process was killed by signal 9", kind="VmKilled",
        reason="the VM's process was killed by signal 9", evidence={"qemu_exit_code": -9}, fix="who on the host",
    ).check(vms.until(task_id, "STOPPED"))  # fmt: skip


@pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft", "registry")
def test_what_a_registry_refuses(vms: Bench, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        open_one, closed_one = LocalRegistry(tmp_path / "a"), LocalRegistry(tmp_path / "b", login=True)
        stack.callback(open_one.stop)
        stack.callback(closed_one.stop)
        open_one.push("there", Image())
        for image, kind, words in (
            (f"{open_one.address}/nowhere:1", "ImageNotFound", "/nowhere:1"),
            (f"{open_one.address}/there:2", "ImageNotFound", "/there:2"),
            (f"{closed_one.address}/there:1", "ImageAccessDenied", "/there:1"),
        ):
            seen = vms.until(vms.launch("refused", [main(image=image)]), "STOPPED")
            assert seen["causes"][0]["fix"], seen
            started_not(kind, words, seen["causes"][0]["fix"], prefix=PULL).check(seen)


@pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")
def test_a_registry_that_is_not_there_is_a_final_cause_within_seconds(
    vms: Bench, unreachable: subprocess.Popen[str]
) -> None:
    _, told = unreachable.communicate(timeout=LIMIT_S)
    assert unreachable.returncode == 1
    assert "CannotPullContainerError" in told and "hutch why" in told
    (task_id,) = vms.ecs.list_tasks(family="gone", desiredStatus="STOPPED")["taskArns"]
    seen = vms.until(task_id, "STOPPED")
    assert seen["stopped_at"] - seen["created_at"] < 60


@pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")
def test_a_host_port_that_a_program_of_the_host_has(vms: Bench) -> None:
    port = free_port()
    tags = [{"key": "hutch:publish", "value": f"{port}:80"}]
    with socket.create_server(("127.0.0.1", port)):
        task_id = vms.launch("port", [sh("sleep 600", portMappings=[{"containerPort": 80}])], tags=tags)
        seen = vms.until(task_id, "STOPPED")
    Expected(
        code="TaskFailedToStart", words="ResourceInitializationError: host port", kind="PortInUse",
        text=f"(process {os.getpid()}) listens there", fix="publish on another port",
    ).check(seen)  # fmt: skip


@pytest.mark.needs("root")
def test_what_is_refused_before_it_can_fail(no_vm: tuple[Bench, dict[str, str]]) -> None:
    bench, _ = no_vm
    for container, words in (
        (main(dependsOn=[{"containerName": "nobody", "condition": "START"}]), "nobody"),
        (main(mountPoints=[{"sourceVolume": "nothing", "containerPath": "/x"}]), "nothing"),
    ):
        with pytest.raises(ClientError, match=words):
            bench.launch("refused", [container])
