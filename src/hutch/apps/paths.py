"""Where a platform's files are, derived from its settings. One place, so that all processes agree."""

import hashlib
import os
from pathlib import Path

from hutch.base.errors import Invalid, StorageFull
from hutch.settings import Settings


class Paths:
    """The files of one platform. Directories are made (mode 0700) by `make`."""

    def __init__(self, settings: Settings) -> None:
        self.data = Path(settings.data_dir).resolve()
        short = hashlib.sha256(str(self.data).encode()).hexdigest()[:8]
        self.run = Path(settings.run_dir) if settings.run_dir else Path("/run/hutch") / short
        self.state = self.data / "state.sqlite3"
        self.logs = self.data / "logs.sqlite3"
        self.host = self.data / "host"
        self.images = self.data / "images"
        self.uploads = self.data / "uploads"
        self.credentials = self.data / "credentials.json"
        self.secrets_key = self.data / "secrets.key"
        self.platform = self.data / "platform.json"
        self.lock = self.data / "platform.lock"
        self.fleet_socket = self.run / "fleet.sock"
        self.output = self.data / "hutch.log"

    def make(self) -> None:
        """Make the directories. Raises `StorageFull` or `Invalid` with the path and what to do."""
        for path in (self.data, self.run, self.host, self.images, self.uploads):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise StorageFull(
                    f"can't make {path}: {error.strerror}; choose another place with --data-dir"
                ) from None
        probe = self.data / ".writable"
        try:
            probe.write_bytes(b"hutch\n")
            probe.unlink()
        except OSError as error:
            raise StorageFull(
                f"can't write to {self.data}: {error.strerror}; free space there, mount it read-write, or choose "
                f"another place with --data-dir"
            ) from None
        if len(str(self.fleet_socket)) > 100:
            raise Invalid(f"--run-dir: {self.run} is too long for unix sockets (about 100 characters)")

    def clear_uploads(self) -> None:
        """Remove what a control plane that was killed has left of uploads. Only where no other one serves."""
        for leftover in self.uploads.iterdir():
            leftover.unlink(missing_ok=True)


def guest_dir(settings: Settings) -> Path:
    """The guest image: the setting, else what `make setup` built in the source tree, else the installed one."""
    if settings.guest_dir:
        return Path(settings.guest_dir)
    built = Path(__file__).resolve().parents[3] / "build" / "guest"
    return built if built.exists() else Path("/usr/lib/hutch/guest")


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as variables for a child process, so that it parses the very same ones."""
    return {f"HUTCH_{name.upper()}": str(getattr(settings, name)) for name in settings.__struct_fields__} | {
        k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ
    }


def reachable_address(listen: str) -> str:
    """HOST:PORT at which programs of this host reach what listens so: loopback, if it listens on every address."""
    host, _, port = listen.rpartition(":")
    return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host) + f":{port}"
