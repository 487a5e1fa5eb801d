"""Log drivers of tasks on the host agent, with the fake driver: what arrives, what never holds a task up, what is told."""

import asyncio
import datetime
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.support.fleet_control import Host, make_container, make_task
from tests.support.log_servers import HANGS, REFUSES, ForwardServer, SyslogServer

from hutch.host.logs.connections import dial, dial_container_socket
from hutch.rules.logdrivers.firelens import SOCKET_NAME
from hutch.rules.logdrivers.options import Address
from hutch.wire.taskspec import DependencySpec, LogRouterSpec, LogSpec, TaskSpec

ID = "0123456789abcdef0123456789abcdef"
VALUE = "tag-that-nobody-shall-see"


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    await made.control.listen()
    yield made
    await made.close()


def task(log: LogSpec, text: str = "hello", **dials: object) -> TaskSpec:
    return make_task(ID, make_container("app", log=log, LOG=text, **dials))


def fluentd(server: ForwardServer, **options: str) -> LogSpec:
    return LogSpec(
        driver="fluentd", options={"fluentd-address": f"tcp://127.0.0.1:{server.port}", "tag": "t", **options}
    )


async def test_fluentd_gets_records_with_time_and_container(host: Host) -> None:
    server = ForwardServer()
    await server.listen()
    await host.start_agent()
    options = {"fluentd-sub-second-precision": "true", "env": "HUTCH_FAKE_LOG,NOT_THERE"}
    host.control.assign(task(fluentd(server, **options)))
    await server.until(lambda: server.got == ["hello"])
    ((tag, at, record),) = server.records
    assert (tag, record["source"], record["HUTCH_FAKE_LOG"]) == ("t", "stdout", "hello")
    assert record["container_name"].startswith("/ecs-") and record["container_id"]
    assert at.code == 0 and abs(int.from_bytes(at.data[:4], "big") - time.time()) < 600
    await server.close()


async def test_syslog_over_tls(host: Host, tmp_path: Path) -> None:
    server = SyslogServer()
    server.context = self_signed(tmp_path)
    await server.listen()
    await host.start_agent()
    options = {
        "syslog-address": f"tcp+tls://127.0.0.1:{server.port}",
        "syslog-format": "rfc3164",
        "syslog-tls-skip-verify": "true",
        "tag": "{{.Name}}",
    }
    host.control.assign(task(LogSpec(driver="syslog", options=options)))
    await server.until(lambda: server.got == ["hello"])
    assert server.lines[0].startswith(b"<30>")
    with pytest.raises(ssl.SSLError):
        await dial(Address(transport="tls", host="127.0.0.1", port=server.port))
    await server.close()


@pytest.mark.parametrize("way", [HANGS, REFUSES])
async def test_a_back_end_that_takes_nothing_neither_stops_nor_slows_a_task(host: Host, way: str) -> None:
    server = ForwardServer()
    await server.listen()
    await server.become(way)
    await host.start_agent()
    host.control.assign(task(fluentd(server, **{"fluentd-request-ack": "true"})))
    await host.control.until_status(ID, "RUNNING")
    if way == REFUSES:
        await asyncio.wait_for(problem_told(host), 20)
    begun = time.monotonic()
    host.control.stop(ID)
    stopped = await host.control.until_status(ID, "STOPPED")
    assert time.monotonic() - begun < 15
    (fact,) = stopped.containers
    assert fact.exit_code == 143
    assert fact.log_waiting_bytes > 0 and fact.log_dropped_bytes == 0
    if way == REFUSES:
        assert fact.log_problem.startswith(f"fluentd tcp://127.0.0.1:{server.port}: ")
    await server.close()


async def problem_told(host: Host) -> None:
    while True:
        reply = await host.control.request("task.log_drivers", task_id=ID)
        if reply.result["containers"].get("app", {}).get("problem"):
            assert reply.result["containers"]["app"]["driver"] == "fluentd"
            return
        await asyncio.sleep(0.01)


