"""Volumes that are files: what is in them, and the requests by which a guest is given them. Pure.

They are kept in memory only, in a guest as on the shared kernel; nothing of a secret reaches a disk of the host.
"""

from collections.abc import Iterator
from typing import Any

from hutch.host.drivers.contract import DriverError
from hutch.rules.taskdef.file_volumes import MAX_OWNER_ID, paths_problem
from hutch.wire.taskspec import FilesSpec, TaskSpec

REQUEST_CHARACTERS = 8000
"""In all pieces of one request: as JSON at most six bytes each, so a request always fits a frame of 64 KiB."""
REQUEST_PIECES = 16


def check_files(task: TaskSpec) -> None:
    """Refuse what can't be files of a volume. Raises `DriverError`; never with what is in them."""
    for volume in task.volumes:
        files = volume.files
        if files is None:
            continue
        problem = paths_problem([*files.texts, *files.secret_names])
        if not 0 <= files.mode <= 0o777 or not 0 <= min(files.uid, files.gid) <= MAX_OWNER_ID:
            problem = "its mode or owner is out of range"
        if problem:
            raise DriverError("InvalidFiles", f'volume "{volume.name}": {problem}')
        if set(files.secret_names) - files.secrets.keys():
            raise DriverError(
                "SecretNotFound",
                f'volume "{volume.name}" was assigned without its secrets',
                fix="run the task again",
                aws_prefix="ResourceInitializationError",
            )


def contents(files: FilesSpec) -> dict[str, str]:
    """By path, what is in each file."""
    return {**files.texts, **{name: files.secrets[name] for name in files.secret_names}}


def fill_requests(files: FilesSpec, directory: str) -> Iterator[dict[str, Any]]:
    """Members of the `files` requests that fill a directory of the guest, to be sent one after the other."""
    head = {"directory": directory, "mode": files.mode, "uid": files.uid, "gid": files.gid}
    pieces: list[dict[str, Any]] = []
    room = REQUEST_CHARACTERS
    for path, text in sorted(contents(files).items()):
        begin = 0
        while True:
            piece = text[begin : begin + room]
            pieces.append({"path": path, "text": piece, "append": begin > 0})
            begin, room = begin + len(piece), room - len(piece)
            if room == 0 or len(pieces) == REQUEST_PIECES:
                yield {**head, "files": pieces}
                pieces, room = [], REQUEST_CHARACTERS
            if begin >= len(text):
                break
    if pieces:
        yield {**head, "files": pieces}
