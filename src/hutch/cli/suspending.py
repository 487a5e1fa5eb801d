"""Commands that take tasks out of memory and bring them back, and that copy them."""

from typing import Annotated

import typer
from rich.text import Text

from hutch.cli.connection import AsJson, DataDir, TaskId, connect
from hutch.cli.output import console, print_json, reporting_errors


def suspend(task: TaskId, data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """Take a running task out of memory, with all its processes as they are."""
    with reporting_errors(), connect(data_dir) as client:
        seen = client.native("POST", f"/tasks/{task}/suspend")
    if json_output:
        print_json(seen)
    else:
        console.print(Text(f"task {seen['task_id']} is SUSPENDED; `hutch resume {seen['task_id'][:12]}`"))


def resume(task: TaskId, data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """Let a suspended task go on where it was, at the same address."""
    with reporting_errors(), connect(data_dir) as client:
        seen = client.native("POST", f"/tasks/{task}/resume")
    if json_output:
        print_json(seen)
    else:
        console.print(Text(f"task {seen['task_id']} is {seen['last_status']}"))


def fork(
    task: TaskId,
    count: Annotated[int, typer.Option("-n", "--count", help="How many copies.")] = 1,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Copy a running task: each copy goes on from where it is now, as a task of its own."""
    with reporting_errors(), connect(data_dir) as client:
        forks = client.native("POST", f"/tasks/{task}/fork", body={"count": count})["tasks"]
        seen = [
            client.native("GET", f"/tasks/{f['task_id']}/wait", {"until": "RUNNING,STOPPED"}) for f in forks
        ]
    if json_output:
        print_json(seen)
        return
    for each in seen:
        console.print(Text(f"task {each['task_id']} is {each['last_status']}, at {each['address']}"))
        for url in each["endpoints"]:
            console.print(Text(url, style="bold"))