async def test_secret_options_are_on_no_disk_and_waited_for_by_the_next_agent(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server = ForwardServer()
    await server.listen()
    await host.start_agent()
    address = {"fluentd-address": f"127.0.0.1:{server.port}"}
    log = LogSpec(driver="fluentd", options=address, secret_names=("tag",), secrets={"tag": VALUE})
    spec = task(log, LOG_PER_S=20)
    host.control.assign(spec)
    await server.until(lambda: len(server.got) > 2)
    await host.control.until_status(ID, "RUNNING")
    await host.kill_agent()
    await host.control.close()
    # Without its control plane an agent has no values: what is written waits in the file.
    await host.start_agent()
    server.records.clear()
    server.got.clear()
    assert host.agent is not None
    await host.control.listen()
    await server.until(lambda: len(server.got) > 2)
    assert {tag for tag, _, _ in server.records} == {VALUE}
    files = [p for p in host.directory.rglob("*") if p.is_file()]
    assert not [p for p in files if VALUE.encode() in p.read_bytes()]
    assert VALUE not in repr([r.__dict__ for r in caplog.records])
    assert VALUE not in repr(host.control.reports)
    await server.close()


async def test_a_log_router_gets_what_the_others_write_and_goes_last(host: Host) -> None:
    router = make_container("router", log_router=LogRouterSpec(config_path="/c", config="x"))
    app = make_container(
        "app",
        log=LogSpec(driver="awsfirelens", router="router"),
        depends_on=(DependencySpec(container="router", condition="START"),),
        LOG="hello",
    )
    await host.start_agent()
    host.control.assign(make_task(ID, app, router))
    running = await host.control.until_status(ID, "RUNNING")
    server = ForwardServer()
    await server.listen(path=str(host.directory / "tasks" / ID / SOCKET_NAME))
    await server.until(lambda: server.got == ["hello"])
    assert {tag for tag, _, _ in server.records} == {f"app-firelens-{ID}"}
    started = {c.name: c.started_at or 0 for c in running.containers}
    assert started["router"] <= started["app"]
    host.control.stop(ID)
    stopped = await host.control.until_status(ID, "STOPPED")
    finished = {c.name: c.finished_at or 0 for c in stopped.containers}
    assert finished["app"] <= finished["router"]
    await server.close()


async def test_a_router_that_listens_late_gets_the_logs_of_a_task_that_is_soon_over(host: Host) -> None:
    router = make_container("router", log_router=LogRouterSpec(config_path="/c", config="x"))
    app = make_container(
        "app",
        log=LogSpec(driver="awsfirelens", router="router"),
        depends_on=(DependencySpec(container="router", condition="START"),),
        LOG="hello",
        RUN_MS=1,
    )
    await host.start_agent()
    host.control.assign(make_task(ID, app, router))
    await host.control.until_status(ID, "STOPPING")
    server = ForwardServer()
    await server.listen(path=str(host.directory / "tasks" / ID / SOCKET_NAME))
    stopped = await host.control.until_status(ID, "STOPPED")
    assert server.got == ["hello"]
    assert {c.name: c.log_waiting_bytes for c in stopped.containers} == {"app": 0, "router": 0}
    await server.close()


async def test_a_link_in_the_place_of_a_routers_socket_is_not_followed(tmp_path: Path) -> None:
    server = ForwardServer()
    await server.listen(path=str(tmp_path / "of-the-host"))
    (tmp_path / "link").symlink_to("of-the-host")
    (tmp_path / "file").touch()
    for name in ("link", "file", "missing"):
        with pytest.raises(OSError):
            await dial_container_socket(str(tmp_path / name))
    connection = await dial_container_socket(str(tmp_path / "of-the-host"))
    await connection.close()
    await server.close()


async def test_link_local_addresses_are_refused() -> None:
    for host_name in ("169.254.169.254", "fe80::1"):
        for transport in ("tcp", "udp"):
            with pytest.raises(OSError, match="link-local"):
                await dial(Address(transport=transport, host=host_name, port=80))


def self_signed(directory: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "logs")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
