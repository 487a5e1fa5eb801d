"""A launch from a template, and what is done when there is none, or when it fails: the VM boots."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from hutch.base.log import get_logger
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.microvm.making import Phases
from hutch.host.drivers.microvm.slots import LaunchSlot
from hutch.host.drivers.microvm.templates import Template, TemplateKey, TemplateStore, TemplateUnavailable

log = get_logger(__name__)
S = TypeVar("S")
FAULTS_OF_DISKS = ("VolumeInUse", "ScratchDiskFailed")
"""Kinds of errors that say nothing against the template: a boot would meet them as well."""


class TemplateLaunches:
    """Launches from one driver's templates."""

    def __init__(self, store: TemplateStore, *, enabled: bool) -> None:
        """`enabled` False: every VM boots."""
        self._store = store
        self.enabled = enabled

    async def launch(
        self,
        key: TemplateKey,
        task_id: str,
        phases: Phases,
        slot: LaunchSlot,
        *,
        restore: Callable[[Template], Awaitable[S]],
        boot: Callable[[], Awaitable[S]],
        undo: Callable[[], Awaitable[None]],
        obstacle: str = "",
    ) -> S:
        """The VM that `restore` (which measures its phases itself) makes from the template of a key; if it can't, the one that
        `boot` makes, after `undo` has removed what `restore` left. `obstacle`: why no template can be used. Raises
        `DriverError`, and leaves what `boot` left."""
        template, refusal = await self._choose(key, phases, slot, obstacle)
        if template is not None:
            try:
                return await restore(template)
            except DriverError as error:
                if error.kind in FAULTS_OF_DISKS:
                    raise
                refusal = f"not restored: {error.message}"[:500]
                log.warning("a VM could not be restored", task=task_id, reason=error.message)
                self._store.reject(template, refusal)
                await undo()
        return await phases.measure("cold boot", boot(), refusal)

    async def _choose(
        self, key: TemplateKey, phases: Phases, slot: LaunchSlot, obstacle: str
    ) -> tuple[Template | None, str]:
        """The template for a VM, or why there is none."""
        if not self.enabled:
            return None, "templates are switched off"
        if obstacle:
            return None, obstacle
        if (template := self._store.loaded(key)) is not None:
            return template, ""
        if refusal := self._store.refusal(key):
            return None, refusal
        try:
            # Whoever waits for a template keeps nobody from launching who has one.
            return await phases.measure("template", slot.lend(self._store.get(key))), ""
        except TemplateUnavailable as error:
            return None, error.message
