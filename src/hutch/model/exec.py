"""A further process in a running container, with its streams: ECS Exec and `hutch exec`."""

import msgspec

STDOUT = 1
STDERR = 2
MAX_CHUNK_BYTES = 32 * 1024
"""The most that one piece of input or output holds."""
MAX_TERMINAL_SIZE = 10_000


class ExecSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to run. With `tty` the process has a terminal of this size, and all its output is `STDOUT`.

    `user` as in a container definition ("name", "uid:gid"); empty: the container's own. Without `stdin` it reads the end
    of its input at once (with a terminal there is always input).
    """

    command: tuple[str, ...]
    tty: bool = False
    stdin: bool = True
    rows: int = 24
    cols: int = 80
    user: str = ""


class Input(msgspec.Struct, frozen=True):
    """Bytes for the process; none: the end of its input."""

    data: bytes


class Resize(msgspec.Struct, frozen=True):
    """The terminal's size, in characters."""

    rows: int
    cols: int


class Signal(msgspec.Struct, frozen=True):
    """A signal for the process, by its Linux number."""

    number: int


class Output(msgspec.Struct, frozen=True):
    """What the process wrote; `stream` is `STDOUT` or `STDERR`."""

    stream: int
    data: bytes


class Exited(msgspec.Struct, frozen=True):
    """The process has ended, 128+n by signal n. Nothing comes after this."""

    exit_code: int


class Failed(msgspec.Struct, frozen=True):
    """The process could not be run, or it was lost. Nothing comes after this."""

    kind: str
    message: str


ToProcess = Input | Resize | Signal
FromProcess = Output | Exited | Failed
