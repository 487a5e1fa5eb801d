"""Structured log: one JSON object a line on standard error. No secret ever goes in here.

Use: `log = get_logger(__name__)`, then `log.info("task placed", task=task_id, host=host_id)`.
"""

import logging
import sys
from typing import Any

import msgspec

_RESERVED = ("ts", "level", "room", "event")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix("hutch."),
            "event": record.getMessage(),
        }
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(fields, enc_hook=repr).decode()


class Logger:
    """A named logger whose keyword arguments become fields of the line."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """Log an error with the traceback of the exception being handled: for our own bugs only."""
        self._log(logging.ERROR, event, fields, exc_info=True)

    def _log(self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            safe = {(f"{k}_" if k in _RESERVED else k): v for k, v in fields.items()}
            self._logger.log(level, event, extra={"fields": safe}, exc_info=exc_info)


def get_logger(name: str) -> Logger:
    """The logger of a module; pass `__name__`."""
    return Logger(name)


def configure_logging(level: str = "INFO") -> None:
    """Send the process's log to standard error as JSON lines. Called once, by a composition root."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
