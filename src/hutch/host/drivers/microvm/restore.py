"""The state of a VM, out of it and into another one: QEMU's migration, with the memory apart.

Memory that is in a file which the VM shares (`x-ignore-shared`) is not part of the stream, which then has some 60 KB.
Who restores gives the file as memory, shared or as a private copy. Both VMs must have the same `machine_traits`.
"""

from hutch.host.drivers.microvm.qmp import Qmp, QmpError

STATE_FORMAT = 1
"""Of what is kept on disk: raise it when machines or the agent change in a way that `machine_traits` does not show."""
STATE_FDSET = 100
"""A number that no disk has."""
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


async def save_devices(qmp: Qmp, state_fd: int) -> None:
    """Write the state of a VM's devices to a file that is open for writing only; nothing of its memory. The VM stands
    still and stays so: it can go on with `cont`. Raises `QmpError`."""
    await qmp.execute("stop")
    # Part of what is saved, and compared when it is restored.
    await _enable_capabilities(qmp)
    await qmp.execute("add-fd", pass_fd=state_fd, fdset_id=STATE_FDSET)
    try:
        # The word "xen" says who asked for it first. `live=False`: the disks stay this VM's.
        await qmp.execute("xen-save-devices-state", filename=f"/dev/fdset/{STATE_FDSET}", live=False)
    finally:
        await qmp.execute("remove-fd", fdset_id=STATE_FDSET)


async def restore(qmp: Qmp, state_fd: int) -> None:
    """Fill a VM that waits for its state (`-incoming defer`) from a file, from its current position; it stands still then.
    Raises `QmpError`; the VM is then of no use."""
    await _enable_capabilities(qmp)
    await qmp.execute("getfd", pass_fd=state_fd, fdname="state")
    await qmp.execute("migrate-incoming", uri="fd:state")
    outcome = await qmp.migration_outcome(RESTORE_TIMEOUT_S)
    if outcome != "completed":
        raise QmpError(f"the VM's state could not be restored: {outcome}")


async def _enable_capabilities(qmp: Qmp) -> None:
    wanted = [{"capability": name, "state": True} for name in _CAPABILITIES]
    await qmp.execute("migrate-set-capabilities", capabilities=wanted)
