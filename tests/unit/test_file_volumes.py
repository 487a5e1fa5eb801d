"""Paths of files that are volumes, who is given secrets as files, and the requests that bring them into a guest."""

import posixpath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tests.support.launching import ACCOUNT, REGION, Launching, statement

from hutch.control.launch_refusals import LaunchRefused
from hutch.control.launch_secrets import MAX_SECRETS_BYTES
from hutch.control.taskspec import task_spec
from hutch.host.agent.taskfile import lacks_files, without_secrets
from hutch.host.drivers.contract import Attachment, DriverError, RootImage, SandboxSpec
from hutch.host.drivers.microvm.kept import look_spec
from hutch.host.drivers.microvm.plan import files_members
from hutch.host.drivers.task_mounts import task_mounts
from hutch.host.drivers.volume_files import check_files, fill_requests
from hutch.model.task import Container, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules.taskdef.file_volumes import path_problem, paths_problem
from hutch.wire.guest import CONTROL, encode_frame
from hutch.wire.guest_documents import encode_request
from hutch.wire.taskspec import ContainerSpec, FilesSpec, MountSpec, TaskSpec, VolumeSpec

PIECES = st.sampled_from(["..", ".", "", "a", "b.c", "-", "/", "\0", "é", "..a", " "])


@given(st.lists(PIECES, max_size=12).map("/".join) | st.text(max_size=300))
def test_a_path_that_is_taken_stays_below(path: str) -> None:
    if not path_problem(path):
        whole = posixpath.normpath(posixpath.join("/volume", path))
        assert whole == f"/volume/{path}" and whole.isascii() and whole.isprintable() and len(path) <= 255


@given(
    st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), min_size=1, max_size=6)
)
def test_no_file_is_where_a_directory_is(paths: list[str]) -> None:
    above = {p.rpartition("/")[0] for p in paths} | {p.split("/")[0] for p in paths if "/" in p}
    assert bool(paths_problem(paths)) == bool(above & set(paths))


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,20}(/[a-z]{1,20})?", fullmatch=True), st.text(max_size=30), max_size=40
    ),
    st.sampled_from(["\x01", "é", "😀", '"']),
    st.integers(0, 40_000),
)
def test_all_of_it_arrives_and_each_request_fits_a_frame(
    texts: dict[str, str], character: str, length: int
) -> None:
    texts["long"] = character * length
    found: dict[str, str] = {}
    for members in fill_requests(FilesSpec(texts=texts), "/run/hutch/files/" + "v" * 255):
        encode_frame(CONTROL, 0, encode_request(2**53, "files", members))
        for piece in members["files"]:
            assert piece["append"] == (piece["path"] in found)
            found[piece["path"]] = found.get(piece["path"], "") + piece["text"]
    assert found == texts


def definition(**volume: Any) -> TaskDefinition:
    docker = {"driver": "hutch-secret-files", **volume}
    document = {
        "containerDefinitions": [{"name": "main", "image": "x"}],
        "volumes": [{"name": "plain"}, {"name": "keys", "dockerVolumeConfiguration": docker}],
    }
    return TaskDefinition(family="f", revision=1, registered_at=0, registered_by="", document=document)


def fill(control: Launching, role: str, files: dict[str, str]) -> TaskSpec:
    found = definition(driverOpts=files)
    if role:
        found.document["executionRoleArn"] = role
    containers = (Container(name="main", container_id="c", image="x", cpu=0, memory_mib=None),)
    task = Task(
        task_id="a" * 32,
        cluster="default",
        family="f",
        revision=1,
        launch_type="EC2",
        created_at=0,
        cpu=256,
        memory_mib=512,
        containers=containers,
    )
    spec = task_spec(task, found, None, region=REGION, account_id=ACCOUNT)
    with control.store.read() as reader:
        return control.launch_secrets.fill(reader, spec, found, {})


