"""Pseudo terminals."""

import fcntl
import os
import struct
import termios


def open_terminal(rows: int, cols: int) -> tuple[int, int]:
    """A new terminal of that size: (master, slave), both close-on-exec, the master non-blocking."""
    master, slave = os.openpty()
    os.set_inheritable(master, False)
    os.set_inheritable(slave, False)
    os.set_blocking(master, False)
    set_terminal_size(master, rows, cols)
    return master, slave


def set_terminal_size(terminal: int, rows: int, cols: int) -> None:
    """Set a terminal's size, in characters."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
