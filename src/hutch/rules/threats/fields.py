"""The fields that a threat rule can ask about, in Falco's names; `hutch.` ones are our own.

A *subject* is what one process did: the members of a fact as a guest tells it (`hutch.wire.guest_facts.RuntimeFact`, as a
mapping), and `container_id`, `image`, `privileged`, `task`, `family`, which the host adds. All texts in it are hostile.
"""

from collections.abc import Callable, Mapping
from posixpath import basename, dirname
from typing import Any

import msgspec

Subject = Mapping[str, Any]
Value = str | int | bool | tuple[str, ...] | tuple[int, ...] | None
EXEC, CONNECT, OPEN, SETUID, CHMOD, LOAD = KINDS = ("exec", "connect", "open", "setuid", "chmod", "load")
EVENT_KINDS: dict[str, str] = {
    "execve": EXEC,
    "execveat": EXEC,
    "connect": CONNECT,
    "open": OPEN,
    "openat": OPEN,
    "openat2": OPEN,
    "creat": OPEN,
    "rename": OPEN,
    "renameat": OPEN,
    "renameat2": OPEN,
    "link": OPEN,
    "linkat": OPEN,
    "symlink": OPEN,
    "symlinkat": OPEN,
    "unlink": OPEN,
    "unlinkat": OPEN,
    "mkdir": OPEN,
    "mkdirat": OPEN,
    "mknod": OPEN,
    "chown": OPEN,
    "truncate": OPEN,
    "setuid": SETUID,
    "setreuid": SETUID,
    "setresuid": SETUID,
    "chmod": CHMOD,
    "fchmod": CHMOD,
    "fchmodat": CHMOD,
    "hutch.load": LOAD,
}
"""Falco's `evt.type`, and the kind of fact that it is of."""
_OPENS = frozenset(("open", "openat", "openat2", "creat"))
_MODE_BITS = (("S_ISUID", 0o4000), ("S_ISGID", 0o2000), ("S_ISVTX", 0o1000))


class Field(msgspec.Struct, frozen=True, kw_only=True):
    """`kind` "text", "number", "flag" or "address"; a value that is a tuple means any of them."""

    kind: str
    get: Callable[[Subject], Value]
    facts: tuple[str, ...] = ()
    """Only these kinds of facts have it; empty: all."""


def _text(get: Callable[[Subject], Value], *facts: str) -> Field:
    return Field(kind="text", get=get, facts=facts)


def _number(get: Callable[[Subject], Value], *facts: str) -> Field:
    return Field(kind="number", get=get, facts=facts)


def _flag(get: Callable[[Subject], Value], *facts: str) -> Field:
    return Field(kind="flag", get=get, facts=facts)


def event_type(subject: Subject) -> str:
    """Falco's `evt.type` of a subject."""
    kind = subject["kind"]
    if kind == EXEC:
        return "execve"
    if kind in (CONNECT,):
        return "connect"
    if kind == LOAD:
        return "hutch.load"
    return str(subject["syscall"]) or str(kind)


def _file_name(subject: Subject) -> str | None:
    if subject["kind"] in (OPEN, CHMOD):
        return str(subject["path"])
    if subject["kind"] == CONNECT:
        return f"->{subject['address']}:{subject['port']}"
    return None


def _directory(subject: Subject) -> str | None:
    return dirname(subject["path"]) if subject["kind"] in (OPEN, CHMOD) else None


def _base_name(subject: Subject) -> str | None:
    return basename(subject["path"]) if subject["kind"] in (OPEN, CHMOD) else None


def _ports(subject: Subject) -> Value:
    if subject["kind"] == CONNECT:
        return int(subject["port"])
    return tuple(subject["ports"]) if subject["kind"] == LOAD else None


def _address(subject: Subject) -> str | None:
    return str(subject["address"]) if subject["kind"] == CONNECT else None


def _type_character(subject: Subject) -> str | None:
    if subject["kind"] == CONNECT:
        return "6" if ":" in subject["address"] else "4"
    return "f" if subject["kind"] in (OPEN, CHMOD) else None


def _file_type(subject: Subject) -> str | None:
    return {"4": "ipv4", "6": "ipv6", "f": "file", None: None}[_type_character(subject)]


def _mode(subject: Subject) -> str | None:
    if subject["kind"] != CHMOD:
        return None
    mode = int(subject["mode"])
    return "|".join([name for name, bit in _MODE_BITS if mode & bit] + [f"0{mode:o}"])


