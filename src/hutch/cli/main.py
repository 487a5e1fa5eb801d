"""The `hutch` command."""

import typer

from hutch import __version__
from hutch.cli import check, disks, events, hosts, images, platform, suspending, tasks, volumes
from hutch.cli import exec as exec_

app = typer.Typer(
    help="A serverless container platform that you own: bring an image, walk away with an endpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)(platform.up)
app.command()(platform.down)
app.command()(platform.env)
app.command()(platform.configure)
app.command()(platform.doctor)
app.command()(check.check)
app.command()(tasks.run)
app.command()(tasks.ps)
app.command()(tasks.logs)
app.command(name="exec")(exec_.exec_command)
app.command()(tasks.stop)
app.command()(tasks.why)
app.command()(suspending.suspend)
app.command()(suspending.resume)
app.command()(suspending.fork)
app.command()(events.events)
app.add_typer(events.app, name="schedule")
app.add_typer(hosts.app, name="host")
app.add_typer(images.app, name="image")
app.add_typer(volumes.app, name="volume")
app.add_typer(disks.app, name="disk")


@app.command()
def version() -> None:
    """Print hutch's version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the installed command."""
    app()
