"""Commands about hosts: ls, lost."""

from typing import Annotated

import typer
from rich.text import Text

from hutch.cli.connection import AsJson, DataDir, connect
from hutch.cli.output import clock_time, console, print_json, print_table, reporting_errors

app = typer.Typer(help="The machines that run tasks.", no_args_is_help=True)


@app.command("ls")
def list_hosts(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """List hosts: whether each is connected, and what it has promised to tasks."""
    with reporting_errors(), connect(data_dir) as client:
        hosts = client.native("GET", "/hosts")["hosts"]
    if json_output:
        print_json(hosts)
        return
    print_table(
        ("HOST", "NAME", "AGENT", "LAST SEEN", "GIVEN UP AT", "TASKS", "MEMORY", "DRIVERS"),
        [
            (
                h["host_id"],
                h["name"],
                "connected" if h["connected"] else "away",
                clock_time(h["last_seen_at"]),
                clock_time(h["gives_up_at"]),
                str(h["tasks"]),
                f"{h['reserved_memory_mib']} of {h['memory_mib']} MiB",
                " ".join(h["drivers"]),
            )
            for h in hosts
        ],
    )


@app.command("lost")
def give_up_host(
    host: Annotated[str, typer.Argument(help="Its id, as `hutch host ls` shows it.")],
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Stop waiting for a host that does not come back: its tasks become STOPPED. One that is connected is refused."""
    with reporting_errors(), connect(data_dir) as client:
        answer = client.native("POST", f"/hosts/{host}/lost")
    if json_output:
        print_json(answer)
    else:
        console.print(Text(f"{host} is given up, with {answer['tasks_given_up']} tasks"))
