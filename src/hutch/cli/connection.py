"""How commands find the platform: its data directory says where it listens and with which key to sign."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from hutch.client.client import HutchClient
from hutch.client.errors import ClientError, Unreachable
from hutch.settings import load_settings

DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", help="The platform's data directory (HUTCH_DATA_DIR).", metavar="DIR"),
]
_TASK = re.compile(r"(?:arn:aws[^/]*:task/(?:[^/]+/)?)?([0-9a-zA-Z_-]+)")


def task_id(text: str) -> str:
    """A task's id, or its beginning, from that or from its ARN."""
    match = _TASK.fullmatch(text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no task's id, its beginning, or its ARN; `hutch ps --all` lists tasks"
        )
    return match[1]


TaskId = Annotated[
    str, typer.Argument(help="Task id, its beginning, or its ARN.", parser=task_id, metavar="TASK")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class PlatformAccess:
    """What is needed to talk to a platform."""

    def __init__(self, data_dir: str | None) -> None:
        settings = load_settings({"data_dir": data_dir})
        self.data_dir = Path(settings.data_dir).resolve()
        credentials = self._read("credentials.json", "access_key_id", "secret_access_key")
        platform = self._read("platform.json", "endpoint", "region")
        self.access_key_id = credentials["access_key_id"]
        self.secret_access_key = credentials["secret_access_key"]
        self.endpoint = platform["endpoint"]
        self.region = platform["region"]

    def _read(self, name: str, *members: str) -> dict[str, str]:
        """A JSON object with these text members. Raises `Unreachable` if it is not there, `ClientError`."""
        try:
            document = json.loads((self.data_dir / name).read_bytes())
            return {member: str(document[member]) for member in members}
        except FileNotFoundError:
            raise Unreachable(
                f"no platform runs in {self.data_dir}: start one with `hutch up --detach`, or name another place "
                f"with --data-dir"
            ) from None
        except PermissionError:
            raise ClientError(f"{self.data_dir / name} can only be read by root") from None
        except (ValueError, LookupError, TypeError):
            raise ClientError(f"{self.data_dir / name} is damaged: it is not what hutch wrote") from None

    def client(self) -> HutchClient:
        """A client of the platform."""
        return HutchClient(self.endpoint, self.access_key_id, self.secret_access_key, self.region)


def connect(data_dir: str | None) -> HutchClient:
    """A client of the platform in a data directory."""
    return PlatformAccess(data_dir).client()
