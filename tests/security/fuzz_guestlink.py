"""Coverage-guided fuzzing of all that the host understands of a guest: frames, documents, log records.

    fuzz_guestlink.py [libFuzzer's options] [corpus directory]

An input is a list of pieces: length, kind, payload. Kinds 0 to 2 become frames with a right checksum (control, log, any
type), so that the fuzzer gets past it; kind 3 goes to the wire as it is. What must hold, whatever is sent: nothing is
raised, memory stays bounded, only what was asked for is answered, exits come once and in order.
"""

import asyncio
import sys
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import atheris
import msgspec

with atheris.instrument_imports(include=["hutch.wire", "hutch.host", "hutch.rules.threats"]):
    from hutch.host import criformat
    from hutch.host.guestlink import session as session_module
    from hutch.host.guestlink.session import MAX_UNSENT_BYTES, GuestSession
    from hutch.rules.threats.document import parse_rules
    from hutch.rules.threats.findings import Judge
    from hutch.wire import guest, guest_documents, guest_facts

import logging
from importlib import resources

PENDING = range(1, 6)
ANSWERS = (
    guest_documents.HelloAnswer,
    guest_documents.StateAnswer,
    guest_documents.StatsAnswer,
    guest_documents.ProbeAnswer,
)
RULES = parse_rules((resources.files("hutch.rules.threats") / "default_rules.yaml").read_text())
MAX_BUFFERED = 2 * guest.MAX_FRAME_BYTES


class Writer:
    """The wire to a guest that never reads: counts what would be kept for it."""

    def __init__(self) -> None:
        self.unsent = 0
        self.transport = self

    def write(self, data: bytes) -> None:
        self.unsent += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass


class Logs:
    """Takes records as log files do, and looks at each as it would be in the file."""

    async def write(self, batch: Sequence[tuple[int, guest.LogRecord]]) -> dict[int, int]:
        for number, record in batch:
            assert 0 <= number < 2**32 and record.stream in (1, 2)
            for line in criformat.encode_lines(record.time_ns, record.stream, record.data).splitlines():
                criformat.parse_line(line)
        return {number: record.seq for number, record in batch}


def pieces(data: bytes) -> Iterator[bytes]:
    """The input as bytes on the wire."""
    at = 0
    while at + 3 <= len(data):
        length, kind = int.from_bytes(data[at : at + 2], "big"), data[at + 2] % 4
        payload = data[at + 3 : at + 3 + length]
        at += 3 + length
        if kind == 3:
            yield payload
        elif len(payload) < guest.MAX_FRAME_BYTES - 16:
            number = payload[0] if kind == 2 and payload else kind + 1
            yield guest.encode_frame(number, len(payload) if kind == 1 else 0, payload)


async def converse(data: bytes) -> None:
    """One conversation with a guest that says what the input is."""
    exits: list[int] = []

    async def on_exit(event: guest_documents.ContainerExitedEvent) -> None:
        exits.append(event.seq)

    writer = Writer()
    streams: Any = (asyncio.StreamReader(), writer)
    logs: Any = Logs()
    judge = Judge(RULES)

    def on_facts(event: guest_facts.RuntimeFactsEvent) -> None:
        # As the host agent does, with what it adds.
        more = {"container_id": "c", "image": "i", "privileged": False, "task": "t", "family": "f"}
        subjects = [{**msgspec.structs.asdict(f), **more} for f in event.facts]
        for finding in judge.take(subjects, event.dropped, 0.0):
            assert finding.text.isprintable() and len(finding.text) <= 2000
            msgspec.json.encode(finding)

    session = GuestSession(streams, logs, on_exit, first_id=100, on_facts=on_facts)
    loop = asyncio.get_running_loop()
    futures = {number: loop.create_future() for number in PENDING}
    session._pending.update(futures)
    for wire in pieces(data):
        for at in range(0, len(wire), session_module.READ_BYTES):
            frames = session._decoder.feed(wire[at : at + session_module.READ_BYTES])
            step: Awaitable[None] = session._take(frames)
            await step
            assert len(session._decoder._buffer) <= MAX_BUFFERED
    assert writer.unsent <= MAX_UNSENT_BYTES + guest.MAX_FRAME_BYTES
    assert exits == sorted(set(exits))
    assert set(session._pending) == set(PENDING), "only who asked forgets a question"
    for future in futures.values():
        if future.done() and future.exception() is None:
            for kind in ANSWERS:
                guest_documents.parse_answer(future.result(), kind)


def main() -> None:
    """Until libFuzzer's own limits."""
    logging.disable(logging.CRITICAL)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    atheris.Setup(sys.argv, lambda data: loop.run_until_complete(converse(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
