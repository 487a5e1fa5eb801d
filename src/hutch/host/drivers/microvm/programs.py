"""What a VM monitor says of itself, asked once for each file that it is."""

import os
import shutil

from hutch.host.kernel.run import CLEAN_ENVIRONMENT, run

VERSION_TIMEOUT_S = 20.0


class ProgramVersion:
    """A program's answer to `--version`. It takes some 20 ms to get, which a launch need not wait for each time; a program
    that was replaced is asked again."""

    def __init__(self, program: str) -> None:
        """`program`: a name on the path that programs are started with, or a path."""
        self._program = program
        self._known: tuple[object, str] | None = None

    async def text(self) -> str:
        """All that it says. Raises `CommandFailed`."""
        file = self._file()
        if self._known is None or file is None or self._known[0] != file:
            output = await run([self._program, "--version"], timeout_s=VERSION_TIMEOUT_S)
            self._known = (file, output.decode("utf-8", "replace"))
        return self._known[1]

    def _file(self) -> object:
        """What tells the program's file from another one in its place; None if it is not there."""
        path = shutil.which(self._program, path=CLEAN_ENVIRONMENT["PATH"])
        try:
            found = os.stat(path or self._program)
        except OSError:
            return None
        return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
