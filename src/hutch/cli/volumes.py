"""Commands about volumes that outlive their tasks: ls, rm."""

from typing import Annotated

import typer
from rich.text import Text

from hutch.base.units import format_bytes
from hutch.cli.connection import AsJson, DataDir, connect
from hutch.cli.output import console, print_json, print_table, reporting_errors

app = typer.Typer(help="Volumes that outlive their tasks.", no_args_is_help=True)


@app.command("ls")
def list_volumes(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """List volumes, with what their files take on the host's disk and the tasks that have them."""
    with reporting_errors(), connect(data_dir) as client:
        volumes = client.native("GET", "/volumes")["volumes"]
    if json_output:
        print_json(volumes)
        return
    print_table(
        ("VOLUME", "KIND", "TAKES", "HOST", "USED BY"),
        [
            (
                v["id"],
                v["kind"],
                format_bytes(v["bytes"]) if v.get("bytes") is not None else "",
                v["host_id"],
                " ".join(t[:12] for t in v["used_by"]),
            )
            for v in volumes
        ],
    )


@app.command("rm")
def remove_volume(
    volume: Annotated[str, typer.Argument(help="As `hutch volume ls` shows it: DRIVER:NAME.")],
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Remove a volume and all that is in it. One that a task has is not removed."""
    with reporting_errors(), connect(data_dir) as client:
        client.native("DELETE", f"/volumes/{volume}")
    if json_output:
        print_json({"removed": volume})
    else:
        console.print(Text(f"{volume} is removed"))
