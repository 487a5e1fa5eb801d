"""`hutch exec`: run a command in a container, in this terminal or in a pipe."""

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from hutch.cli.connection import DataDir, PlatformAccess, TaskId
from hutch.cli.output import errors, reporting_errors
from hutch.client.exec import ExecConnection, ExecFailed, open_exec

_READ_BYTES = 16 * 1024
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def exec_command(
    task: TaskId,
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after `--`.")],
    container: Annotated[
        str, typer.Option("-c", "--container", help="Container; the only one if not given.")
    ] = "",
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Pass standard input on.")] = False,
    terminal: Annotated[bool, typer.Option("-t", "--tty", help="Give the command a terminal.")] = False,
    user: Annotated[
        str, typer.Option("-u", "--user", help="User of the container, or uid[:gid]; its own if not given.")
    ] = "",
    data_dir: DataDir = None,
) -> None:
    """Run a command in a container of a task; its exit code is this command's. The task may have stopped, as long as its disk
    is kept (`hutch why` says until when): what is changed there is thrown away at the end."""
    if terminal and not os.isatty(0):
        errors.print(Text("hutch: standard input is not a terminal: leave -t out"))
        raise typer.Exit(1)
    with reporting_errors():
        rows, cols = _size() if terminal else (24, 80)
        body: dict[str, Any] = {
            "command": command,
            "container": container,
            "tty": terminal,
            "stdin": interactive,
            "rows": rows,
            "cols": cols,
            "user": user,
        }
        access = PlatformAccess(data_dir)
        with access.client() as client:
            made = client.native("POST", f"/tasks/{task}/exec", body=body)
        process = open_exec(access.endpoint, made["path"], made["token"])
        try:
            exit_code = _run(process, interactive=interactive, terminal=terminal)
        except ExecFailed as error:
            errors.print(Text(f"hutch: {error}"))
            exit_code = error.exit_code
    raise typer.Exit(exit_code)


def _run(process: ExecConnection, *, interactive: bool, terminal: bool) -> int:
    read_input = (lambda: os.read(0, _READ_BYTES)) if interactive else None
    with _raw_terminal() if terminal and interactive else contextlib.nullcontext():
        if terminal:
            signal.signal(signal.SIGWINCH, lambda *_: process.resize(*_size()))
            # Once more: it may have changed since it was looked at.
            process.resize(*_size())
        else:
            _forward_signals(process)
        return process.run(read_input)


def _forward_signals(process: ExecConnection) -> None:
    """The process gets what we get. Who interrupts twice does not want to wait for it."""
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        if number in seen:
            process.abandon()
        seen.append(number)
        process.signal(number)

    for number in _FORWARDED:
        signal.signal(number, handle)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the process as they are typed, Ctrl-C too; afterwards the terminal is as it was."""
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _size() -> tuple[int, int]:
    """Rows and columns of the terminal."""
    for fd in (0, 1, 2):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(fd)
            if size.lines > 0 and size.columns > 0:
                return size.lines, size.columns
    return 24, 80
