"""RegisterTaskDefinition: every rule of AWS's that hutch applies, in AWS's words (reference B.2)."""

from typing import Any

import msgspec
import pytest

from hutch.base.errors import Invalid
from hutch.rules.taskdef.register import register

AWSLOGS = {
    "logDriver": "awslogs",
    "options": {"awslogs-group": "/g", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "p"},
}
CHECK = {"command": ["CMD", "true"]}


def definition(*containers: dict[str, Any], **task: Any) -> dict[str, Any]:
    """A good FARGATE definition, with what is given in place of its own. None removes a member."""
    made = [{"name": f"c{i}" if i else "main", "image": "x", **c} for i, c in enumerate(containers or ({},))]
    given = {
        "family": "f",
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{k: v for k, v in c.items() if v is not None} for c in made],
        **task,
    }
    return {k: v for k, v in given.items() if v is not None}


def log(**options: str | None) -> dict[str, Any]:
    merged = {**AWSLOGS["options"], **{k.replace("_", "-"): v for k, v in options.items()}}  # type: ignore[dict-item]
    return {
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {k: v for k, v in merged.items() if v is not None},
        }
    }


def docker(**volume: Any) -> dict[str, Any]:
    return definition(volumes=[{"name": "v", "dockerVolumeConfiguration": volume}])


def linux(**parameters: Any) -> dict[str, Any]:
    return definition({"linuxParameters": parameters})


