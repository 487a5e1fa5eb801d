"""Commands about the disks of stopped tasks: ls, rm."""

import typer
from rich.text import Text

from hutch.base.units import format_bytes
from hutch.cli.connection import AsJson, DataDir, TaskId, connect
from hutch.cli.output import clock_time, console, print_json, print_table, reporting_errors

app = typer.Typer(help="Disks of stopped tasks, for `hutch exec` into them.", no_args_is_help=True)


@app.command("ls")
def list_disks(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """List the disks that are kept, with what they take and until when they are there."""
    with reporting_errors(), connect(data_dir) as client:
        disks = client.native("GET", "/disks")["disks"]
    if json_output:
        print_json(disks)
        return
    print_table(
        ("TASK", "TAKES", "KEPT UNTIL", "HOST", "LOOKED INTO"),
        [
            (
                d["task_id"][:12],
                format_bytes(d.get("bytes", 0)),
                clock_time(d["until"]),
                d["host_id"],
                "now" if d.get("is_open") else "",
            )
            for d in disks
        ],
    )


@app.command("rm")
def remove_disk(
    task: TaskId,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Remove the disk of a stopped task with all that is in it. A `hutch exec` into it ends."""
    with reporting_errors(), connect(data_dir) as client:
        client.native("DELETE", f"/disks/{task}")
    if json_output:
        print_json({"removed": task})
    else:
        console.print(Text(f"the disk of task {task} is removed"))
