"""What a task uses, in the shape that Docker's API gave it and every agent that reads it knows."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.units import MIB
from hutch.host.drivers.contract import SandboxStats
from hutch.host.network.contract import Counters, Traffic
from hutch.wire.taskspec import ContainerSpec, TaskSpec

FRESH_S = 1.0
"""Samples are not taken more often: whoever asks meanwhile gets the last one."""
_NEVER = "0001-01-01T00:00:00Z"


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a task used at a time (epoch seconds)."""

    at: float
    stats: SandboxStats
    traffic: Traffic | None = None


class _Known(msgspec.Struct, kw_only=True):
    lock: asyncio.Lock
    samples: tuple[Sample, ...] = ()


class Samples:
    """The last two samples of each task that was asked about, so that rates can be told. One question of a task at a
    time goes to its sandbox, however many are asked."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, _Known] = {}

    async def get(
        self,
        task_id: str,
        container: str,
        take_stats: Callable[[], Awaitable[SandboxStats]],
        take_traffic: Callable[[], Traffic | None],
    ) -> tuple[Sample, Sample | None]:
        """The newest sample and the one before it; not an older one that knows nothing of the container that asks, which
        may have been started since. Raises what `take_stats` raises."""
        known = self._known.setdefault(task_id, _Known(lock=asyncio.Lock()))
        async with known.lock:
            last = known.samples[-1] if known.samples else None
            is_fresh = last is not None and 0 <= self._clock.now() - last.at < FRESH_S
            if last is None or not is_fresh or container not in last.stats.containers:
                stats = await take_stats()
                sample = Sample(at=self._clock.now(), stats=stats, traffic=take_traffic())
                known.samples = (*known.samples[-1:], sample)
        *before, newest = known.samples
        return newest, before[0] if before else None

    def forget(self, task_id: str) -> None:
        """The task is gone."""
        self._known.pop(task_id, None)


def docker_stats(
    task: TaskSpec, container: ContainerSpec, docker_id: str, now: Sample, before: Sample | None
) -> dict[str, Any] | None:
    """A container's use as `GET /containers/<id>/stats` gives it; None if nothing is known of it (it does not run).

    `system_cpu_usage` is what the task's CPUs could have done by now, so that the usual formula (the difference of
    usage, by the difference of system usage, times the number of CPUs) gives per cent of one CPU.
    """
    use = now.stats.containers.get(container.name)
    if use is None:
        return None
    memory: dict[str, Any] = {
        "usage": use.memory_bytes,
        "stats": {},
        "limit": (container.memory_mib or task.memory_mib) * MIB,
    }
    document = {
        "read": rfc3339(now.at),
        "preread": rfc3339(before.at) if before else _NEVER,
        "pids_stats": {"current": use.pids},
        "num_procs": 0,
        "blkio_stats": {},
        "storage_stats": {},
        "cpu_stats": _cpu(task, container, now),
        "precpu_stats": _cpu(task, container, before),
        "memory_stats": memory,
        "name": docker_name(task, container),
        "id": docker_id,
    }
    if now.traffic is not None:
        document["networks"] = {"eth0": _network(now.traffic)}
        document["network_rate_stats"] = _rates(now, before)
    return document


def docker_name(task: TaskSpec, container: ContainerSpec) -> str:
    """The container's name as ECS's agent makes them."""
    return (
        f"ecs-{task.family}-{task.revision}-{container.name}-{container.container_id.replace('-', '')[:20]}"
    )


def rfc3339(at: float) -> str:
    """A time (epoch seconds) in UTC with microseconds."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _cpu(task: TaskSpec, container: ContainerSpec, sample: Sample | None) -> dict[str, Any]:
    use = sample.stats.containers.get(container.name) if sample else None
    cpu_ns = use.cpu_ns if use else 0
    usage = {"total_usage": cpu_ns, "usage_in_kernelmode": 0, "usage_in_usermode": 0}
    throttling = {"periods": 0, "throttled_periods": 0, "throttled_time": 0}
    if sample is None:
        return {"cpu_usage": usage, "throttling_data": throttling}
    cpus = max(1, -(-task.cpu_units // 1024))
    return {
        "cpu_usage": usage,
        "system_cpu_usage": int(sample.at * 1e9) * cpus,
        "online_cpus": cpus,
        "throttling_data": throttling,
    }


def _network(traffic: Traffic) -> dict[str, int]:
    def of(prefix: str, counters: Counters) -> dict[str, int]:
        return {f"{prefix}_{name}": getattr(counters, name) for name in counters.__struct_fields__}

    return {**of("rx", traffic.received), **of("tx", traffic.sent)}


def _rates(now: Sample, before: Sample | None) -> dict[str, float]:
    if before is None or now.traffic is None or before.traffic is None or now.at <= before.at:
        return {"rx_bytes_per_sec": 0.0, "tx_bytes_per_sec": 0.0}
    seconds = now.at - before.at
    return {
        "rx_bytes_per_sec": (now.traffic.received.bytes - before.traffic.received.bytes) / seconds,
        "tx_bytes_per_sec": (now.traffic.sent.bytes - before.traffic.sent.bytes) / seconds,
    }
