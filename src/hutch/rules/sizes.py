"""Task sizes: how they are spelled, and which of them AWS Fargate offers (reference B.1).

hutch runs any size; a size that Fargate does not offer is a warning, or an error under --strict-aws.
"""

import re

from hutch.base.errors import Invalid

_FARGATE: dict[int, tuple[int, ...]] = {
    256: (512, 1024, 2048),
    512: tuple(range(1024, 4097, 1024)),
    1024: tuple(range(2048, 8193, 1024)),
    2048: tuple(range(4096, 16385, 1024)),
    4096: tuple(range(8192, 30721, 1024)),
    8192: tuple(range(16384, 61441, 4096)),
    16384: tuple(range(32768, 122881, 8192)),
    32768: (61440, 122880, 249856),
}
MIN_TASK_MEMORY_MIB = 64
MAX_TASK_MEMORY_MIB = 16 * 1024 * 1024
MAX_EPHEMERAL_GIB = 16384
MAX_TASK_CPU_UNITS = 196_608
_CPU = re.compile(r"([0-9]*\.?[0-9]+)\s*vcpu", re.IGNORECASE)
_MEMORY = re.compile(r"([0-9]*\.?[0-9]+)\s*gb", re.IGNORECASE)


def parse_cpu_units(text: str) -> int:
    """CPU units from "1024", "1 vCPU" or ".25 vcpu". Raises `Invalid`."""
    number = _number(text, _CPU, 1024)
    if number is None or not 0 < number <= MAX_TASK_CPU_UNITS:
        raise Invalid(
            f"Invalid 'cpu' setting for task: {text[:50]!r}; it is a number of CPU units (1024 are a vCPU) from 1 to "
            f"{MAX_TASK_CPU_UNITS}, or one such as 2 vCPU.",
            code="ClientException",
        )
    return number


def parse_memory_mib(text: str) -> int:
    """MiB from "2048", "2GB" or "0.5 GB" (1 GB = 1,024 MiB). Raises `Invalid`."""
    number = _number(text, _MEMORY, 1024)
    if number is None or not MIN_TASK_MEMORY_MIB <= number <= MAX_TASK_MEMORY_MIB:
        raise Invalid(
            f"Invalid 'memory' setting for task: {text[:50]!r}; it is a number of MiB from {MIN_TASK_MEMORY_MIB} to "
            f"{MAX_TASK_MEMORY_MIB}, or one such as 2GB.",
            code="ClientException",
        )
    return number


def check_ephemeral_gib(size_gib: int | None) -> None:
    """A task's disk, if it asks for one. Raises `Invalid`; what AWS Fargate offers is less."""
    if size_gib is not None and not 1 <= size_gib <= MAX_EPHEMERAL_GIB:
        raise Invalid(
            f"EphemeralStorage size must be between 1 and {MAX_EPHEMERAL_GIB} GiB.", code="ClientException"
        )


def _number(text: str, unit: re.Pattern[str], factor: int) -> int | None:
    text = text.strip()
    if len(text) > 32:
        return None
    if text.isascii() and text.isdecimal():
        return int(text)
    match = unit.fullmatch(text)
    return round(float(match.group(1)) * factor) if match else None


def check_fargate_size(cpu_units: int, memory_mib: int) -> str:
    """What AWS Fargate says to a size; empty if it offers it."""
    if memory_mib in _FARGATE.get(cpu_units, ()):
        return ""
    return (
        f"No Fargate configuration exists for given values: {cpu_units} CPU, {memory_mib} memory. "
        f"See the Amazon ECS documentation for the valid values."
    )
