"""OCI configurations: Docker's rules for commands, users, environment and capabilities."""

from typing import Any

import pytest

from hutch.host.drivers.contract import DriverError, RootImage
from hutch.host.drivers.oci_config import OciContext, arguments, build_oci_config, resolve_user
from hutch.wire.taskspec import ContainerSpec, MountSpec

PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n"
GROUP = "root:x:0:\nstaff:x:50:app\nwheel:x:10:root,app\n"


def image(**config: object) -> RootImage:
    return RootImage(
        reference="i",
        digest="d",
        config={"Cmd": ["run"], **config},
        erofs_path="/x",
        passwd=PASSWD,
        group=GROUP,
    )


def container(**changes: object) -> ContainerSpec:
    return ContainerSpec(name="c", container_id="c", image="i", **changes)  # type: ignore[arg-type]


def context(owns_kernel: bool = True, mounts: tuple[MountSpec, ...] = ()) -> OciContext:
    return OciContext(
        cgroup_path="/hutch/c1",
        hostname="host",
        namespaces=({"type": "mount"},),
        files={"/etc/hosts": "/scratch/hosts"},
        volumes={"v": "/scratch/v"},
        mounts=mounts,
        owns_kernel=owns_kernel,
    )


def build(*, of: RootImage | None = None, owns_kernel: bool = True, **changes: object) -> dict[str, Any]:
    spec = container(**changes)
    return build_oci_config(spec, of or image(), context(owns_kernel, spec.mounts))


@pytest.mark.parametrize(
    ("entry", "command", "result"),
    [
        (None, None, ["entry", "run"]),
        (None, ("other",), ["entry", "other"]),
        (("mine",), None, ["mine"]),
        (("mine",), ("arg",), ["mine", "arg"]),
    ],
)
def test_a_given_entry_point_drops_the_images_command(
    entry: tuple[str, ...] | None, command: tuple[str, ...] | None, result: list[str]
) -> None:
    assert arguments(container(entry_point=entry, command=command), image(Entrypoint=["entry"])) == result


def test_nothing_to_run_is_an_error() -> None:
    with pytest.raises(DriverError) as caught:
        arguments(container(), image(Cmd=None))
    assert caught.value.kind == "NoCommand"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", (0, 0, [10], "/root")),
        ("app", (1000, 1001, [50, 10], "/home/app")),
        ("1000", (1000, 1001, [50, 10], "/home/app")),
        ("4242", (4242, 0, [], "/")),
        ("app:staff", (1000, 50, [], "/home/app")),
        ("4242:77", (4242, 77, [], "/")),
    ],
)
def test_users_are_found_in_the_image(user: str, expected: tuple[int, int, list[int], str]) -> None:
    assert resolve_user(user, image()) == expected


@pytest.mark.parametrize("user", ["nobody-here", "app:nogroup"])
def test_an_unknown_user_or_group_is_an_error(user: str) -> None:
    with pytest.raises(DriverError) as caught:
        resolve_user(user, image())
    assert caught.value.kind == "UserNotFound"


def test_the_environment_of_the_container_wins() -> None:
    env = build(of=image(Env=["A=image", "PATH=/image"]), environment={"A": "mine"})["process"]["env"]
    assert env == ["PATH=/image", "HOSTNAME=host", "A=mine", "HOME=/root"]


def test_capabilities_are_bounding_only_for_other_users_than_root() -> None:
    capabilities = build(user="app")["process"]["capabilities"]
    assert "CAP_CHOWN" in capabilities["bounding"]
    assert capabilities["effective"] == capabilities["permitted"] == []


def test_capabilities_add_drop_all_and_unknown_ones() -> None:
    def bounding(**changes: Any) -> list[str]:
        result: list[str] = build(**changes)["process"]["capabilities"]["bounding"]
        return result

    assert "CAP_SYS_ADMIN" not in bounding()
    assert bounding(capabilities_drop=("ALL",), capabilities_add=("NET_ADMIN",)) == ["CAP_NET_ADMIN"]
    assert "CAP_SYS_ADMIN" in bounding(capabilities_add=("ALL",))
    assert "CAP_KILL" not in bounding(capabilities_add=("ALL",), capabilities_drop=("KILL",))
    with pytest.raises(DriverError):
        bounding(capabilities_add=("NO_SUCH",))


def test_privileged_takes_the_walls_down_and_plain_keeps_them() -> None:
    linux = build(privileged=True)["linux"]
    assert linux["maskedPaths"] == linux["readonlyPaths"] == []
    assert {"allow": True, "access": "rwm"} in linux["resources"]["devices"]
    plain = build()["linux"]
    assert "/proc/kcore" in plain["maskedPaths"]
    assert plain["resources"]["devices"][0] == {"allow": False, "access": "rwm"}


def test_a_shared_kernel_gets_a_system_call_filter() -> None:
    assert "seccomp" not in build()["linux"]
    assert "seccomp" in build(owns_kernel=False)["linux"]


def test_no_limit_and_the_hosts_limit() -> None:
    limits = {
        x["type"]: x for x in build(ulimits={"core": (-1, -1), "nofile": (9**9, 9**9)})["process"]["rlimits"]
    }
    assert limits["RLIMIT_CORE"]["hard"] == 2**64 - 1
    assert limits["RLIMIT_NOFILE"]["hard"] == 1048576


def test_a_tmpfs_takes_only_a_tmpfss_options() -> None:
    mounts = {m["destination"]: m for m in build(tmpfs={"/t": ("size=4m", "noexec")})["mounts"]}
    assert "size=4m" in mounts["/t"]["options"]
    with pytest.raises(DriverError) as caught:
        build(tmpfs={"/t": ("bind",)})
    assert caught.value.kind == "InvalidTmpfs"


def test_volumes_and_files_are_mounted_where_they_belong() -> None:
    spec = (MountSpec(volume="v", path="/data", read_only=True),)
    mounts = {m["destination"]: m for m in build(mounts=spec)["mounts"]}
    assert mounts["/data"]["source"] == "/scratch/v"
    assert "ro" in mounts["/data"]["options"]
    assert mounts["/etc/hosts"]["source"] == "/scratch/hosts"
