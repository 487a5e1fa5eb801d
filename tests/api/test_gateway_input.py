"""Hostile and mistaken input: AWS's answer to each, and never an internal error."""

import contextlib
import hashlib
import http.client
import json
import socket
from urllib.parse import quote

import botocore.exceptions
import msgspec
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.api.support.server import ApiServer
from tests.api.support.toys import Toys

from hutch.base import sigv4
from hutch.base.clock import SystemClock

ECS = "AmazonEC2ContainerServiceV20141113"
LOGS = "Logs_20140328"


def post(
    server: ApiServer,
    service: str,
    body: bytes,
    headers: dict[str, str],
    method: str = "POST",
    path: str = "/",
    query: str = "",
) -> tuple[int, dict[str, str], bytes]:
    """A signed request whose body is any bytes at all."""
    host = f"127.0.0.1:{server.port}"
    lower = {k.lower(): v for k, v in headers.items()} | {"host": host}
    lower |= sigv4.sign(
        access_key_id=server.key.access_key_id,
        secret_key=server.key.secret_key,
        region=server.region,
        service=service,
        method=method,
        raw_path=path.encode(),
        query=query,
        headers=lower,
        payload_sha256=hashlib.sha256(body).hexdigest(),
        now=SystemClock().now(),
    )
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request(method, path + (f"?{query}" if query else ""), body=body, headers=lower)
        response = connection.getresponse()
        data = response.read()
    finally:
        connection.close()
    assert response.headers["x-amzn-requestid"]
    return response.status, dict(response.headers), data


def json_post(server: ApiServer, operation: str, body: object, target: str = ECS) -> tuple[int, dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"X-Amz-Target": f"{target}.{operation}", "Content-Type": "application/x-amz-json-1.1"}
    status, _, data = post(server, "ecs" if target == ECS else "logs", raw, headers)
    return status, json.loads(data or b"{}")


SERIALIZATION = "SerializationException"
INVALID = "InvalidParameterException"
UNSUPPORTED = "UnsupportedFeatureException"


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (
            b"",
            INVALID,
            "Value null at 'taskDefinition' failed to satisfy constraint: Member must not be null",
        ),
        (b"{", SERIALIZATION, "not valid JSON"),
        (b"[]", SERIALIZATION, "must be a JSON object"),
        (b"\xff\xfe", SERIALIZATION, "not valid JSON"),
        (
            b'{"taskDefinition": 5}',
            SERIALIZATION,
            "NUMBER_VALUE can not be converted to String. (at 'taskDefinition')",
        ),
        (
            b'{"taskDefinition": "a", "count": "1"}',
            SERIALIZATION,
            "STRING_VALUE can not be converted to Integer",
        ),
        (
            b'{"taskDefinition": "a", "count": true}',
            SERIALIZATION,
            "TRUE_VALUE can not be converted to Integer",
        ),
        (b'{"taskDefinition": "a", "count": 1e300}', SERIALIZATION, "out of the range of Integer"),
        (b'{"taskDefinition": "a", "count": 99999999999}', SERIALIZATION, "out of the range of Integer"),
        (
            b'{"taskDefinition": "a", "tags": {}}',
            SERIALIZATION,
            "Start of structure or map found where not expected. (at 'tags')",
        ),
        (
            b'{"taskDefinition": "a", "launchType": "MOON"}',
            INVALID,
            "Member must satisfy enum value set: [EC2, EXTERNAL, FARGATE",
        ),
        (b'{"taskDefinition": "a", "nonsense": 1}', INVALID, "Unknown parameter 'nonsense'"),
        (b'{"taskDefinition": "a\\u0000b"}', INVALID, "must not contain the character U+0000"),
        (b'{"taskDefinition": "\\ud800"}', SERIALIZATION, "not valid JSON"),
        (b'{"taskDefinition": "a", "tags": [{"key": "k"}, null]}', INVALID, "'tags.2.member' failed"),
        (
            b'{"overrides": {"containerOverrides": [{"environment": [{"nam": "x"}]}]}, "launchType": "x"}',
            INVALID,
            "3 validation errors detected: Unknown parameter "
            "'overrides.containerOverrides.1.member.environment.1.member.nam'; Value 'x' at 'launchType'",
        ),
        (
            b'{"taskDefinition": "a", "group": "g"}',
            UNSUPPORTED,
            "hutch does not support group: groups come later.",
        ),
        (
            b'{"taskDefinition": "a", "startedBy": "g"}',
            UNSUPPORTED,
            "hutch does not support startedBy: hutch does not honour it.",
        ),
        (
            b'{"taskDefinition":"a","overrides":{"containerOverrides":[{"environmentFiles":[{"type":"s3","value":""}]}]}}',
            UNSUPPORTED,
            "overrides.containerOverrides.environmentFiles: files come later",
        ),
    ],
)
def test_json_refusals(server: ApiServer, body: bytes, code: str, message: str) -> None:
    status, answer = json_post(server, "RunTask", body)
    assert (status, answer["__type"]) == (400, code)
    assert message in answer["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"group": None},
        {"group": ""},
        {"count": 2.0},
        {"overrides": {"taskRoleArn": "r", "containerOverrides": [{"environmentFiles": []}]}},
    ],
)
def test_what_says_nothing_is_not_refused(server: ApiServer, extra: dict) -> None:
    status, answer = json_post(server, "RunTask", {"taskDefinition": "a", **extra})
    assert status == 200, answer


