"""Linux's signals (x86-64, arm64) by name and number. Python's `signal` module knows those of the machine that it runs on."""

_SIGNALS = {
    1: "SIGHUP",
    2: "SIGINT",
    3: "SIGQUIT",
    4: "SIGILL",
    6: "SIGABRT",
    7: "SIGBUS",
    8: "SIGFPE",
    9: "SIGKILL",
    11: "SIGSEGV",
    13: "SIGPIPE",
    15: "SIGTERM",
    24: "SIGXCPU",
    31: "SIGSYS",
}
_SIGNAL_NUMBERS = {name: number for number, name in _SIGNALS.items()} | {
    "SIGUSR1": 10,
    "SIGUSR2": 12,
    "SIGCONT": 18,
    "SIGSTOP": 19,
    "SIGTSTP": 20,
    "SIGWINCH": 28,
    "SIGPWR": 30,
}


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 40` for one that programs don't usually end by."""
    return _SIGNALS.get(number, f"signal {number}")


def stop_signal(name: str) -> int:
    """The number of an image's STOPSIGNAL ("SIGQUIT", "QUIT", "3", "SIGRTMIN+3"); SIGTERM for none or nonsense."""
    name = name.upper()
    if name.isascii() and name.isdecimal():
        return int(name) if len(name) < 4 and 0 < int(name) <= 64 else 15
    name = name if name.startswith("SIG") else f"SIG{name}"
    base, _, offset = name.partition("+")
    if base == "SIGRTMIN" and (not offset or (offset.isdecimal() and len(offset) < 3 and int(offset) <= 30)):
        return 34 + int(offset or 0)
    return _SIGNAL_NUMBERS.get(name, 15)
