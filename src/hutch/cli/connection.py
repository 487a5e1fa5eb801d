"""How commands find the platform: its data directory says where it listens and with which key to sign."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hutch.client.client import HutchClient
from hutch.client.errors import ClientError, Unreachable
from hutch.settings import load_settings

DataDir = Annotated[
    str | None,
    typer.Option("--data-dir", help="The platform's data directory (HUTCH_DATA_DIR).", metavar="DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class PlatformAccess:
    """What is needed to talk to a platform."""

    def __init__(self, data_dir: str | None) -> None:
        settings = load_settings({"data_dir": data_dir})
        self.data_dir = Path(settings.data_dir).resolve()
        credentials = self._read("credentials.json")
        platform = self._read("platform.json", missing={})
        self.access_key_id: str = credentials["access_key_id"]
        self.secret_access_key: str = credentials["secret_access_key"]
        self.endpoint: str = platform.get("endpoint", f"http://{settings.listen}")
        self.region: str = platform.get("region", settings.region)

    def _read(self, name: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            document: dict[str, Any] = json.loads((self.data_dir / name).read_bytes())
            return document
        except FileNotFoundError:
            if missing is not None:
                return missing
            raise Unreachable(
                f"no platform has been started in {self.data_dir}: start one with `hutch up --detach`, or name "
                f"another place with --data-dir"
            ) from None
        except PermissionError:
            raise ClientError(f"{self.data_dir / name} can only be read by root") from None

    def client(self) -> HutchClient:
        """A client of the platform."""
        return HutchClient(self.endpoint, self.access_key_id, self.secret_access_key, self.region)


def connect(data_dir: str | None) -> HutchClient:
    """A client of the platform in a data directory."""
    return PlatformAccess(data_dir).client()
