"""The state of a VM, out of it and into another one: QEMU's migration, with the memory apart.

Memory that is in a file which the VM shares (`x-ignore-shared`) is not part of the stream, which then has some 60 KB.
Who restores gives the file as memory, shared or as a private copy. Both VMs must have the same `machine_traits`.
"""

from hutch.host.drivers.microvm.qmp import Qmp, QmpError

STATE_FORMAT = 1
"""Of what is kept on disk: raise it when machines or the agent change in a way that `machine_traits` does not show."""
SAVE_TIMEOUT_S = 60.0
RESTORE_TIMEOUT_S = 60.0
_CAPABILITIES = ("x-ignore-shared", "events")


async def save(qmp: Qmp, state_fd: int) -> None:
    """Stop the VM and write its state to a file, at its current position; the VM stays stopped. Raises `QmpError`."""
    await qmp.execute("stop")
    await _enable_capabilities(qmp)
    await qmp.execute("getfd", pass_fd=state_fd, fdname="state")
    await qmp.execute("migrate", uri="fd:state")
    outcome = await qmp.migration_outcome(SAVE_TIMEOUT_S)
    if outcome != "completed":
        raise QmpError(f"the VM's state could not be saved: {outcome}")


async def restore(qmp: Qmp, state_fd: int) -> None:
    """Fill a VM that waits for its state (`-incoming defer`) from a file, from its current position, and let it run.
    Raises `QmpError`; the VM is then of no use."""
    await _enable_capabilities(qmp)
    await qmp.execute("getfd", pass_fd=state_fd, fdname="state")
    await qmp.execute("migrate-incoming", uri="fd:state")
    outcome = await qmp.migration_outcome(RESTORE_TIMEOUT_S)
    if outcome != "completed":
        raise QmpError(f"the VM's state could not be restored: {outcome}")
    await qmp.execute("cont")


async def _enable_capabilities(qmp: Qmp) -> None:
    wanted = [{"capability": name, "state": True} for name in _CAPABILITIES]
    await qmp.execute("migrate-set-capabilities", capabilities=wanted)
