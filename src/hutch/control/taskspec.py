"""From a task and its task definition to what a host needs to run it: all overrides applied, all defaults filled in."""

from typing import Any

from msgspec.structs import replace

from hutch.control.logrouter import log_router_place, log_router_spec, router_of, secret_variables
from hutch.model.network import Subnet
from hutch.model.task import Container, Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules.logdrivers import firelens
from hutch.rules.logdrivers.checks import uses_router
from hutch.rules.taskdef.file_volumes import file_volume
from hutch.rules.taskdef.linux import device_access, no_new_privileges
from hutch.rules.taskdef.volumes import shared_name
from hutch.wire.taskspec import (
    ContainerSpec,
    DependencySpec,
    DeviceSpec,
    DiskSpec,
    FilesSpec,
    HealthCheckSpec,
    InterfaceSpec,
    LogSpec,
    MountSpec,
    PublishSpec,
    RestartPolicySpec,
    TaskSpec,
    VolumesFromSpec,
    VolumeSpec,
)

DEFAULT_EPHEMERAL_GIB = 20
DEFAULT_STOP_TIMEOUT_S = 30
DEFAULT_SHM_MIB = 64
ARCHITECTURES = {"X86_64": "x86_64", "ARM64": "aarch64"}


def task_spec(
    task: Task, definition: TaskDefinition, subnet: Subnet | None, *, region: str, account_id: str
) -> TaskSpec:
    """Everything that a host needs. `subnet` is the one of the task's interface, if it has one."""
    document = definition.document
    platform = document.get("runtimePlatform", {})
    arn = f"arn:aws:ecs:{region}:{account_id}:task/{task.cluster}/{task.task_id}"
    return TaskSpec(
        task_id=task.task_id,
        cluster=task.cluster,
        arn=arn,
        family=task.family,
        revision=task.revision,
        launch_type=task.launch_type,
        cpu_units=task.cpu,
        cpu_capped=task.cpu_capped,
        memory_mib=task.memory_mib,
        memory_is_limit=task.launch_type == "FARGATE" or bool(_task_memory(task, document)),
        ephemeral_gib=task.ephemeral_gib or DEFAULT_EPHEMERAL_GIB,
        network_mode=document.get("networkMode", "bridge"),
        architecture=ARCHITECTURES[platform.get("cpuArchitecture", "X86_64")],
        interface=_interface(task, subnet),
        containers=tuple(_container_spec(task, c, document, region, arn) for c in task.containers),
        volumes=tuple(_volume(task, v) for v in document.get("volumes", [])),
        publish=tuple(
            PublishSpec(name=e.name, host_port=e.host_port, container_port=e.container_port)
            for e in task.endpoints
        ),
        pid_mode=document.get("pidMode", ""),
        ipc_mode=document.get("ipcMode", ""),
        snapshot_id=task.snapshot_id,
    )


def _task_memory(task: Task, document: dict[str, Any]) -> str:
    """The memory that was asked for at task level; "" if only its containers say what they need."""
    return str(task.overrides.get("memory") or document.get("memory") or "")


def _volume(task: Task, volume: dict[str, Any]) -> VolumeSpec:
    made = next((v for v in task.volumes if v.name == volume["name"]), None)
    disk = None
    if made is not None:
        disk = DiskSpec(
            disk_id=made.volume_id,
            size_gib=made.size_gib,
            filesystem=made.filesystem,
            keep=not made.delete_on_termination,
            snapshot_id=made.snapshot_id,
        )
    return VolumeSpec(
        name=volume["name"],
        source_path=volume.get("host", {}).get("sourcePath", ""),
        disk=disk,
        shared_name=shared_name(volume),
        files=_files(volume),
    )


def _files(volume: dict[str, Any]) -> FilesSpec | None:
    """Without the values of secrets, which are filled in for the assignment (`launch_secrets`)."""
    found = file_volume(volume)
    if found is None:
        return None
    names = tuple(found.references)
    return FilesSpec(texts=found.texts, secret_names=names, mode=found.mode, uid=found.uid, gid=found.gid)


