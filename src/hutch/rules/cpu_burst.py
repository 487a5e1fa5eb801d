"""May a task take CPU that its host has idle, beyond its share: the tag `hutch:cpuBurst`, `on` or `off`."""

from collections.abc import Mapping

from hutch.base.errors import Invalid

CPU_BURST_TAG = "hutch:cpuBurst"
ANY_SIZE = 1
"""CPU units where the task's size is not known yet."""


def cpu_capped(task_tags: Mapping[str, str], definition_tags: Mapping[str, str], cpu_units: int) -> bool:
    """Whether a task of so many CPU units is to get its share of CPU and never more. The task's own tag comes before its
    task definition's; `on` does not lift a cap that its host has for all. Raises `Invalid`."""
    value = task_tags.get(CPU_BURST_TAG, definition_tags.get(CPU_BURST_TAG, "on"))
    if value not in ("on", "off"):
        raise Invalid(f"tag {CPU_BURST_TAG}: {value[:40]!r} is neither on nor off.")
    if value == "off" and not cpu_units:
        raise Invalid(
            f"tag {CPU_BURST_TAG}: off caps a task at its cpu, and this one has none; give the task or its containers "
            "cpu units."
        )
    return value == "off"
