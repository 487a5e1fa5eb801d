"""Sizes and their units. A number without its unit in its name is a bug."""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

CPU_UNITS_PER_VCPU = 1024
"""AWS's CPU unit: 1,024 units are one vCPU."""


def format_bytes(count: int) -> str:
    """`1536 * MIB` as "1.5 GiB"; exact below 1 KiB."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
