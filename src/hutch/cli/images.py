"""Commands about local images: import, ls, rm."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from hutch.base.units import format_bytes
from hutch.cli.connection import AsJson, DataDir, connect
from hutch.cli.output import clock_time, console, errors, print_json, print_table, reporting_errors
from hutch.client.errors import ClientError

app = typer.Typer(help="Local images, which tasks use by name without any registry.", no_args_is_help=True)


@app.command("import")
def import_image(
    archive: Annotated[Path, typer.Argument(help="OCI archive, or what `docker save` wrote.")],
    name: Annotated[str, typer.Argument(help="NAME:TAG; the archive's own if not given.")] = "",
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Take in an image archive."""
    with reporting_errors(), connect(data_dir) as client:
        if not archive.is_file():
            raise ClientError(f"{archive} is not a file; pack an OCI layout directory with tar first")
        with errors.status(f"importing {archive.name}"):
            image = client.native("POST", "/images", {"name": name} if name else {}, file=archive)
    if json_output:
        print_json(image)
    else:
        console.print(Text(f"{image['name']} {image['digest']}"))


@app.command("ls")
def list_images(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """List local images."""
    with reporting_errors(), connect(data_dir) as client:
        images = client.native("GET", "/images")["images"]
    if json_output:
        print_json(images)
        return
    print_table(
        ("NAME", "DIGEST", "SIZE", "ARCHITECTURE", "IMPORTED"),
        [
            (
                i["name"],
                i["digest"][7:19],
                format_bytes(i["size_bytes"]),
                i["architecture"],
                clock_time(i["imported_at"]),
            )
            for i in images
        ],
    )


@app.command("rm")
def remove_image(
    name: Annotated[str, typer.Argument(help="NAME:TAG.")],
    data_dir: DataDir = None,
    json_output: AsJson = False,
) -> None:
    """Drop a local image's name."""
    with reporting_errors(), connect(data_dir) as client:
        client.native("DELETE", f"/images/{name}")
    if json_output:
        print_json({"removed": name})
    else:
        console.print(Text(f"{name} is removed"))
