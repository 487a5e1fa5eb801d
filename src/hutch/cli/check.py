"""`hutch check`: all that is wrong with a task, before it is run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from hutch.cli.connection import AsJson, DataDir, connect
from hutch.cli.output import console, print_json, reporting_errors
from hutch.client.errors import ClientError

PROBLEMS_FOUND = 4
"""Exit code: the check was made, and there are problems."""


def check(
    task: Annotated[
        str,
        typer.Argument(
            metavar="FILE|TASKDEF",
            help="A file that register-task-definition would take (--cli-input-json), or a registered task definition.",
        ),
    ],
    cluster: Annotated[str, typer.Option(help="Where it is to run.")] = "default",
    launch_type: Annotated[
        str, typer.Option(help="FARGATE, EC2 or EXTERNAL; what RunTask would take if not given.")
    ] = "",
    count: Annotated[int, typer.Option(min=1, help="How many tasks are to run side by side.")] = 1,
    publish: Annotated[
        list[str] | None, typer.Option("-p", "--publish", help="Container port, or HOSTPORT:PORT.")
    ] = None,
    strict_aws: Annotated[
        bool, typer.Option("--strict-aws", help="What AWS would refuse is a problem, too.")
    ] = False,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """List everything that would keep a task from running, with what to do about it. Nothing is started or pulled.

    Exit codes: 0 nothing is wrong; 4 there are problems.
    """
    body: dict[str, Any] = {"cluster": cluster, "count": count}
    if launch_type:
        body["launchType"] = launch_type
    if publish:
        body["publish"] = " ".join(publish)
    with reporting_errors(), connect(data_dir) as client:
        body |= _what(task)
        seen = client.native("POST", "/check", body=body)
    wrong = bool(seen["problems"]) or (strict_aws and bool(seen["aws"]))
    if json_output:
        print_json({**seen, "fine": not wrong})
    else:
        _print(seen, wrong)
    if wrong:
        raise typer.Exit(PROBLEMS_FOUND)


def _what(task: str) -> dict[str, Any]:
    """A definition out of a file, or the name of a registered one. Raises `ClientError`."""
    path = Path(task)
    if not path.is_file():
        if task.endswith(".json") or task.startswith((".", "/")):
            raise ClientError(f"{task} is not a file")
        return {"taskDefinition": task}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise ClientError(f"{task} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ClientError(f"{task} is not a JSON object")
    return {"definition": document}


def _print(seen: dict[str, Any], wrong: bool) -> None:
    for title, findings, style in (
        ("problems", seen["problems"], "red"),
        ("warnings", seen["warnings"], "yellow"),
        ("AWS would refuse", seen["aws"], "yellow"),
    ):
        if not findings:
            continue
        console.print(Text(f"{title} ({len(findings)})", style=f"bold {style}"))
        for finding in findings:
            console.print(Text(f"  {finding['subject']}: {finding['text']} [{finding['kind']}]"))
            if finding["fix"]:
                console.print(Text(f"    fix: {finding['fix']}", style="bold"))
    for host in seen["hosts"]:
        left = f"{host['memory_left_mib']} MiB and {host['cpu_left']} CPU units left"
        says = host["missing"] or "can take it now"
        console.print(Text(f"host {host['name']}: {says} ({left})", style="dim"))
    if not wrong:
        console.print(Text("nothing is wrong", style="bold green"))