def _interface(task: Task, subnet: Subnet | None) -> InterfaceSpec | None:
    if task.network is None or subnet is None:
        return None
    base, _, prefix = subnet.cidr.partition("/")
    head, _, last = base.rpartition(".")
    return InterfaceSpec(
        eni_id=task.network.eni_id,
        mac=task.network.mac,
        address=task.network.private_ipv4,
        prefix_length=int(prefix),
        gateway=f"{head}.{int(last) + 1}",
    )


def _container_spec(
    task: Task, container: Container, document: dict[str, Any], region: str, arn: str
) -> ContainerSpec:
    definition = next(d for d in document["containerDefinitions"] if d["name"] == container.name)
    override = _override(task, container)
    linux = definition.get("linuxParameters", {})
    capabilities = linux.get("capabilities", {})
    return ContainerSpec(
        name=container.name,
        container_id=container.container_id,
        image=definition["image"],
        essential=container.essential,
        cpu_units=container.cpu,
        memory_mib=container.memory_mib,
        memory_reservation_mib=container.memory_reservation_mib,
        entry_point=_words(definition.get("entryPoint")),
        command=_words(override.get("command", definition.get("command"))),
        working_directory=definition.get("workingDirectory"),
        user=definition.get("user"),
        environment=_environment(task, definition, override, region) | log_router_place(document, definition),
        secret_names=_secret_names(definition, document),
        hostname=definition.get("hostname", ""),
        mounts=_mounts(definition),
        depends_on=_dependencies(definition, document),
        health_check=_health_check(definition.get("healthCheck")),
        restart_policy=_restart_policy(definition.get("restartPolicy")),
        stop_timeout_s=definition.get("stopTimeout", DEFAULT_STOP_TIMEOUT_S),
        start_timeout_s=definition.get("startTimeout"),
        privileged=definition.get("privileged", False),
        read_only_root=definition.get("readonlyRootFilesystem", False),
        capabilities_add=tuple(capabilities.get("add", ())),
        capabilities_drop=tuple(capabilities.get("drop", ())),
        init_process=linux.get("initProcessEnabled", False),
        tty=definition.get("pseudoTerminal", False),
        interactive=definition.get("interactive", False),
        no_new_privileges=no_new_privileges(definition),
        disable_network=definition.get("disableNetworking", False),
        devices=_devices(linux),
        volumes_from=_volumes_from(definition),
        ulimits={u["name"]: (u["softLimit"], u["hardLimit"]) for u in definition.get("ulimits", [])},
        sysctls={s["namespace"]: s["value"] for s in definition.get("systemControls", [])},
        tmpfs=_tmpfs(linux),
        shm_mib=linux.get("sharedMemorySize", DEFAULT_SHM_MIB),
        extra_hosts={h["hostname"]: h["ipAddress"] for h in definition.get("extraHosts", [])},
        dns_servers=tuple(definition.get("dnsServers", ())),
        dns_search=tuple(definition.get("dnsSearchDomains", ())),
        container_ports=_ports(definition),
        log=_log(task, definition, document),
        log_router=log_router_spec(task, definition, document, arn),
        labels=_labels(task, definition, arn),
    )


def _override(task: Task, container: Container) -> dict[str, Any]:
    overrides: list[dict[str, Any]] = task.overrides.get("containerOverrides", [])
    return next((o for o in overrides if o.get("name") == container.name), {})


def _secret_names(definition: dict[str, Any], document: dict[str, Any]) -> tuple[str, ...]:
    """A log router has also the secrets of the containers whose output it takes."""
    names = [s["name"] for s in definition.get("secrets", [])]
    if definition.get("firelensConfiguration"):
        names += secret_variables(document["containerDefinitions"])
    return tuple(names)


def _mounts(definition: dict[str, Any]) -> tuple[MountSpec, ...]:
    return tuple(
        MountSpec(volume=m["sourceVolume"], path=m["containerPath"], read_only=m.get("readOnly", False))
        for m in definition.get("mountPoints", [])
    )


def _volumes_from(definition: dict[str, Any]) -> tuple[VolumesFromSpec, ...]:
    return tuple(
        VolumesFromSpec(container=v["sourceContainer"], read_only=v.get("readOnly", False))
        for v in definition.get("volumesFrom", [])
    )


def _devices(linux: dict[str, Any]) -> tuple[DeviceSpec, ...]:
    return tuple(
        DeviceSpec(
            host_path=d["hostPath"],
            container_path=d.get("containerPath") or d["hostPath"],
            access=device_access(d),
        )
        for d in linux.get("devices", [])
    )


