"""Log drivers: their options, tags, syslog messages, and the configuration of a log router."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.logdrivers import files, firelens, fluentd, syslog
from hutch.rules.logdrivers.options import Address, Identity, parse_delivery, render_tag
from hutch.rules.taskdef.register import register

T0_NS = 1_700_000_000_123_456_789
APP = Identity(container_id="ab" * 32, container_name="ecs-web-3-app", image="repo/app:1")
SECRET = "arn:aws:secretsmanager:us-east-1:000000000000:secret:key-AbCdEf"


def test_fluentd_options() -> None:
    given_options = {
        "fluentd-address": "tcp://logs.example:9999",
        "fluentd-async": "true",
        "fluentd-request-ack": "true",
        "fluentd-sub-second-precision": "true",
        "mode": "blocking",
        "max-buffer-size": "1m",
        "tag": "app.{{.Name}}",
        "env": "A, B",
    }
    options = fluentd.parse_options(given_options)
    assert options.address == Address(transport="tcp", host="logs.example", port=9999)
    assert options.delivery.blocking and options.delivery.buffer_bytes == 1 << 20
    assert options.request_ack and options.sub_second and options.environment == ("A", "B")
    assert render_tag(options.tag, APP) == "app.ecs-web-3-app"
    plain = fluentd.parse_options({})
    assert str(plain.address) == "tcp://127.0.0.1:24224"
    assert render_tag(plain.tag, APP) == "ab" * 6 and not plain.delivery.blocking


@pytest.mark.parametrize(
    ("driver", "options", "words"),
    [
        ("fluentd", {"fluentd-address": "unix:///var/run/x.sock"}, "can't be a unix socket"),
        ("fluentd", {"fluentd-address": "http://h"}, "must begin with one of tcp://, tls://"),
        ("fluentd", {"fluentd-address": "h:99999"}, "is not an address"),
        ("fluentd", {"fluentd-address": "h:1:2"}, "is not an address"),
        ("fluentd", {"fluentd-address": "a b"}, "is not an address"),
        ("fluentd", {"fluentd-async": "false"}, "in the background"),
        ("fluentd", {"fluentd-retry-wait": "1s"}, "has no option 'fluentd-retry-wait'"),
        ("fluentd", {"tag": "{{.Secret}}"}, "{{.Secret}}, which hutch does not know"),
        ("fluentd", {"fluentd-request-ack": "yes"}, "must be true or false"),
        ("fluentd", {"mode": "perhaps"}, "mode must be blocking or non-blocking"),
        ("fluentd", {"max-buffer-size": "big"}, "must be a size such as 25m"),
        ("syslog", {}, "Log driver syslog requires options: syslog-address"),
        ("syslog", {"syslog-address": "unixgram:///dev/log"}, "can't be a unix socket"),
        ("syslog", {"syslog-address": "h:514"}, "must begin with one of udp://"),
        ("syslog", {"syslog-address": "udp://h", "syslog-facility": "local8"}, "is no facility"),
        ("syslog", {"syslog-address": "udp://h", "syslog-format": "x"}, "syslog-format must be"),
        ("syslog", {"syslog-address": "udp://h", "syslog-tls-key": "/k"}, "has no option 'syslog-tls-key'"),
        ("json-file", {"max-size": "1k"}, "at least 4k"),
        ("json-file", {"max-file": "3"}, "max-file needs max-size"),
        ("json-file", {"max-size": "10m", "max-file": "0"}, "max-file must be between"),
        ("json-file", {"max-size": "100m", "max-file": "100"}, "keeps at most 1g"),
        ("local", {"compress": "true"}, "has no option 'compress'"),
        ("none", {"tag": "x"}, "log driver none has no option 'tag'"),
        ("splunk", {}, "does not support log driver splunk"),
    ],
)
def test_what_is_refused(driver: str, options: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid) as refused:
        register(definition(app(driver, options)), strict_aws=False)
    assert words in refused.value.message


def test_how_much_a_host_keeps() -> None:
    bounds = files.parse_options("json-file", {"max-size": "10m", "max-file": "3"})
    assert (bounds.max_bytes, bounds.files) == (10 << 20, 3)
    assert files.parse_options("json-file", {"max-size": "10m"}).files == 1
    assert files.parse_options("local", {}) == files.HOST_BOUNDS == files.bounds_of("awslogs", {"x": "y"})


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("", b"<27>Nov 14 22:13:20 ecs-web-3-app: hello"),
        ("rfc3164", b"<27>Nov 14 22:13:20 h.example ecs-web-3-app: hello"),
        ("rfc5424", b"<27>1 2023-11-14T22:13:20Z h.example ecs-web-3-app - - - hello"),
        ("rfc5424micro", b"<27>1 2023-11-14T22:13:20.123456Z h.example ecs-web-3-app - - - hello"),
    ],
)
def test_syslog_messages(form: str, expected: bytes) -> None:
    options = syslog.parse_options({"syslog-address": "tcp://h", "syslog-format": form, "tag": "{{.Name}}"})
    tag = render_tag(options.tag, APP)
    made = syslog.message(options, time_ns=T0_NS, is_error=True, host="h.example", tag=tag, text="hello")
    assert made == expected
    assert syslog.framed(options, made) == expected + b"\n"


def test_syslog_framing_by_transport() -> None:
    udp = syslog.parse_options({"syslog-address": "udp://[::1]:5514", "syslog-facility": "local0"})
    assert (udp.address.host, udp.address.port, udp.facility) == ("::1", 5514, 16)
    assert len(syslog.framed(udp, b"x" * 100_000)) == syslog.MAX_DATAGRAM_BYTES
    tls = syslog.parse_options({"syslog-address": "tcp+tls://h", "syslog-format": "rfc5424"})
    assert tls.address.port == 6514 and tls.verify
    assert syslog.framed(tls, b"12345") == b"5 12345"


@given(st.text(), st.text(max_size=60), st.sampled_from(syslog.FORMATS))
def test_nothing_in_a_line_or_a_tag_makes_another_message(text: str, tag: str, form: str) -> None:
    options = syslog.SyslogOptions(
        address=Address(transport="tcp", host="h", port=1), format=form, facility=23
    )
    made = syslog.message(options, time_ns=T0_NS, is_error=False, host="h", tag=tag, text=text)
    assert syslog.framed(options, made).count(b"\n") == 1
    assert made.startswith(b"<190>")


@given(st.dictionaries(st.sampled_from(["mode", "max-buffer-size"]), st.text(max_size=8)))
def test_delivery_options_are_taken_or_refused(options: dict[str, str]) -> None:
    with contextlib.suppress(Invalid):
        assert parse_delivery(options).buffer_bytes >= 0


# -- the log router


def app(driver: str, options: dict[str, str], **log: Any) -> dict[str, Any]:
    return {
        "name": "app",
        "image": "app",
        "logConfiguration": {"logDriver": driver, "options": options, **log},
    }


def router(kind: str = "fluentbit", options: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    made = {"type": kind} | ({"options": options} if options else {})
    return {"name": "router", "image": "fluent", "firelensConfiguration": made, **more}


def definition(*containers: dict[str, Any]) -> dict[str, Any]:
    return {
        "family": "f",
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": list(containers),
    }


def config(kind: str, *sources: firelens.Source, **more: Any) -> str:
    made = {"kind": kind, "cluster": "c", "task_arn": "arn:t", "task_definition": "f:1", "sources": sources}
    return firelens.config_text(firelens.RouterConfig(**(made | more)))


SOURCE = firelens.Source(
    container="app",
    options={
        "Name": "http",
        "Host": "h",
        "include-pattern": "^keep",
        "exclude-pattern": "debug$",
        "log-driver-buffer-limit": "1000",
        "mode": "non-blocking",
    },
    secrets={"apikey": "HUTCH_FIRELENS_0_APIKEY"},
)


def test_the_configuration_of_fluent_bit() -> None:
    assert config("fluentbit", SOURCE, include_path="/extra.conf").split("\n\n") == [
        "[INPUT]\n    Name forward\n    Mem_Buf_Limit 25MB\n    unix_path /var/run/fluent.sock",
        "[INPUT]\n    Name forward\n    Listen 127.0.0.1\n    Port 24224",
        "[FILTER]\n    Name grep\n    Match app-firelens*\n    Regex log ^keep",
        "[FILTER]\n    Name grep\n    Match app-firelens*\n    Exclude log debug$",
        "[FILTER]\n    Name record_modifier\n    Match *\n    Record ecs_cluster c\n    Record ecs_task_arn arn:t\n"
        "    Record ecs_task_definition f:1",
        "@INCLUDE /extra.conf",
        "[OUTPUT]\n    Name http\n    Match app-firelens*\n    Host h\n    apikey ${HUTCH_FIRELENS_0_APIKEY}\n",
    ]
    assert firelens.log_tag("app", "t1").startswith("app-firelens")


def test_the_configuration_of_fluentd() -> None:
    source = firelens.Source(
        container="app",
        options={"@type": "forward", "port": "1", "include-pattern": "x"},
        secrets={"key": "V"},
    )
    assert config("fluentd", source, listens=False).split("\n\n") == [
        "<source>\n  @type unix\n  path /var/run/fluent.sock\n</source>",
        "<filter app-firelens**>\n  @type grep\n  <regexp>\n    key log\n    pattern /x/\n  </regexp>\n</filter>",
        "<filter **>\n  @type record_transformer\n  <record>\n    ecs_cluster c\n    ecs_task_arn arn:t\n"
        "    ecs_task_definition f:1\n  </record>\n</filter>",
        "<match app-firelens**>\n  @type forward\n  port 1\n  key \"#{ENV['V']}\"\n</match>\n",
    ]
    assert "ecs_cluster" not in config("fluentd", source, adds_metadata=False)


def test_a_container_without_an_output_of_its_own_leaves_it_to_the_users_file() -> None:
    bare = firelens.Source(container="app", options={})
    assert "[OUTPUT]" not in config("fluentbit", bare) and "<match" not in config("fluentd", bare)


FIRELENS = {"Name": "stdout"}


@pytest.mark.parametrize(
    ("containers", "words"),
    [
        ((app("awsfirelens", FIRELENS),), "When awsfirelens log driver is specified in log configuration"),
        ((app("awslogs", {}), router()), "Log driver awslogs requires options"),
        (
            ({"name": "app", "image": "i"}, router()),
            "When a firelensConfiguration object is specified, at least one",
        ),
        ((app("awsfirelens", FIRELENS), router("vector")), "type must be fluentd or fluentbit"),
        ((app("awsfirelens", FIRELENS), router(options={"x": "y"})), "has no option 'x'"),
        (
            (
                app("awsfirelens", FIRELENS),
                router(options={"config-file-type": "s3", "config-file-value": "a"}),
            ),
            "is not the ARN of an object",
        ),
        ((app("awsfirelens", FIRELENS), router(options={"config-file-type": "file"})), "go together"),
        (
            (
                app("awsfirelens", FIRELENS),
                router(
                    options={
                        "config-file-type": "file",
                        "config-file-value": "/fluent-bit/etc/fluent-bit.conf",
                    }
                ),
            ),
            "is where the generated configuration is",
        ),
        ((app("awsfirelens", FIRELENS), router(user="1000")), "has to run as root"),
        ((app("awsfirelens", {"Host": "h"}), router()), "requires options: Name"),
        ((app("awsfirelens", FIRELENS), router("fluentd")), "requires options: @type"),
        ((app("awsfirelens", {"Name": "a\n[SERVICE]"}), router()), "can't be written into a configuration"),
        (
            (
                app("awsfirelens", FIRELENS),
                router(dependsOn=[{"containerName": "app", "condition": "START"}]),
            ),
            "Log router 'router' can't depend on a container whose logs it is to take",
        ),
        ((app("awsfirelens", FIRELENS), router(), {**router(), "name": "second"}), "Only one container"),
        (
            (app("awsfirelens", FIRELENS, secretOptions=[{"name": "Name", "valueFrom": SECRET}]), router()),
            "needs a name that no other option has",
        ),
        (
            (
                app(
                    "awsfirelens", FIRELENS, secretOptions=[{"name": "include-pattern", "valueFrom": SECRET}]
                ),
                router(),
            ),
            "can't be a secret",
        ),
    ],
)
def test_what_is_refused_of_a_log_router(containers: tuple[dict[str, Any], ...], words: str) -> None:
    with pytest.raises(Invalid) as refused:
        register(definition(*containers), strict_aws=False)
    assert words in refused.value.message


def test_secret_options_are_checked_by_name_and_asked_for() -> None:
    secrets = [{"name": "apikey", "valueFrom": SECRET}]
    made = register(
        definition(app("awsfirelens", FIRELENS, secretOptions=secrets), router()), strict_aws=False
    )
    assert {
        "com.amazonaws.ecs.capability.logging-driver.awsfirelens",
        "ecs.capability.firelens.fluentbit",
        "ecs.capability.secrets.asm.bootstrap.log-driver",
    } <= set(made.requires_attributes)
    hidden = app("syslog", {}, secretOptions=[{"name": "syslog-address", "valueFrom": SECRET}])
    register(definition(hidden), strict_aws=False)
    for driver, name, words in (
        ("syslog", "colour", "has no option 'colour'"),
        ("json-file", "max-size", "can't be a secret"),
        ("awslogs", "awslogs-stream-prefix", "can't be a secret"),
    ):
        options = {"awslogs-group": "/g", "awslogs-region": "r"} if driver == "awslogs" else {}
        log = app(driver, options, secretOptions=[{"name": name, "valueFrom": SECRET}])
        with pytest.raises(Invalid) as refused:
            register(definition(log), strict_aws=False)
        assert words in refused.value.message
    bad = app("fluentd", {}, secretOptions=[{"name": "tag", "valueFrom": "arn:aws:s3:::b"}])
    with pytest.raises(Invalid) as refused:
        register(definition(bad), strict_aws=False)
    assert "secret option tag" in refused.value.message


def test_a_configuration_that_is_an_object_is_a_warning_for_fargate() -> None:
    options = {"config-file-type": "s3", "config-file-value": "arn:aws:s3:::bucket/extra.conf"}
    given_definition = definition(app("awsfirelens", FIRELENS), router(options=options))
    made = register(given_definition, strict_aws=False)
    words = "Fargate launch type does not support FirelensConfiguration config file from 's3'"
    assert words in made.warnings
    assert "ecs.capability.firelens.options.config.s3" in made.requires_attributes
    with pytest.raises(Invalid):
        register(given_definition, strict_aws=True)
