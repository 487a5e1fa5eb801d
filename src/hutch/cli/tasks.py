"""Commands about tasks: run, ps, logs, stop, why."""

import contextlib
import re
import sys
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from hutch.base.units import format_bytes
from hutch.cli.connection import AsJson, DataDir, TaskId, connect
from hutch.cli.output import ago, clock_time, console, errors, print_json, print_table, reporting_errors
from hutch.client.client import HutchClient
from hutch.client.errors import AwsError, ClientError

_BAR_WIDTH = 40


def run(
    image: Annotated[str, typer.Argument(help="Image reference, or the name of a local image.")],
    command: Annotated[list[str] | None, typer.Argument(help="Command instead of the image's.")] = None,
    publish: Annotated[
        list[str] | None, typer.Option("-p", "--publish", help="Container port, or HOSTPORT:PORT.")
    ] = None,
    cpu: Annotated[str, typer.Option(help="CPU units (1024 = one vCPU).")] = "256",
    memory: Annotated[str, typer.Option(help="Memory in MiB, or such as 1GB.")] = "512",
    cpu_burst: Annotated[
        bool, typer.Option(help="May take CPU that the host has idle, beyond --cpu.")
    ] = True,
    environment: Annotated[list[str] | None, typer.Option("-e", "--env", help="NAME=VALUE.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the task and its endpoint.")] = None,
    cluster: Annotated[str, typer.Option(help="Cluster.")] = "default",
    launch_type: Annotated[str, typer.Option(help="FARGATE (a microVM), EC2 or EXTERNAL.")] = "FARGATE",
    wait: Annotated[bool, typer.Option(help="Wait until the task runs.")] = True,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Run an image as a task and print the endpoint that answers on this host."""
    with reporting_errors(), connect(data_dir) as client:
        label = name or _label(image)
        network_mode = "awsvpc" if launch_type == "FARGATE" else "bridge"
        container: dict[str, Any] = {
            "name": label,
            "image": image,
            "essential": True,
            "portMappings": [{"containerPort": p} for p in _container_ports(publish)],
            "environment": [_pair(e) for e in environment or ()],
            "logConfiguration": _log_configuration(label, client_region(client, cluster)),
        }
        if command:
            container["command"] = command
        definition = {
            "family": label,
            "networkMode": network_mode,
            "requiresCompatibilities": [launch_type],
            "cpu": cpu,
            "memory": memory,
            "containerDefinitions": [container],
        }
        registered = client.call("ecs", "RegisterTaskDefinition", definition)["taskDefinition"]
        launch = {
            "cluster": cluster,
            "taskDefinition": registered["taskDefinitionArn"],
            "launchType": launch_type,
            "startedBy": "hutch run",
            "tags": _launch_tags(label, publish, cpu_burst),
        }
        answer = client.call("ecs", "RunTask", launch)
        for failure in answer.get("failures", ()):
            raise ClientError(f"not placed: {failure.get('reason')}: {failure.get('detail', '')}")
        task_id = answer["tasks"][0]["taskArn"].rpartition("/")[2]
        seen = _wait_running(client, task_id) if wait else client.native("GET", f"/tasks/{task_id}/why")
    _tell_started(task_id, seen, json_output)
    if wait and seen["last_status"] == "STOPPED" and any(c["exit_code"] != 0 for c in seen["containers"]):
        errors.print(Text(f"hutch: {seen['stopped_reason']}; `hutch why {task_id[:12]}` says more"))
        raise typer.Exit(1)


def _label(image: str) -> str:
    """A task's name out of its image's: "registry:5000/team/web_1:latest" gives "web-1"."""
    repository = image.rpartition("/")[2].split(":")[0].split("@")[0]
    return re.sub(r"[^a-z0-9-]+", "-", repository).strip("-")


def _log_configuration(label: str, region: str) -> dict[str, Any]:
    return {
        "logDriver": "awslogs",
        "options": {
            "awslogs-group": f"/hutch/{label}",
            "awslogs-region": region,
            "awslogs-stream-prefix": "run",
            "awslogs-create-group": "true",
        },
    }


def _launch_tags(label: str, publish: list[str] | None, cpu_burst: bool) -> list[dict[str, str]]:
    """What RunTask has no members for."""
    tags = [{"key": "hutch:endpoint", "value": label}]
    if not cpu_burst:
        tags.append({"key": "hutch:cpuBurst", "value": "off"})
    if publish:
        tags.append({"key": "hutch:publish", "value": " ".join(publish)})
    return tags


def _tell_started(task_id: str, seen: dict[str, Any], json_output: bool) -> None:
    if json_output:
        print_json({"task_id": task_id, **seen})
        return
    console.print(Text(f"task {task_id} is {seen['last_status']}"))
    for url in seen["endpoints"]:
        console.print(Text(url, style="bold"))


def client_region(client: HutchClient, cluster: str) -> str:
    """The platform's region, out of the cluster's ARN. Raises if there is no such cluster."""
    answer = client.call("ecs", "DescribeClusters", {"clusters": [cluster]})
    if not answer["clusters"]:
        raise ClientError(f"there is no cluster {cluster}: aws ecs create-cluster --cluster-name {cluster}")
    return str(answer["clusters"][0]["clusterArn"].split(":")[3])


def _container_ports(published: list[str] | None) -> list[int]:
    """Each port once, in the order given."""
    return list(dict.fromkeys(_container_port(p) for p in published or ()))


def _container_port(text: str) -> int:
    port = text.rpartition(":")[2]
    if not port.isdecimal():
        raise typer.BadParameter(f"{text!r} is not PORT or HOSTPORT:PORT")
    return int(port)


def _pair(text: str) -> dict[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    return {"name": name, "value": value}


def _wait_running(client: HutchClient, task_id: str) -> dict[str, Any]:
    try:
        with errors.status("starting") as status:
            while True:
                seen = client.native("GET", f"/tasks/{task_id}/wait", {"until": "RUNNING,STOPPED"})
                if seen["last_status"] in ("RUNNING", "STOPPED"):
                    return seen
                status.update(Text(f"{seen['last_status']} {seen['waiting_reason']}"))
    except KeyboardInterrupt:
        errors.print(
            Text(f"hutch: task {task_id} is not waited for, and goes on: `hutch stop {task_id[:12]}` ends it")
        )
        raise


def ps(
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Stopped tasks too.")] = False,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """List tasks of all clusters."""
    with reporting_errors(), connect(data_dir) as client:
        tasks: list[dict[str, Any]] = []
        for cluster in client.paginate("ecs", "ListClusters", {}, "clusterArns"):
            for status in ("RUNNING", "STOPPED") if show_all else ("RUNNING",):
                arns = list(
                    client.paginate(
                        "ecs", "ListTasks", {"cluster": cluster, "desiredStatus": status}, "taskArns"
                    )
                )
                for start in range(0, len(arns), 100):
                    page = arns[start : start + 100]
                    tasks += client.call("ecs", "DescribeTasks", {"cluster": cluster, "tasks": page})["tasks"]
    tasks.sort(key=lambda t: t["createdAt"], reverse=True)
    if json_output:
        print_json(tasks)
        return
    now = time.time()
    print_table(
        ("TASK", "DEFINITION", "CLUSTER", "TYPE", "STATUS", "AGE", "ADDRESS", "ENDPOINTS"),
        [
            (
                t["taskArn"].rpartition("/")[2][:12],
                t["taskDefinitionArn"].rpartition("/")[2],
                t["clusterArn"].rpartition("/")[2],
                t["launchType"],
                _status(t),
                ago(t["createdAt"], now),
                _detail(t, "ElasticNetworkInterface", "privateIPv4Address"),
                _detail(t, "HutchEndpoint", "url"),
            )
            for t in tasks
        ],
    )


def _status(task: dict[str, Any]) -> str:
    """A suspended task counts as RUNNING for AWS's tools; here it is called what it is. What is said of a task whose host is
    not connected is what was last known."""
    if any(a["type"] == "HutchSuspension" for a in task.get("attachments", ())):
        return "SUSPENDED"
    if task.get("connectivity") == "DISCONNECTED" and task["lastStatus"] != "STOPPED":
        return f"{task['lastStatus']} (host away)"
    return str(task["lastStatus"]) + (f" ({task['stopCode']})" if task.get("stopCode") else "")


def _detail(task: dict[str, Any], kind: str, name: str) -> str:
    return " ".join(
        d["value"]
        for a in task.get("attachments", ())
        if a["type"] == kind
        for d in a["details"]
        if d["name"] == name
    )


def logs(
    task: TaskId,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with new output as it comes.")
    ] = False,
    tail: Annotated[int, typer.Option(help="How many of the newest lines to begin with.")] = 100,
    container: Annotated[
        str | None, typer.Option("-c", "--container", help="Container; the first one if not given.")
    ] = None,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Show a task's output. With --json a document of all lines; with -f, too, one for each line."""
    with reporting_errors(), connect(data_dir) as client:
        if follow:
            with contextlib.suppress(KeyboardInterrupt):
                _follow(client, task, container, tail, json_output)
            return
        query = {"tail": str(tail)} | ({"container": container} if container else {})
        lines = client.native("GET", f"/tasks/{task}/logs", query)["lines"]
    if json_output:
        print_json(lines)
    else:
        for line in lines:
            console.out(line["text"], highlight=False)


def _follow(client: HutchClient, task: str, container: str | None, tail: int, json_output: bool) -> None:
    """The last events of the task's CloudWatch Logs stream, then live tail."""
    seen = client.native("GET", f"/tasks/{task}/why")
    group, stream = _log_stream(client, seen, container)

    def show(event: dict[str, Any]) -> None:
        if json_output:
            line = {"timestamp": event["timestamp"], "text": event["message"]}
            sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
        else:
            console.out(event["message"], highlight=False)
        sys.stdout.flush()

    try:
        page = client.call(
            "logs", "GetLogEvents", {"logGroupName": group, "logStreamName": stream, "limit": tail}
        )
        for event in page["events"]:
            show(event)
    except AwsError as error:
        if error.code != "ResourceNotFoundException":
            raise
    wanted = {"logGroupIdentifiers": [group], "logStreamNames": [stream]}
    for name, event in client.stream("logs", "StartLiveTail", wanted):
        if name == "sessionUpdate":
            for result in event["sessionResults"]:
                show(result)


def _log_stream(client: HutchClient, seen: dict[str, Any], container: str | None) -> tuple[str, str]:
    """Log group and stream of a container of a task, the first one if None. Raises `ClientError`."""
    definition = client.call("ecs", "DescribeTaskDefinition", {"taskDefinition": seen["definition"]})
    found = definition["taskDefinition"]["containerDefinitions"]
    chosen = next((c for c in found if container in (None, c["name"])), None)
    if chosen is None:
        names = ", ".join(c["name"] for c in found)
        raise ClientError(f"task {seen['task_id']} has no container {container}; it has {names}")
    options = chosen.get("logConfiguration", {}).get("options", {})
    if "awslogs-group" not in options:
        raise ClientError(
            f"container {chosen['name']} does not log by awslogs, which following needs; leave -f out to see its output"
        )
    prefix = options.get("awslogs-stream-prefix", "")
    return options["awslogs-group"], "/".join(p for p in (prefix, chosen["name"], seen["task_id"]) if p)


def stop(
    task: TaskId,
    reason: Annotated[str, typer.Option(help="Kept with the task.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait until it is stopped.")] = True,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Stop a task: its containers get their stop signal, and SIGKILL after their stop timeout."""
    with reporting_errors(), connect(data_dir) as client:
        seen = client.native("GET", f"/tasks/{task}/why")
        given = {"cluster": seen["cluster"], "task": seen["task_id"]}
        client.call("ecs", "StopTask", {**given, "reason": reason} if reason else given)
        while wait and seen["last_status"] != "STOPPED":
            seen = client.native("GET", f"/tasks/{seen['task_id']}/wait", {"until": "STOPPED"})
    if json_output:
        print_json(seen)
    else:
        console.print(Text(f"task {seen['task_id']} is {seen['last_status']}"))


def why(
    task: TaskId,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Say why a task is as it is: the chain of causes, and what its launch spent its time on."""
    with reporting_errors(), connect(data_dir) as client:
        seen = client.native("GET", f"/tasks/{task}/why")
        # Who may ask why need not be somebody who may see findings.
        with contextlib.suppress(AwsError):
            seen |= client.native("GET", f"/tasks/{seen['task_id']}/findings")
    if json_output:
        print_json(seen)
        return
    console.print(
        Text(f"task {seen['task_id']} ({seen['definition']}, {seen['launch_type']}): {seen['last_status']}")
    )
    if seen.get("suspended_at"):
        console.print(Text(f"suspended since {clock_time(seen['suspended_at'])}"))
    if seen.get("fork_of"):
        console.print(Text(f"a fork of task {seen['fork_of']}"))
    if (host := seen.get("host")) is not None and not host["connected"]:
        console.print(Text(_away(host)))
    if seen["waiting_reason"]:
        console.print(Text(f"waits: {seen['waiting_reason']}"))
    if seen["stopped_reason"]:
        console.print(Text(f"{seen['stop_code']}: {seen['stopped_reason']}"))
    for depth, cause in enumerate(seen["causes"]):
        console.print(Text(f"{'  ' * depth}because {cause['text']}"))
        for name, value in cause["evidence"].items():
            console.print(Text(f"{'  ' * depth}  {name}: {value}", style="dim"))
        if cause["fix"]:
            console.print(Text(f"{'  ' * depth}  fix: {cause['fix']}", style="bold"))
    for container in seen["containers"]:
        code = "" if container["exit_code"] is None else f", exit code {container['exit_code']}"
        note = f" ({container['reason']})" if container["reason"] else ""
        console.print(Text(f"container {container['name']}: {container['status']}{code}{note}"))
        _print_shipping(seen.get("log_drivers", {}).get(container["name"]))
    _print_disk(seen)
    for finding in seen.get("findings", ()):
        again = f" ({finding['count']} times)" if finding["count"] > 1 else ""
        console.print(Text(f"{finding['priority']} at {finding['eventTime']}: {finding['title']}{again}"))
    print_waterfall(seen)


def _print_disk(seen: dict[str, Any]) -> None:
    """Whether one can still look into a stopped task."""
    disk = seen.get("disk")
    if disk is None:
        return
    if not disk["is_kept"]:
        console.print(Text(f"its disk is not kept: {disk['reason']}"))
        return
    size, until = format_bytes(disk.get("bytes", 0)), clock_time(disk["until"])
    text = (
        f"its disk ({size}) is kept until {until}; look into it: hutch exec -it {seen['task_id'][:12]} -- sh"
    )
    console.print(Text(text))


def _away(host: dict[str, Any]) -> str:
    """Of a task whose host is not connected: what that means for it."""
    name, since = host["name"], clock_time(host["last_seen_at"]) or "an unknown time"
    text = f"host {name} ({host['host_id']}) is not connected, last heard of at {since}: its tasks go on there unseen"
    if host["gives_up_at"] is not None:
        return f"{text}, and are given up at {clock_time(host['gives_up_at'])} unless it comes back"
    return f"{text}; `hutch host lost {host['host_id']}` gives them up"


def _print_shipping(shipping: dict[str, Any] | None) -> None:
    """What a log driver's back end did not get, if there is anything to tell."""
    if shipping is None:
        return
    if shipping["dropped_bytes"]:
        console.print(Text(f"  logs: {shipping['dropped_bytes']:,} bytes were dropped"))
    if shipping["problem"]:
        waiting = f"{shipping['waiting_bytes']:,} bytes wait: " if shipping["waiting_bytes"] else ""
        console.print(Text(f"  logs: {waiting}{shipping['problem']}"))


def print_waterfall(seen: dict[str, Any]) -> None:
    """The phases of a launch as bars on one scale."""
    phases = [p for p in seen["phases"] if p["ended_at"] is not None]
    if not phases:
        return
    first = min(p["started_at"] for p in phases)
    span = max(0.001, max(p["ended_at"] for p in phases) - first)
    console.print(Text(f"launched {clock_time(seen['created_at'])}"))
    for phase in sorted(phases, key=lambda p: (p["started_at"], p["ended_at"])):
        start = int((phase["started_at"] - first) / span * _BAR_WIDTH)
        length = max(1, round((phase["ended_at"] - phase["started_at"]) / span * _BAR_WIDTH))
        bar = " " * min(start, _BAR_WIDTH - 1) + "█" * length
        took = f"{phase['ended_at'] - phase['started_at']:7.3f} s"
        name = f"{phase['name']} {phase['detail']}".strip()
        console.print(Text(f"  {name[:34]:34} {took}  {bar}"))
