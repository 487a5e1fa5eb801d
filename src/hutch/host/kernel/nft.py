"""nftables, through the `nft` program: one transaction a call, about 3 ms."""

from typing import Any

import msgspec

from hutch.host.kernel.run import CommandFailed, run

_NFT = "/usr/sbin/nft"
_TIMEOUT_S = 30.0
_GONE = b"No such file or directory"


async def apply(commands: str, *, may_be_gone: bool = False) -> None:
    """Carry the commands out, all or none. Raises `CommandFailed`; with `may_be_gone` not if what they name is
    missing."""
    try:
        await run([_NFT, "-f", "-"], input_bytes=commands.encode(), timeout_s=_TIMEOUT_S)
    except CommandFailed as failure:
        # nft itself missing says "is not installed", so this is the kernel's answer.
        if not (may_be_gone and failure.returncode == 1 and _GONE in failure.stderr):
            raise


async def set_elements(family: str, table: str, name: str) -> list[tuple[str, ...]]:
    """The elements of a set whose type is a concatenation; none if there is no such set. Raises `CommandFailed`."""
    try:
        text = await run([_NFT, "-j", "list", "set", family, table, name], timeout_s=_TIMEOUT_S)
    except CommandFailed as failure:
        if failure.returncode == 1 and _GONE in failure.stderr:
            return []
        raise
    answer: dict[str, Any] = msgspec.json.decode(text)
    elements = [e for item in answer["nftables"] for e in item.get("set", {}).get("elem", ())]
    return [tuple(str(part) for part in e["concat"]) for e in elements]
