"""Commands about events and schedules: events, schedule ls, schedule runs."""

import sys
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from hutch.cli.connection import AsJson, DataDir, connect, task_id
from hutch.cli.output import clock_time, console, print_json, print_table, reporting_errors

app = typer.Typer(help="Schedules, and the rules that have one.", no_args_is_help=True)


def events(
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Go on with new events as they come.")
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="Only those of a task: its id, its beginning, or its ARN.", parser=task_id, metavar="TASK"
        ),
    ] = None,
    limit: Annotated[int, typer.Option(help="How many of the newest.")] = 100,
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Show what happened: every change of state of tasks and container instances, and what PutEvents brought.

    With --json one event a line.
    """
    with reporting_errors(), connect(data_dir) as client:
        query = {"task": task} if task else {}
        try:
            answer = client.native("GET", "/events", {**query, "limit": str(limit)})
            _show(answer["events"], json_output)
            while follow:
                answer = client.native("GET", "/events", {**query, "after": str(answer["next"])})
                _show(answer["events"], json_output)
        except KeyboardInterrupt:
            return


def _show(found: list[dict[str, Any]], json_output: bool) -> None:
    for event in found:
        if json_output:
            sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        else:
            console.print(Text(_line(event)))
    sys.stdout.flush()


def _line(event: dict[str, Any]) -> str:
    """An event on one line: when, what, about what."""
    detail = event["detail"]
    if event["source"] == "hutch.threats":
        about = f"task {detail['taskArn'].rpartition('/')[2][:12]} {detail['priority']}"
        return f"{event['time']} {about:32} {detail['rule']}: {detail['title']}"
    if "taskArn" in detail:
        about = f"task {detail['taskArn'].rpartition('/')[2][:12]} {detail['lastStatus']}"
        family = detail["taskDefinitionArn"].rpartition("/")[2]
        why = detail.get("stoppedReason") or ""
        return f"{detail['updatedAt']} {about:32} {family}" + (f"  {why}" if why else "")
    if "containerInstanceArn" in detail:
        about = f"instance {detail['containerInstanceArn'].rpartition('/')[2][:12]} {detail['status']}"
        return f"{detail['updatedAt']} {about:32} " + (
            "connected" if detail["agentConnected"] else "disconnected"
        )
    return f"{event['time']} {event['source']}: {event['detail-type']} {msgspec.json.encode(detail).decode()}"


@app.command("ls")
def list_schedules(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """List schedules: when they are due next, and what came of the last run."""
    with reporting_errors(), connect(data_dir) as client:
        found = client.native("GET", "/schedules")["schedules"]
    if json_output:
        print_json(found)
        return
    print_table(
        ("SCHEDULE", "EXPRESSION", "ZONE", "STATE", "NEXT", "LAST", "OUTCOME", "FAILED"),
        [
            (
                s["owner"],
                s["expression"],
                s["time_zone"],
                s["state"],
                clock_time(s["next_at"]),
                clock_time(s["last_run_at"]),
                s["last_outcome"],
                str(s["failed"] or ""),
            )
            for s in found
        ],
    )


@app.command("runs")
def list_runs(
    schedule: Annotated[str, typer.Argument(help="NAME, schedule/GROUP/NAME or rule/BUS/NAME.")],
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Show what the last runs of a schedule or rule did."""
    owner = schedule if "/" in schedule else f"schedule/default/{schedule}"
    with reporting_errors(), connect(data_dir) as client:
        answer = client.native("GET", f"/runs/{owner}")
    if json_output:
        print_json(answer)
        return
    print_table(
        ("DUE", "RUN AT", "OUTCOME", "MISSED BEFORE", "DETAIL"),
        [
            (
                clock_time(r["nominal_at"]),
                clock_time(r["fired_at"]),
                r["outcome"],
                str(r["missed_before"] or ""),
                r["detail"],
            )
            for r in answer["runs"]
        ],
    )
    if answer["failed"]:
        console.print(Text(f"{answer['failed']} given up, the last because: {answer['last_error']}"))