def test_secrets_are_fetched_as_the_execution_role() -> None:
    control = Launching()
    arn, parameter = control.secret("db", '{"password": "hunter2"}'), control.parameter("/key", "k\0")
    allowed = control.role(
        "a", statement("Allow", "secretsmanager:GetSecretValue"), statement("Allow", "ssm:*")
    )
    wanted = {"password": f"{arn}:password::", "sub/whole": arn, "key": parameter}
    for role in ("", allowed):
        spec = fill(control, role, wanted)
        files = spec.volumes[1].files
        assert files is not None and files.mode == 0o400
        assert files.secrets == {"password": "hunter2", "sub/whole": '{"password": "hunter2"}', "key": "k\0"}
        assert "hunter2" not in repr(without_secrets(spec))
        assert [lacks_files(v) for v in spec.volumes] == [False, False]
        assert [lacks_files(v) for v in without_secrets(spec).volumes] == [False, True]
    denied = control.role("b", statement("Allow", "ssm:*"))
    for role, references, kind in (
        (denied, wanted, "ExecutionRoleDenied"),
        ("", {"a": "/nowhere"}, "SecretNotFound"),
        ("", {"a": f"{arn}:user::"}, "SecretInvalid"),
    ):
        with pytest.raises(LaunchRefused) as caught:
            fill(control, role, references)
        assert caught.value.link.kind == kind and caught.value.link.evidence["volume"] == "keys"
        assert "hunter2" not in caught.value.message
    control.secret("large", "x" * 65_536)
    large = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:large"
    with pytest.raises(LaunchRefused, match="secrets and environment files have") as caught:
        fill(control, "", {str(n): large for n in range(MAX_SECRETS_BYTES // 65_536)})
    assert caught.value.link.kind == "SecretsTooLarge"


FILES = FilesSpec(secret_names=("key",), secrets={"key": "hunter2"})
SPEC = TaskSpec(
    task_id="t",
    cluster="",
    arn="",
    family="",
    revision=0,
    launch_type="FARGATE",
    cpu_units=256,
    memory_mib=512,
    ephemeral_gib=1,
    network_mode="none",
    containers=(
        ContainerSpec(
            name="a",
            container_id="a",
            image="x",
            mounts=(MountSpec(volume="keys", path="/k"), MountSpec(volume="plain", path="/p")),
        ),
    ),
    volumes=(VolumeSpec(name="keys", files=FILES), VolumeSpec(name="plain")),
)


def test_files_are_read_only_and_never_seeded() -> None:
    mounts = task_mounts(SPEC, {})
    assert [(m.volume, m.read_only) for m in mounts.of["a"]] == [("keys", True), ("plain", False)]
    assert mounts.candidates("keys") == () and mounts.candidates("plain") == (("a", "/p"),)
    assert [m["directory"] for m in files_members(SPEC)] == ["/run/hutch/files/keys"]


@pytest.mark.parametrize(
    "files",
    [
        FilesSpec(texts={"../x": ""}),
        FilesSpec(texts={}),
        FilesSpec(texts={"x": ""}, mode=0o4755),
        FilesSpec(texts={"x": ""}, uid=-1),
        FilesSpec(secret_names=("x",)),
    ],
)
def test_a_host_looks_too(files: FilesSpec) -> None:
    with pytest.raises(DriverError, match='volume "v"'):
        check_files(replace(SPEC, volumes=(VolumeSpec(name="v", files=files),)))


def test_a_stopped_task_is_looked_into_without_its_secrets(tmp_path: Any) -> None:
    (tmp_path / "root").touch()
    image = RootImage(reference="x", digest="x", config={}, erofs_path=str(tmp_path / "root"))
    spec = SandboxSpec(
        task=without_secrets(SPEC), directory=str(tmp_path), images={"a": image}, attachment=Attachment()
    )
    found = look_spec(spec, tmp_path / "none")
    check_files(found.task)
    assert found.task.volumes == (VolumeSpec(name="keys"), VolumeSpec(name="plain"))
