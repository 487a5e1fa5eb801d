"""What commands print: tables and panels for people, JSON for scripts; and how commands end.

Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 hutch is not running (or, for `up`, runs already);
4 `check` found problems.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from hutch.base.errors import HutchError
from hutch.client.errors import AwsError, ClientError, Unreachable

_UNBROKEN = 10_000
"""Columns where nobody reads a screen: what is piped or logged keeps one line for each row and each cause."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else _UNBROKEN)
errors = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _UNBROKEN)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; text from outside is shown as it is, never read as markup. Only the last column is folded where the
    terminal is too narrow: an id or address in pieces can't be copied. A line that is still too long is the terminal's to
    break."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    cells = [[Text(cell) for cell in row] for row in rows]
    for i, column in enumerate(columns[:-1]):
        table.add_column(column, no_wrap=True, min_width=max((row[i].cell_len for row in cells), default=0))
    table.add_column(columns[-1], overflow="fold")
    for row in cells:
        table.add_row(*row)
    unbroken = Console(highlight=False, width=_UNBROKEN)
    needed = Measurement.get(unbroken, unbroken.options, table).minimum
    wide_enough = console if needed <= console.width else Console(highlight=False, width=needed)
    wide_enough.print(table)


def ago(moment: float | None, now: float) -> str:
    """How long ago, in the largest unit: "12 s", "3 min", "2 h", "5 d"."""
    if moment is None:
        return ""
    seconds = max(0.0, now - moment)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock_time(moment: float | None) -> str:
    """A time as ISO 8601 in UTC, to the millisecond."""
    if moment is None:
        return ""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Every expected failure becomes one line on standard error and an exit code."""
    try:
        yield
    except Unreachable as error:
        errors.print(Text(f"hutch: {error}"))
        raise typer.Exit(3) from None
    except AwsError as error:
        errors.print(Text(f"hutch: {error.message} ({error.code})"))
        raise typer.Exit(1) from None
    except (ClientError, HutchError) as error:
        errors.print(Text(f"hutch: {error}"))
        raise typer.Exit(1) from None
    except BrokenPipeError:
        raise typer.Exit(0) from None
