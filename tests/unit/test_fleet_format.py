"""The format of version 1 of the fleet protocol, member by member: hosts and control planes of different releases talk to
one another, and a host reads the handles that an older release wrote."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hutch.wire.facts import CauseFact, ContainerFact, KeptDiskFact, PhaseFact
from hutch.wire.fleet import FromHost, Stop, ToHost
from hutch.wire.image_requests import ImageWanted, PrefetchWanted, PreflightSeen, PreflightWanted
from hutch.wire.taskspec import TaskSpec

FINGERPRINT = {
    "name": "h", "agent_version": "1", "architecture": "x86_64", "cpu_units": 2048, "memory_mib": 4096, "disk_gib": 9,
    "drivers": [{"name": "microvm", "launch_types": ["FARGATE"], "healthy": False, "reason": "r", "details": {"a": "b"}}],
    "attributes": {"ecs.os-type": "linux"},
}  # fmt: skip
TASK_FACTS = {
    "task_id": "t", "status": "STOPPED",
    "containers": [{
        "name": "web", "status": "STOPPED", "runtime_id": "r", "image_digest": "sha256:0", "health": "HEALTHY",
        "exit_code": 137, "reason": "OutOfMemoryError", "restart_count": 2, "started_at": 1.5, "finished_at": 2.5,
        "log_dropped_bytes": 1, "log_waiting_bytes": 2, "log_problem": "p",
    }],
    "stop_code": "EssentialContainerExited", "stopped_reason": "s",
    "causes": [{"kind": "oom", "text": "t", "evidence": {"limit_mib": 512}, "fix": "f"}],
    "phases": [{"name": "pull", "started_at": 1.0, "ended_at": 2.0, "detail": "d"}],
    "network_ready_at": 1.0, "pull_started_at": 1.1, "pull_stopped_at": 1.2, "started_at": 1.3, "suspended_at": 1.4,
    "stopping_at": 1.5, "execution_stopped_at": 1.6, "stopped_at": 1.7,
}  # fmt: skip
CONTAINER = {
    "name": "web", "container_id": "c1", "image": "web:1", "essential": False, "cpu_units": 10, "memory_mib": 64,
    "memory_reservation_mib": 32, "entry_point": ["/bin/sh"], "command": ["-c"], "working_directory": "/w", "user": "1:1",
    "environment": {"A": "b"}, "secret_names": ["S"], "secrets": {"S": "v"}, "hostname": "h",
    "mounts": [{"volume": "v", "path": "/v", "read_only": True}],
    "depends_on": [{"container": "db", "condition": "HEALTHY"}],
    "health_check": {"command": ["true"], "interval_s": 5, "timeout_s": 2, "retries": 1, "start_period_s": 9},
    "restart_policy": {"ignored_exit_codes": [0], "attempt_period_s": 60},
    "stop_timeout_s": 2, "start_timeout_s": 3, "privileged": True, "read_only_root": True, "capabilities_add": ["SYS_ADMIN"],
    "capabilities_drop": ["NET_RAW"], "init_process": True, "tty": True, "interactive": True, "no_new_privileges": True,
    "disable_network": True,
    "devices": [{"host_path": "/dev/fuse", "container_path": "/dev/fuse0", "access": "rw"}],
    "volumes_from": [{"container": "db", "read_only": True}],
    "ulimits": {"nofile": [1, 2]}, "sysctls": {"net.core.somaxconn": "1"}, "tmpfs": {"/t": ["size=64m"]}, "shm_mib": 128,
    "extra_hosts": {"h": "10.0.0.1"}, "dns_servers": ["10.0.0.2"], "dns_search": ["x"], "container_ports": [[80, "tcp"]],
    "log": {"driver": "awslogs", "options": {"awslogs-group": "g"}, "stream": "s", "router": "r", "secret_names": ["o"],
            "secrets": {"o": "v"}},
    "log_router": {"config_path": "/c", "config": "c", "include_path": "/i", "include": "i"},
    "labels": {"l": "1"}, "registry_credentials": ["u", "p"], "metadata_id": "m",
}  # fmt: skip
TASK = {
    "task_id": "t", "cluster": "default", "arn": "arn:t", "family": "f", "revision": 1, "launch_type": "FARGATE",
    "cpu_units": 256, "memory_mib": 512, "cpu_capped": True, "memory_is_limit": False, "ephemeral_gib": 21,
    "network_mode": "awsvpc", "architecture": "arm64",
    "interface": {"eni_id": "e", "mac": "m", "address": "10.0.0.9", "prefix_length": 24, "gateway": "10.0.0.1", "mtu": 1450},
    "containers": [CONTAINER],
    "volumes": [
        {"name": "bound", "source_path": "/srv"},
        {"name": "disk", "disk": {"disk_id": "d", "size_gib": 2, "filesystem": "xfs", "keep": True, "snapshot_id": "s"}},
        {"name": "shared", "shared_name": "n"},
        {"name": "nfs", "file_system": {"file_system_id": "fs", "root": "/r", "owner": [1, 2, 493]}},
        {"name": "files", "files": {"texts": {"a": "b"}, "secret_names": ["s"], "secrets": {"s": "v"}, "mode": 256,
                                    "uid": 1, "gid": 2}},
    ],
    "publish": [{"name": "web", "host_port": 8080, "container_port": 80}],
    "pid_mode": "task", "ipc_mode": "none", "credentials_id": "c", "snapshot_id": "s",
    "surroundings": {"availability_zone": "z", "vpc_id": "v", "private_dns_name": "p", "service": "s", "tags": {"t": "1"}},
}  # fmt: skip
FINDING = {
    "finding_id": "i", "rule": "r", "priority": "WARNING", "text": "t", "description": "d", "tags": ["x"], "container": "web",
    "event": "exec", "at": 1.5, "count": 3, "process": {"pid": 1},
}  # fmt: skip
IMAGE = {"name": "web:1", "digest": "sha256:0", "size_bytes": 1, "architecture": "x86_64", "imported_at": 1.5}

FROM_HOST: list[dict[str, Any]] = [
    {"type": "hello", "protocol": 1, "host_id": "h", "token": "k", "fingerprint": FINGERPRINT, "task_ids": ["t"],
     "local_images": [IMAGE]},
    {"type": "stream", "host_id": "h", "token": "k", "stream_id": "s"},
    {"type": "refreshed", "fingerprint": FINGERPRINT},
    {"type": "alive"},
    {"type": "report", "seq": 7, "facts": TASK_FACTS},
    {"type": "logs", "batch": 1, "task_id": "t", "container": "web", "group": "g", "stream": "s", "create_group": True,
     "events": [[1, "é"]]},
    {"type": "findings", "batch": 1, "task_id": "t", "findings": [FINDING]},
    {"type": "reply", "request_id": "r", "result": {"a": [1]}, "error_kind": "NotFound", "error": "e"},
    {"type": "credentials_wanted", "request_id": "r", "task_id": "t"},
]  # fmt: skip
TO_HOST: list[dict[str, Any]] = [
    {"type": "welcome", "host_id": "h", "acked_seq": 1, "platform_id": "p", "vpc_cidr": "10.0.0.0/16",
     "subnets": [["10.0.0.0/24", "10.0.0.1"]], "alive_every_s": 2.5},
    {"type": "assignments", "tasks": [TASK],
     "stop": [{"type": "stop", "task_id": "t", "stop_code": "c", "reason": "r"}], "later": ["u"]},
    {"type": "assign", "task": TASK},
    {"type": "stop", "task_id": "t", "stop_code": "UserInitiated", "reason": "r"},
    {"type": "ack", "seq": 7},
    {"type": "log_ack", "batch": 1, "error": "e"},
    {"type": "findings_ack", "batch": 1},
    {"type": "credentials_given", "request_id": "r", "role_arn": "a", "access_key_id": "k", "secret_access_key": "s",
     "session_token": "t", "expires_at": 1.5, "error": "e"},
    {"type": "forget", "task_id": "t"},
    {"type": "request", "request_id": "r", "verb": "task.stats", "arguments": {"task_id": "t"}},
]  # fmt: skip
IN_REQUESTS: list[tuple[Any, dict[str, Any]]] = [
    (PrefetchWanted, {"images": [{"reference": "web:1", "credentials": ["u", "p"]}], "launch_types": ["FARGATE"],
                      "architecture": "x86_64", "max_bytes": 1}),
    (PreflightWanted, {"images": [{"reference": "web:1"}], "architecture": "x86_64", "host_ports": [80]}),
    (PreflightSeen, {"images": [{"reference": "web:1", "digest": "sha256:0", "size_bytes": 1, "unpacked_bytes": 2,
                                 "is_here": True, "is_stale": True, "error_kind": "k", "error": "e", "fix": "f"}],
                     "free_bytes": 1, "busy_ports": {"80": "nginx"}}),
    (KeptDiskFact, {"task_id": "t", "is_kept": True, "bytes": 1, "kept_at": 1.5, "until": 2.5, "is_open": True,
                    "since": 3.5, "reason": "r"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        *(pytest.param(FromHost, document, id=document["type"]) for document in FROM_HOST),
        *(pytest.param(ToHost, document, id=document["type"]) for document in TO_HOST),
        *(pytest.param(kind, document, id=kind.__name__) for kind, document in IN_REQUESTS),
    ],
)
def test_every_member_is_read_and_written_by_its_name(kind: Any, document: dict[str, Any]) -> None:
    data = msgspec.msgpack.encode(document)
    assert msgspec.msgpack.encode(msgspec.msgpack.decode(data, type=kind)) == data


def _members(value: Any) -> Iterator[tuple[type, str, bool]]:
    """(type, member, whether it has another value than its default) of all parts of a message."""
    if isinstance(value, msgspec.Struct):
        said = msgspec.to_builtins(value)
        for name in value.__struct_fields__:
            yield type(value), name, isinstance(said, list) or name in said
            yield from _members(getattr(value, name))
    elif isinstance(value, tuple):
        for part in value:
            yield from _members(part)


def test_every_message_and_every_member_is_here() -> None:
    assert {d["type"] for d in FROM_HOST} == {t.__struct_config__.tag for t in FromHost.__args__}
    assert {d["type"] for d in TO_HOST} == {t.__struct_config__.tag for t in ToHost.__args__}
    documents = [
        *((FromHost, d) for d in FROM_HOST),
        *((ToHost, d) for d in TO_HOST),
        *IN_REQUESTS,
    ]
    members = [m for kind, document in documents for m in _members(msgspec.convert(document, kind))]
    fixed = {(kind, name) for kind, name, is_said in members if is_said}
    assert {(kind, name) for kind, name, _ in members} == fixed


@pytest.mark.parametrize(
    ("message", "document"),
    [
        (PhaseFact(name="n", started_at=1.0), {"name": "n", "started_at": 1.0}),
        (ContainerFact(name="web", status="PENDING"), {"name": "web", "status": "PENDING"}),
        (CauseFact(kind="k", text="t"), {"kind": "k", "text": "t"}),
        (ImageWanted(reference="web:1"), {"reference": "web:1"}),
    ],
)
def test_what_is_as_usual_is_not_said(message: Any, document: dict[str, Any]) -> None:
    assert msgspec.to_builtins(message) == document


def test_a_member_of_a_newer_release_is_passed_over() -> None:
    task = msgspec.convert({**TASK, "of_a_newer_release": 1}, TaskSpec)
    assert task == msgspec.convert(TASK, TaskSpec)


def test_the_bytes_of_a_message_stay_as_they_were() -> None:
    data = b"\x82\xa4type\xa4stop\xa7task_id\xa1t"
    message = msgspec.msgpack.decode(data, type=ToHost)
    assert message == Stop(task_id="t") and msgspec.msgpack.encode(message) == data