ROLE = "arn:aws:iam::000000000000:role/r"

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # The task as a whole.
    ("family", definition(family="a b"), "Family contains invalid characters."),
    ("family long", definition(family="f" * 256), "Family contains invalid characters."),
    ("size", definition({"environment": [{"name": "A", "value": "x" * 70_000}]}), "at most 65536 bytes"),
    ("mode missing", definition(networkMode=None), "Fargate only supports network mode ‘awsvpc’."),
    ("mode bridge", definition(networkMode="bridge"), "Fargate only supports network mode ‘awsvpc’."),
    ("mode unknown", definition(networkMode="weird", requiresCompatibilities=["EC2"]), "Network mode weird is not"),
    ("cpu missing", definition(cpu=None), "Fargate requires that 'cpu' be defined at the task level."),
    (
        "memory missing",
        definition({"memory": 128}, memory=None),
        "Fargate requires that 'memory' be defined at the task level.",
    ),
    ("cpu text", definition(cpu="much"), "Invalid 'cpu' setting for task"),
    ("memory text", definition(memory="much"), "Invalid 'memory' setting for task"),
    (
        "constraints",
        definition(placementConstraints=[{"type": "memberOf", "expression": "attribute:a == b"}]),
        "Fargate compatible task definitions do not support constraints",
    ),
    (
        "sourcePath",
        definition(volumes=[{"name": "v", "host": {"sourcePath": "/srv"}}]),
        "Fargate compatible task definitions do not support sourcePath",
    ),
    ("external", definition(requiresCompatibilities=["EXTERNAL"]), "not compatible with EXTERNAL"),
    # Volumes.
    ("volume name", definition(volumes=[{"name": "a/b"}]), "Volume name 'a/b' is invalid"),
    ("volume twice", definition(volumes=[{"name": "v"}, {"name": "v"}]), "Duplicate volume name v."),
    (
        "source path",
        definition(volumes=[{"name": "v", "host": {"sourcePath": "/a/../etc"}}], requiresCompatibilities=["EC2"]),
        "absolute path without '..'",
    ),
    (
        "mount unknown",
        definition({"mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}]}),
        "mounts unknown volume 'v'",
    ),
    (
        "mount path",
        definition({"mountPoints": [{"sourceVolume": "v", "containerPath": "v"}]}, volumes=[{"name": "v"}]),
        "containerPath must be an absolute path",
    ),
    (
        "mount twice",
        definition({"mountPoints": [{"sourceVolume": "v", "containerPath": "/v"}] * 2}, volumes=[{"name": "v"}]),
        "mounts two volumes at /v",
    ),
    (
        "volume of two kinds",
        definition(volumes=[{"name": "v", "configuredAtLaunch": True, "dockerVolumeConfiguration": {"scope": "task"}}]),
        "can be only one of",
    ),
    (
        "two at launch",
        definition(volumes=[{"name": n, "configuredAtLaunch": True} for n in "vw"]),
        "Only one volume of a task definition can be configured at launch",
    ),
    ("volume driver", docker(driver="rexray/ebs"), "only the volume drivers local, hutch-files and"),
    ("shared files", docker(driver="hutch-files", scope="shared", driverOpts={"a": ""}), "scope must be task"),
    ("no files", docker(driver="hutch-files"), "between 1 and 100"),
    ("many files", docker(driver="hutch-files", driverOpts={str(n): "" for n in range(101)}), "between 1 and 100"),
    ("file outside", docker(driver="hutch-files", driverOpts={"../a": ""}), "the path '../a' must be relative"),
    ("long path", docker(driver="hutch-files", driverOpts={"a" * 256: ""}), "is longer than 255 bytes"),
    ("file in a file", docker(driver="hutch-files", driverOpts={"a": "", "a/b": ""}), "'a' can't be a file and"),
    ("large files", docker(driver="hutch-files", driverOpts={"a": "x" * 70_000}), "at most 65536 bytes"),
    ("secret file", docker(driver="hutch-secret-files", driverOpts={"a": "arn:x"}), "secret a: 'arn:x' is neither"),
    (
        "mode",
        docker(driver="hutch-files", driverOpts={"a": ""}, labels={"hutch:mode": "4755"}),
        "three octal digits",
    ),
    ("owner", docker(driver="hutch-files", driverOpts={"a": ""}, labels={"hutch:uid": "app"}), "hutch:uid must be"),
    (
        "label",
        docker(driver="hutch-files", driverOpts={"a": ""}, labels={"hutch:owner": "0"}),
        "is not one of hutch:mode",
    ),
    ("volume options", docker(driverOpts={"type": "nfs"}), "takes no driverOpts"),
    ("volume scope", docker(scope="world"), "scope must be task or shared"),
    ("not made", docker(scope="shared"), "set autoprovision to true"),
    ("made for nothing", docker(autoprovision=True), "autoprovision is for volumes of scope shared"),
    ("pid mode", definition(pidMode="all"), "pidMode 'all' is not one of host, task"),
    ("ipc mode", definition(ipcMode="x"), "ipcMode 'x' is not one of host, task, none"),
    ("pid of the host", definition(pidMode="host"), "support only pidMode task"),
    ("windows", definition(runtimePlatform={"operatingSystemFamily": "WINDOWS_SERVER_2022_CORE"}), "hutch runs Linux"),
    ("gelf", definition({"logConfiguration": {"logDriver": "gelf"}}), "run a log router in the task"),
    (
        "log driver",
        definition({"logConfiguration": {"logDriver": "x"}}),
        "use one of awslogs, awsfirelens, fluentd, json-file, local, none, syslog",
    ),
    (
        "log option",
        definition({"logConfiguration": {"logDriver": "json-file", "options": {"compress": "true"}}}),
        "log driver json-file has no option 'compress'",
    ),
    # What a container asks of its kernel.
    ("capability", linux(capabilities={"add": ["sys admin"]}), "'sys admin' is not the name of a capability"),
    ("shm", linux(sharedMemorySize=0), "sharedMemorySize must be between"),
    ("tmpfs", linux(tmpfs=[{"containerPath": "x", "size": 1}]), "tmpfs needs an absolute containerPath"),
    ("device", linux(devices=[{"hostPath": "/dev/../x"}]), "devices need an absolute hostPath"),
    ("apparmor", definition({"dockerSecurityOptions": ["apparmor:x"]}), "use no-new-privileges"),
    ("sysctl", definition({"systemControls": [{"namespace": "vm.swappiness", "value": "1"}]}), "a container's own"),
    ("dns", definition({"dnsServers": ["dns.corp"]}), "dnsServers: 'dns.corp' is not an IP address"),
    ("search", definition({"dnsSearchDomains": ["a\nb"]}), "is not a domain"),
    ("extra host", definition({"extraHosts": [{"hostname": "a", "ipAddress": "b"}]}), "'b' is not an IP address"),
    ("no network", definition({"hostname": "a", "disableNetworking": True}), "exclude each other"),
    ("volumes from", definition({"volumesFrom": [{"sourceContainer": "x"}]}), "which is not another container"),
    (
        "volumes in a circle",
        definition({"volumesFrom": [{"sourceContainer": "c1"}]}, {"volumesFrom": [{"sourceContainer": "main"}]}),
        "volumesFrom form a cycle",
    ),
    # Containers.
    ("none", {**definition(), "containerDefinitions": []}, "Container list cannot be empty."),
    ("eleven", definition(*({} for _ in range(11))), "Too many containers"),
    ("no name", definition({"name": None}), "Container.name should not be null or empty."),
    ("no image", definition({"image": ""}), "Container.image should not be null or empty."),
    ("name", definition({"name": "a b"}), "Container.name contains invalid characters."),
    ("image", definition({"image": "a b"}), "Container.image contains invalid characters"),
    ("nameless variable", definition({"environment": [{"value": "x"}]}), "variable needs a name"),
    ("little reserved", definition({"memoryReservation": -5}), "'memoryReservation' must be at least 6"),
    ("no disk", definition(ephemeralStorage={"sizeInGiB": -5}), "EphemeralStorage size must be"),
    (
        "control without a value",
        definition({"systemControls": [{"namespace": "net.core.somaxconn"}]}),
        "needs a value",
    ),
    ("names twice", definition({}, {"name": "main"}), "must be unique"),
    ("essential", definition({"essential": False}), "Task definition doesn't have any essential container"),
    (
        "no memory",
        definition(requiresCompatibilities=["EC2"], memory=None, networkMode="bridge"),
        "Invalid setting for container 'main'. At least one of 'memory' or 'memoryReservation' must be specified.",
    ),
    ("least memory", definition({"memory": 5}), "'memory' must be at least 6 MiB"),
    ("reservation", definition({"memory": 100, "memoryReservation": 101}), "greater than or equal to"),
    (
        "memory of the task",
        definition({"memory": 513}),
        "The 'memory' setting for container 'main' is greater than for the task",
    ),
    ("sum of memory", definition({"memory": 300}, {"memory": 300}), "The containers' memory (600 MiB) is more"),
    ("sum of cpu", definition({"cpu": 200}, {"cpu": 57}), "The containers' cpu (257) is more than the task's (256)"),
    ("cpu", definition({"cpu": -1}), "'cpu' can't be negative"),
    # Ports.
    (
        "host port",
        definition({"portMappings": [{"containerPort": 80, "hostPort": 8080}]}),
        "When networkMode=awsvpc, the host ports and container ports in port mappings must match.",
    ),
    (
        "host port in host mode",
        definition(
            {"portMappings": [{"containerPort": 80, "hostPort": 8080}]},
            networkMode="host",
            requiresCompatibilities=["EC2"],
        ),
        "When networkMode=host, the host ports and container ports in port mappings must match.",
    ),
    ("port", definition({"portMappings": [{"containerPort": 70000}]}), "Invalid containerPort 70000"),
    ("port zero", definition({"portMappings": [{"containerPort": 0}]}), "Invalid containerPort 0"),
    (
        "port name",
        definition({"portMappings": [{"containerPort": 80, "name": "-a"}]}),
        "Invalid port mapping name '-a'",
    ),
    (
        "port twice",
        definition({"portMappings": [{"containerPort": 80}, {"containerPort": 80}]}),
        "Duplicate port mapping 80/tcp",
    ),
    # Health checks, time-outs, limits.
    ("health command", definition({"healthCheck": {"command": ["true"]}}), "must start with CMD or CMD-SHELL"),
    ("health alone", definition({"healthCheck": {"command": ["CMD"]}}), "must start with CMD or CMD-SHELL"),
    *(
        (f"health {name} {value}", definition({"healthCheck": {**CHECK, name: value}}), f"Health check {name} must be")
        for name, values in {
            "interval": (4, 301),
            "timeout": (1, 61),
            "retries": (0, 11),
            "startPeriod": (-1, 301),
        }.items()
        for value in values
    ),
    (
        "start timeout",
        definition({"startTimeout": 1}),
        "Granular start timeout on container 'main' must be at least 2 seconds.",
    ),
    (
        "stop timeout",
        definition({"stopTimeout": 1}),
        "Granular stop timeout on container 'main' must be at least 2 seconds.",
    ),
    (
        "restart period",
        definition({"restartPolicy": {"enabled": True, "restartAttemptPeriod": 59}}),
        "restartAttemptPeriod must be between 60 and 1800",
    ),
    (
        "exit codes",
        definition({"restartPolicy": {"enabled": True, "ignoredExitCodes": list(range(51))}}),
        "ignoredExitCodes can have at most 50",
    ),
    (
        "ulimit",
        definition({"ulimits": [{"name": "nofile", "softLimit": 2, "hardLimit": 1}]}),
        "Soft limit exceeds hard limit for ulimit nofile",
    ),
    ("hostname", definition({"hostname": "a_b"}), "is not a host name"),
    # Dependencies.
    (
        "unknown",
        definition({"dependsOn": [{"containerName": "x", "condition": "START"}]}),
        "Cannot depend on container + 'x' because it does not exist",
    ),
    (
        "success of an essential",
        definition({"dependsOn": [{"containerName": "c1", "condition": "SUCCESS"}]}, {}),
        "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
    ),
    (
        "complete of an essential",
        definition({"dependsOn": [{"containerName": "c1", "condition": "COMPLETE"}]}, {}),
        "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container",
    ),
    (
        "healthy without a check",
        definition({"dependsOn": [{"containerName": "c1", "condition": "HEALTHY"}]}, {}),
        "A dependency container with HEALTHY condition must have health check configured",
    ),
    ("itself", definition({"dependsOn": [{"containerName": "main", "condition": "START"}]}), "form a cycle"),
    (
        "cycle",
        definition(
            {"dependsOn": [{"containerName": "c1", "condition": "START"}]},
            {"dependsOn": [{"containerName": "main", "condition": "START"}]},
        ),
        "form a cycle",
    ),
    # Logs.
    ("driver", definition({"logConfiguration": {"logDriver": "syslog"}}), "syslog"),
    ("no group", definition(log(awslogs_group=None)), "Log driver awslogs requires options: awslogs-region, awslogs-group"),
    ("no region", definition(log(awslogs_region=None)), "Log driver awslogs requires options: awslogs-region, awslogs-group"),
    ("option", definition(log(awslogs_colour="red")), "Log driver awslogs has no option 'awslogs-colour'"),
    ("log mode", definition(log(mode="maybe")), "mode must be blocking or non-blocking"),
    ("buffer", definition(log(max_buffer_size="big")), "max-buffer-size must be a size"),
    ("group name", definition(log(awslogs_group="a b")), "is not a log group name"),
    (
        "both",
        definition(log(awslogs_datetime_format="%Y", awslogs_multiline_pattern="^x")),
        "awslogs-datetime-format and awslogs-multiline-pattern exclude each other",
    ),
    ("pattern", definition(log(awslogs_multiline_pattern="(")), "awslogs-multiline-pattern is not a regular expression"),
    ("look-ahead", definition(log(awslogs_multiline_pattern="(?=a)")), "awslogs-multiline-pattern is not a regular"),
    ("long pattern", definition(log(awslogs_multiline_pattern="x" * 513)), "at most 512 characters"),
]  # fmt: skip

SOFT: list[tuple[str, dict[str, Any], str]] = [
    (
        "pair",
        definition(cpu="1024", memory="9216"),
        "No Fargate configuration exists for given values: 1024 CPU, 9216 memory.",
    ),
    (
        "disk small",
        definition(ephemeralStorage={"sizeInGiB": 20}),
        "EphemeralStorage size should be at least 21",
    ),
    (
        "disk big",
        definition(ephemeralStorage={"sizeInGiB": 201}),
        "EphemeralStorage size should be at most 200",
    ),
    (
        "privileged",
        definition({"privileged": True}),
        "Fargate requires that the 'privileged' setting be 'false'",
    ),
    (
        "capability",
        definition({"linuxParameters": {"capabilities": {"add": ["NET_ADMIN"]}}}),
        "support only SYS_PTRACE",
    ),
    (
        "stop timeout",
        definition({"stopTimeout": 121}),
        "Tasks using the Fargate launch type must have a container stop timeout of less than 120 seconds.",
    ),
    (
        "execution role",
        definition(log()),
        "Fargate requires task definition to have execution role ARN to support log driver awslogs.",
    ),
    (
        "stream prefix",
        definition(log(awslogs_stream_prefix=None), executionRoleArn=ROLE),
        "Log driver awslogs requires options: awslogs-region, awslogs-group, awslogs-stream-prefix",
    ),
    (
        "json-file",
        definition({"logConfiguration": {"logDriver": "json-file"}}),
        "json-file is not a valid log driver. Must be one of [awslogs, splunk, awsfirelens]",
    ),
    *(
        (
            name,
            definition({"linuxParameters": {name: value}}),
            f"Fargate compatible task definitions do not support {name}",
        )
        for name, value in {
            "devices": [{"hostPath": "/dev/fuse"}],
            "sharedMemorySize": 64,
            "maxSwap": 1,
            "swappiness": 1,
            "tmpfs": [{"containerPath": "/t", "size": 1}],
        }.items()
    ),
    *(
        (name, definition({name: value}), f"Fargate compatible task definitions do not support {name}")
        for name, value in {
            "dnsServers": ["1.1.1.1"],
            "dnsSearchDomains": ["x"],
            "extraHosts": [{"hostname": "a", "ipAddress": "1.1.1.1"}],
            "dockerSecurityOptions": ["no-new-privileges"],
            "disableNetworking": True,
        }.items()
    ),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("given", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_is_refused(given: dict[str, Any], words: str, strict: bool) -> None:
    with pytest.raises(Invalid) as refused:
        register(given, strict_aws=strict)
    assert words in refused.value.message
    assert refused.value.code == "ClientException"


@pytest.mark.parametrize(("given", "words"), [c[1:] for c in SOFT], ids=[c[0] for c in SOFT])
def test_what_only_aws_refuses_is_a_warning_and_an_error_where_that_is_wanted(
    given: dict[str, Any], words: str
) -> None:
    accepted = register(given, strict_aws=False)
    assert any(words in w for w in accepted.warnings) and "FARGATE" in accepted.compatibilities
    with pytest.raises(Invalid) as refused:
        register(given, strict_aws=True)
    assert words in refused.value.message and refused.value.code == "ClientException"
    on_ec2 = register({**given, "requiresCompatibilities": ["EC2"]}, strict_aws=True)
    assert on_ec2.warnings == ()


@pytest.mark.parametrize(
    "given",
    [
        definition(),
        definition({"stopTimeout": 120}, ephemeralStorage={"sizeInGiB": 21}),
        definition(log(), executionRoleArn=ROLE),
        definition({"linuxParameters": {"capabilities": {"add": ["SYS_PTRACE"], "drop": ["ALL"]}}}),
        definition(cpu=".25 vCPU", memory="0.5 GB"),
        definition({"dependsOn": [{"containerName": "c1", "condition": "SUCCESS"}]}, {"essential": False}),
        definition({"dependsOn": [{"containerName": "c1", "condition": "HEALTHY"}]}, {"healthCheck": CHECK}),
        definition(*({} for _ in range(10))),
    ],
)
def test_what_aws_accepts_has_no_warning(given: dict[str, Any]) -> None:
    made = register(given, strict_aws=True)
    assert made.warnings == () and made.compatibilities == ("EC2", "FARGATE")
    assert (made.document["cpu"], made.document["memory"]) == ("256", "512")


def test_defaults_are_filled_in() -> None:
    made = register(
        definition({"portMappings": [{"containerPort": 80}], "healthCheck": CHECK}), strict_aws=True
    )
    container = made.document["containerDefinitions"][0]
    assert (container["cpu"], container["essential"]) == (0, True)
    assert container["portMappings"] == [{"containerPort": 80, "hostPort": 80, "protocol": "tcp"}]
    for name in ("environment", "mountPoints", "volumesFrom", "systemControls"):
        assert container[name] == []
    assert container["healthCheck"] == {**CHECK, "interval": 30, "timeout": 5, "retries": 3}
    assert made.document["volumes"] == made.document["placementConstraints"] == []
    assert "ecs.capability.task-eni" in made.requires_attributes
    bridge = register(
        definition(
            {"portMappings": [{"containerPort": 80}]}, networkMode="bridge", requiresCompatibilities=["EC2"]
        ),
        strict_aws=True,
    )
    assert bridge.document["containerDefinitions"][0]["portMappings"][0]["hostPort"] == 0
    assert bridge.compatibilities == ("EC2", "EXTERNAL")


def test_what_is_given_is_not_changed() -> None:
    given = definition({"portMappings": [{"containerPort": 80}]}, cpu="1 vCPU", memory="2 GB")
    before = msgspec.json.encode(given)
    register(given, strict_aws=False)
    assert msgspec.json.encode(given) == before