def _arguments(subject: Subject) -> str:
    return str(subject["command_line"]).partition(" ")[2]


def _ancestor(number: int) -> Callable[[Subject], Value]:
    return lambda s: s["ancestors"][number] if len(s["ancestors"]) > number else ""


def _repository(subject: Subject) -> str:
    image = str(subject["image"]).partition("@")[0]
    head, _, last = image.rpartition("/")
    name = last.partition(":")[0]
    return f"{head}/{name}" if head else name


def _tag(subject: Subject) -> str:
    return str(subject["image"]).partition("@")[0].rpartition("/")[2].partition(":")[2]


FIELDS: dict[str, Field] = {
    "evt.type": _text(event_type),
    "evt.dir": _text(lambda s: "<"),
    "evt.is_open_write": _flag(lambda s: s["kind"] == OPEN and s["syscall"] in _OPENS, OPEN),
    "evt.arg.mode": _text(_mode, CHMOD),
    "evt.arg.uid": _number(lambda s: s["euid"] if s["kind"] == SETUID else None, SETUID),
    "proc.name": _text(lambda s: s["name"]),
    "proc.pname": _text(_ancestor(0)),
    "proc.aname": _text(lambda s: tuple(s["ancestors"])),
    "proc.exe": _text(lambda s: str(s["command_line"]).partition(" ")[0]),
    "proc.exepath": _text(lambda s: s["exe"]),
    "proc.pexepath": _text(lambda s: s["parent_exe"]),
    "proc.cmdline": _text(lambda s: s["command_line"]),
    "proc.args": _text(_arguments),
    "proc.pid": _number(lambda s: s["pid"]),
    "proc.ppid": _number(lambda s: s["parent_pid"]),
    "proc.tty": _number(lambda s: int(s["has_terminal"])),
    "proc.is_exe_upper_layer": _flag(lambda s: s["is_new_file"]),
    "proc.is_exe_from_memfd": _flag(lambda s: s["is_memory_file"]),
    "user.uid": _number(lambda s: s["euid"]),
    "container.id": _text(lambda s: s["container_id"]),
    "container.name": _text(lambda s: s["container"]),
    "container.image": _text(lambda s: s["image"]),
    "container.image.repository": _text(_repository),
    "container.image.tag": _text(_tag),
    "container.privileged": _flag(lambda s: s["privileged"]),
    "fd.name": _text(_file_name, OPEN, CHMOD, CONNECT),
    "fd.directory": _text(_directory, OPEN, CHMOD),
    "fd.filename": _text(_base_name, OPEN, CHMOD),
    "fd.type": _text(_file_type, OPEN, CHMOD, CONNECT),
    "fd.typechar": _text(_type_character, OPEN, CHMOD, CONNECT),
    "fd.sip": Field(kind="address", get=_address, facts=(CONNECT,)),
    "fd.rip": Field(kind="address", get=_address, facts=(CONNECT,)),
    "fd.snet": Field(kind="address", get=_address, facts=(CONNECT,)),
    "fd.rnet": Field(kind="address", get=_address, facts=(CONNECT,)),
    "fd.sport": _number(_ports, CONNECT, LOAD),
    "fd.rport": _number(_ports, CONNECT, LOAD),
    "hutch.task": _text(lambda s: s["task"]),
    "hutch.family": _text(lambda s: s["family"]),
    "hutch.by_exec": _flag(lambda s: s["by_exec"]),
    "hutch.real_uid": _number(lambda s: s["uid"]),
    "hutch.gained_root": _flag(lambda s: s["gained_root"]),
    "hutch.gained_capabilities": _text(lambda s: s["gained_capabilities"], EXEC),
    "hutch.cpu_percent": _number(lambda s: s["cpu_percent"], LOAD),
    "hutch.cpu_seconds": _number(lambda s: s["cpu_s"], LOAD),
    **{f"proc.aname[{n + 1}]": _text(_ancestor(n)) for n in range(8)},
}


def shown(name: str, subject: Subject) -> str:
    """A field's value in an output line; `<NA>` if the subject has none, as in Falco."""
    value = FIELDS[name].get(subject)
    if value is None or value == () or value == "":
        return "<NA>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(str(v) for v in value)
    return str(value)
