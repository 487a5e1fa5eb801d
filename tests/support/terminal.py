"""A program on a terminal, as a person would use it."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time


class Terminal:
    """Starts a program on a new terminal. Use `close` in a finally."""

    def __init__(self, argv: list[str], environment: dict[str, str], rows: int = 30, cols: int = 100) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            # Whoever runs the tests in the background has it ignored.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execvpe(argv[0], argv, environment)
        self.resize(rows, cols)
        self.seen = b""
        self._code: int | None = None

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self._fd, data)

    def until(self, text: bytes, timeout_s: float = 30) -> None:
        """Read until this was written, since the last time."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._fd], [], [], left)[0], f"no {text!r} in {self.seen!r}"
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                data = b""
            assert data, f"it ended without {text!r}: {self.seen!r}"
            self.seen += data
        self.seen = self.seen[self.seen.index(text) + len(text) :]

    def exit_code(self, timeout_s: float = 30) -> int:
        """Read to the end; the program's exit code."""
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._fd], [], [], left)[0], f"it goes on: {self.seen!r}"
            try:
                data = os.read(self._fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def close(self) -> None:
        """End the program, and let go of the terminal."""
        if self._code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._fd)
