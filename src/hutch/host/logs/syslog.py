"""The syslog sink. The protocol has no answers: a message that has left this host is done with."""

from hutch.host.logs.contract import Connection, Dial, LogEntry
from hutch.host.logs.retrying import DELIVER_LIMIT_S, LONGEST_DELAY_S, RetryingSink
from hutch.rules.logdrivers import syslog


class SyslogSink(RetryingSink):
    """One container's messages."""

    max_batch_bytes = 64 * 1024

    def __init__(
        self,
        dial: Dial,
        *,
        options: syslog.SyslogOptions,
        host: str,
        tag: str,
        longest_delay_s: float = LONGEST_DELAY_S,
        limit_s: float = DELIVER_LIMIT_S,
    ) -> None:
        """`host` is the name under which messages come."""
        target = f"syslog {options.address}"
        super().__init__(
            dial, target=target, seed=f"{host}/{tag}", longest_delay_s=longest_delay_s, limit_s=limit_s
        )
        self._options = options
        self._host = host
        self._tag = tag
        self._sent = 0
        """Datagrams of the batch under way."""

    async def _deliver(self, connection: Connection, entries: tuple[LogEntry, ...]) -> str:
        messages = [self._framed(e) for e in entries]
        if self._options.address.transport == "udp":
            for message in messages[self._sent :]:
                await connection.write(message)
                self._sent += 1
            self._sent = 0
        else:
            await connection.write(b"".join(messages))
        return ""

    def _framed(self, entry: LogEntry) -> bytes:
        message = syslog.message(
            self._options,
            time_ns=entry.time_ns,
            is_error=entry.stream == "stderr",
            host=self._host,
            tag=self._tag,
            text=entry.text,
        )
        return syslog.framed(self._options, message)