def test_an_operation_may_have_its_own_code(server: ApiServer) -> None:
    status, answer = json_post(server, "CreateCluster", {"clusterName": "a", "x": 1})
    assert (status, answer["__type"]) == (400, "ClientException")


def test_numbers_lengths_and_patterns(server: ApiServer) -> None:
    _, answer = json_post(server, "CreateLogGroup", {"logGroupName": "a b"}, LOGS)
    assert "Member must satisfy regular expression pattern: [\\.\\-_/#A-Za-z0-9]+" in answer["message"]
    _, answer = json_post(server, "CreateLogGroup", {"logGroupName": ""}, LOGS)
    assert "Member must have length greater than or equal to 1" in answer["message"]
    _, answer = json_post(server, "CreateLogGroup", {"logGroupName": "a" * 513}, LOGS)
    assert (
        "Member must have length less than or equal to 512" in answer["message"]
        and len(answer["message"]) < 500
    )
    tags = {"logGroupName": "a", "tags": {"": "x"}}
    assert json_post(server, "CreateLogGroup", tags, LOGS)[0] == 400
    assert (
        json_post(server, "CreateLogGroup", {"logGroupName": "a", "tags": {"ключ": "值 1"}}, LOGS)[0] == 200
    )
    events = {"logGroupName": "a", "logStreamName": "b", "logEvents": [{"timestamp": -1, "message": "m"}]}
    _, answer = json_post(server, "PutLogEvents", events, LOGS)
    assert (
        "'logEvents.1.member.timestamp' failed to satisfy constraint: Member must have value greater"
        in answer["message"]
    )


def test_logs_keep_their_control_characters(server: ApiServer, toys: Toys) -> None:
    message = "\x1b[31mred\x1b[0m\t\x07"
    events = {"logGroupName": "a", "logStreamName": "b", "logEvents": [{"timestamp": 1, "message": message}]}
    assert json_post(server, "PutLogEvents", events, LOGS)[0] == 200
    assert toys.last["logEvents"][0]["message"] == message


def test_large_and_deep(server: ApiServer) -> None:
    assert json_post(server, "DeleteCluster", {"cluster": "x" * 1_000_000})[0] == 200
    status, answer = json_post(server, "CreateLogGroup", {"logGroupName": "a-" * 500_000}, LOGS)
    assert status == 400 and len(answer["message"]) < 1000
    status, answer = json_post(server, "DeleteCluster", b'{"cluster":' + b"[" * 200_000)
    assert (status, answer["__type"]) == (400, "SerializationException")
    status, answer = json_post(server, "DeleteCluster", b'{"cluster":"' + b"x" * 2_100_000 + b'"}')
    assert (status, answer["__type"]) == (413, "RequestEntityTooLargeException")
    assert json_post(server, "DeleteCluster", {"cluster": "after"})[0] == 200


