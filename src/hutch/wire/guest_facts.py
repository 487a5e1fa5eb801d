"""What a guest tells of its containers' processes when threat detection is on: raw facts, for the host to judge.

Hostile input as all that a guest says: a batch that does not fit is no batch. See docs/design/threat-detection.md.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_FACTS = 64
MAX_ANCESTORS = 8
_Id = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Word = Annotated[str, Meta(max_length=255)]
_Path = Annotated[str, Meta(max_length=2048)]

FactKind = Literal["exec", "connect", "open", "setuid", "chmod", "load"]


class RuntimeFact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a process did. Names are as the process or its image chose them; user ids are the guest's."""

    kind: FactKind
    time_ns: _Count = 0
    container: _Word
    number: _Id = 0
    """Which start of the container."""
    pid: _Id = 0
    parent_pid: _Id = 0
    name: _Word = ""
    """As at the process's exec; what it calls itself later does not count."""
    exe: _Path = ""
    command_line: Annotated[str, Meta(max_length=4096)] = ""
    ancestors: Annotated[tuple[_Word, ...], Meta(max_length=MAX_ANCESTORS)] = ()
    """Names of its parent, of that one's, and so on."""
    parent_exe: _Path = ""
    uid: _Id = 0
    euid: _Id = 0
    has_terminal: bool = False
    by_exec: bool = False
    """The host ran it, or what it comes from, in the container: a health check or `hutch exec`."""
    is_new_file: bool = False
    """Its program is not as the image has it."""
    is_memory_file: bool = False
    """Its program is in no file system."""
    gained_root: bool = False
    """It is root, and was not before."""
    gained_capabilities: Annotated[str, Meta(max_length=16, pattern="^[0-9a-f]*$")] = ""
    """A set in hex, which its program's file brought."""
    syscall: _Word = ""
    path: _Path = ""
    mode: Annotated[int, Meta(ge=0, le=0o7777)] = 0
    address: _Word = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    ports: Annotated[tuple[Annotated[int, Meta(ge=0, le=65535)], ...], Meta(max_length=8)] = ()
    """Those that it connected to last."""
    cpu_percent: _Count = 0
    cpu_s: _Count = 0


class RuntimeFactsEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="runtime_facts"):
    """Facts in their order. `dropped` counts, since the VM's start, what there was no room for."""

    seq: _Count
    facts: Annotated[tuple[RuntimeFact, ...], Meta(max_length=MAX_FACTS)] = ()
    dropped: _Count = 0