def _tmpfs(linux: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        t["containerPath"]: (f"size={t['size']}m", *t.get("mountOptions", ())) for t in linux.get("tmpfs", [])
    }


def _ports(definition: dict[str, Any]) -> tuple[tuple[int, str], ...]:
    """Without port ranges, which have no port of their own."""
    return tuple(
        (p["containerPort"], p.get("protocol", "tcp"))
        for p in definition.get("portMappings", [])
        if "containerPort" in p
    )


def _dependencies(definition: dict[str, Any], document: dict[str, Any]) -> tuple[DependencySpec, ...]:
    """What was asked for; and the log router is there before those whose logs it takes, and until they have ended."""
    found = [
        DependencySpec(container=d["containerName"], condition=d["condition"])
        for d in definition.get("dependsOn", [])
    ]
    if uses_router(definition) and router_of(document) not in (d.container for d in found):
        found.append(DependencySpec(container=router_of(document), condition="START"))
    return tuple(found)


def _words(value: list[str] | None) -> tuple[str, ...] | None:
    """An empty list in a task definition means, as in Docker, the same as none."""
    return tuple(value) if value else None


def _environment(
    task: Task, definition: dict[str, Any], override: dict[str, Any], region: str
) -> dict[str, str]:
    """What AWS sets comes first and can be replaced, as on Fargate; overrides win over the definition."""
    values = {
        "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE" if task.launch_type == "FARGATE" else "AWS_ECS_EC2",
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
    }
    for source in (definition, override):
        values.update({e["name"]: e.get("value", "") for e in source.get("environment", []) if e.get("name")})
    return values


def _health_check(check: dict[str, Any] | None) -> HealthCheckSpec | None:
    if not check or check["command"] == ["NONE"]:
        return None
    kind, *rest = check["command"]
    command = ("/bin/sh", "-c", " ".join(rest)) if kind == "CMD-SHELL" else tuple(rest)
    return HealthCheckSpec(
        command=command,
        interval_s=check.get("interval", 30),
        timeout_s=check.get("timeout", 5),
        retries=check.get("retries", 3),
        start_period_s=check.get("startPeriod", 0),
    )


def _restart_policy(policy: dict[str, Any] | None) -> RestartPolicySpec | None:
    if not policy or not policy.get("enabled"):
        return None
    return RestartPolicySpec(
        ignored_exit_codes=tuple(policy.get("ignoredExitCodes", ())),
        attempt_period_s=policy.get("restartAttemptPeriod", 300),
    )


def _log(task: Task, definition: dict[str, Any], document: dict[str, Any]) -> LogSpec:
    configuration = definition.get("logConfiguration", {})
    driver = configuration.get("logDriver", "")
    options: dict[str, str] = configuration.get("options") or {}
    if driver in ("", "none"):
        return LogSpec()
    stream, router, secrets = "", "", ()
    if driver == "awslogs":
        prefix = options.get("awslogs-stream-prefix", "")
        stream = "/".join(p for p in (prefix, definition["name"], task.task_id) if p)
    if driver == firelens.DRIVER:
        # Its secrets are the router's.
        router = router_of(document)
    else:
        secrets = tuple(s["name"] for s in configuration.get("secretOptions") or ())
    return LogSpec(driver=driver, options=options, stream=stream, router=router, secret_names=secrets)


def _labels(task: Task, definition: dict[str, Any], arn: str) -> dict[str, str]:
    return {
        **definition.get("dockerLabels", {}),
        "com.amazonaws.ecs.cluster": task.cluster,
        "com.amazonaws.ecs.container-name": definition["name"],
        "com.amazonaws.ecs.task-arn": arn,
        "com.amazonaws.ecs.task-definition-family": task.family,
        "com.amazonaws.ecs.task-definition-version": str(task.revision),
    }


def with_credentials(spec: TaskSpec, credentials_id: str) -> TaskSpec:
    """The task with a place to ask for its role's credentials, if it has a role and an interface to ask through."""
    if not credentials_id or spec.interface is None:
        return spec
    where = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": f"/v2/credentials/{credentials_id}"}
    containers = tuple(replace(c, environment={**where, **c.environment}) for c in spec.containers)
    return replace(spec, credentials_id=credentials_id, containers=containers)