def test_a_large_body_without_a_length(server: ApiServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    chunks = (b"x" * 100_000 for _ in range(40))
    headers = {"X-Amz-Target": f"{ECS}.ListClusters", "Content-Type": "application/x-amz-json-1.1"}
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/", body=chunks, headers=headers, encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    connection.close()


UPGRADE = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 5_000_000, 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 1_000_000, 431),
        (b"GET /" + b"x" * 5_000_000, 431),
        (b"POST / HTTP/1.1\r\n" + UPGRADE + KEY + b"Content-Length: 3\r\n\r\nabc", 400),
        (b"GET / HTTP/1.1\r\n" + UPGRADE + KEY + b"A: " + b"x" * 10_000 + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + UPGRADE + b"\r\n", 400),
    ],
)
def test_a_head_that_never_ends_or_is_no_websocket_s_is_answered(
    server: ApiServer, head: bytes, status: int
) -> None:
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head)
        # What was not read any more may reset the connection before the answer is.
        with contextlib.suppress(ConnectionResetError):
            answer = connection.recv(65536)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()) or (status == 431 and not answer)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-Amz-Target": f"{ECS}.ListClusters", "Content-Type": "text/plain"}, 415),
        ({"X-Amz-Target": f"{ECS}.ListClusters"}, 415),
        ({"X-Amz-Target": f"{ECS}.", "Content-Type": "application/x-amz-json-1.1"}, 400),
        ({"X-Amz-Target": "ListClusters", "Content-Type": "application/x-amz-json-1.1"}, 400),
        ({"X-Amz-Target": f"{ECS}.Nonsense", "Content-Type": "application/x-amz-json-1.1"}, 400),
        ({"Content-Type": "application/x-amz-json-1.1"}, 404),
    ],
)
def test_wrong_headers(server: ApiServer, headers: dict, status: int) -> None:
    found, _, body = post(server, "ecs", b"{}", headers)
    assert (found, b"__type" in body) == (status, True)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"", b"MissingAction", b"Action"),
        (b"Action=Nope", b"InvalidAction", b"not valid for this web service"),
        (b"Action=ListUsers", b"InvalidAction", b"hutch does not serve ListUsers yet"),
        (b"Action=GetRole&Version=1999-01-01", b"InvalidAction", b"use 2010-05-08"),
        (b"Action=GetRole", b"ValidationError", b"Member must not be null"),
        (b"Action=GetRole&RoleName=r&Other=1", b"ValidationError", b"Unknown parameter: &apos;Other"),
        (b"Action=GetRole&RoleName=r&RoleName=q", b"MalformedInput", b"more than once"),
        (b"Action=GetRole&RoleName=r&RoleName.x=q", b"MalformedInput", b"contradicts"),
        (b"Action=GetRole&RoleName=%FF", b"MalformedInput", b"UTF-8"),
        (b"Action=GetRole&RoleName=a%01b", b"ValidationError", b"control character"),
        (b"Action=ListRoles&MaxItems=many", b"MalformedInput", b"can not be converted to Integer"),
        (b"Action=ListRoles&MaxItems=1_0", b"MalformedInput", b"can not be converted to Integer"),
        (b"Action=TagRole&RoleName=r&Tags.1.Key=a", b"ValidationError", b"must be numbered as Tags.member.N"),
        (b"Action=TagRole&RoleName=r&Tags.member.x.Key=a", b"MalformedInput", b"numbered from 1"),
        (b"Action=TagRole&RoleName=r&Tags.member.1.Key=a&Tags.member.01=b", b"MalformedInput", b"more than once"),
        (b"Action=TagRole&RoleName=r&" + b"Tags." * 40 + b"x=1", b"ValidationError", b"Unknown parameter"),
        (b"&".join(b"a%d=1" % i for i in range(6000)), b"MalformedInput", b"5000 fields"),
    ],
)  # fmt: skip
def test_form_refusals(server: ApiServer, body: bytes, code: bytes, message: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
    status, _, answer = post(server, "iam", body, headers)
    assert status == 400 and b"<Code>" + code + b"</Code>" in answer, answer
    assert message in answer.replace(b"'", b"&apos;") or message in answer


def test_rest_refusals(server: ApiServer) -> None:
    for method, path, query, body, status, code in (
        ("GET", "/nowhere", "", b"", 404, "UnknownOperationException"),
        ("GET", "/schedules", "Nonsense=1", b"", 400, "ValidationException"),
        ("GET", "/schedules", "MaxResults=five", b"", 400, "SerializationException"),
        ("GET", "/schedules", "MaxResults=1&MaxResults=2", b"", 400, "ValidationException"),
        ("POST", "/schedule-groups/g", "", b"{", 400, "SerializationException"),
        ("POST", "/schedule-groups/g", "", b'{"Nonsense":1}', 400, "ValidationException"),
        ("POST", "/schedule-groups/g%20h", "", b"{}", 400, "ValidationException"),
        ("PUT", "/schedules/x", "", b"{}", 404, "UnknownOperationException"),
    ):
        found, headers, answer = post(server, "scheduler", body, {}, method, path, query)
        assert (found, headers["x-amzn-errortype"]) == (status, code), (path, query, answer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
members = st.sampled_from(
    ["cluster", "taskDefinition", "count", "overrides", "tags", "launchType", "group", "x"]
)
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(body=st.dictionaries(members, json_values, max_size=5))
def test_fuzzed_json_is_never_an_internal_error(server: ApiServer, body: dict) -> None:
    body.pop("cluster", None)  # the toy raises what the cluster's name says
    status, answer = json_post(server, "RunTask", msgspec.json.encode(body))
    assert status in (200, 400), answer


@fuzz
@given(body=st.binary(max_size=200))
def test_fuzzed_bytes_are_never_an_internal_error(server: ApiServer, body: bytes) -> None:
    status, answer = json_post(server, "RunTask", body)
    assert status == 400, answer
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for service in ("iam", "ec2"):
        assert post(server, service, body, form)[0] == 400


names = st.sampled_from(
    ["Tags", "member", "1", "2", "Key", "Value", "RoleName", "Filter", "Name", "entry", ""]
)


@fuzz
@given(fields=st.lists(st.tuples(st.lists(names, max_size=5), st.text("ab1&=%.", max_size=5)), max_size=6))
def test_fuzzed_forms_are_never_an_internal_error(server: ApiServer, fields: list) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    raw = "&".join(f"{'.'.join(n)}={v}" for n, v in fields).encode()
    for service, action in (
        ("iam", b"TagRole"),
        ("iam", b"SimulatePrincipalPolicy"),
        ("ec2", b"DescribeVpcs"),
    ):
        assert post(server, service, b"Action=" + action + b"&" + raw, form)[0] in (200, 400)


@fuzz
@given(path=st.text("/abc%2F.{}~ schedules-group", max_size=30), query=st.text("abc=&%+é;", max_size=20))
def test_fuzzed_paths_are_never_an_internal_error(server: ApiServer, path: str, query: str) -> None:
    clean_path, clean_query = "/" + quote(path, safe="/%"), quote(query, safe="=&%+;")
    assert post(server, "scheduler", b"", {}, "GET", clean_path, clean_query)[0] in (200, 400, 403, 404)


def test_botocore_reads_validation_errors(server: ApiServer) -> None:
    config = Config(parameter_validation=False, retries={"total_max_attempts": 1})
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        server.client("ecs", config=config).run_task(taskDefinition=5)
    assert caught.value.response["Error"]["Code"] == "SerializationException"
