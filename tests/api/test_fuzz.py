"""Hostile input to everything that hutch serves: whatever is sent, the answer is AWS's, and never an internal error.

Inputs are derived from the service models: mostly of the right shape, with values that are at the edge of what is
allowed or beyond it; the server is in strict mode, so an answer that the model does not describe fails as well.
"""

import contextlib
import copy
import http.client
import json
import xml.etree.ElementTree as ET
from typing import Any
from urllib.parse import quote

import botocore.model
import botocore.serialize
import botocore.session
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.api.support.aws import HOST_ID, AwsServer
from tests.api.support.seeds import Seeds, seeds
from tests.api.support.server import ApiServer
from tests.api.support.signed import signed_headers

ECS_ARN = "arn:aws:ecs:us-east-1:000000000000"
KNOWN = (
    "default", "fuzz", "fuzz:1", HOST_ID, "/fuzz", "stream", "main", "x", "256", "512", "awsvpc", "FARGATE",
    f"{ECS_ARN}:cluster/default", f"{ECS_ARN}:task-definition/fuzz:1", f"{ECS_ARN}:task/default/{'0' * 32}",
    "arn:aws:logs:us-east-1:000000000000:log-group:/fuzz", "tag:a", "vpc-id", "10.0.0.0/8", "a=b", "key",
)  # fmt: skip
HOSTILE = (
    "", " ", "a/b", "../../etc/passwd", "a\0b", "line\nbreak\r\n", "\x1b[31m", "\u202eevil", "é" * 300, "x" * 5000,
    "9" * 30, "-1", "1e400", "NaN", "null", "{}", "[", "{ $.a = ", "arn:", "arn:aws:ecs:::task/", "arn:aws:ecs:x:1:task/a/b/c/d",
    "%s%n", "' OR 1=1 --", "${HOME}", "aws:reserved", "f/" + "9" * 56, "*", "a:b:c", ":", "/", "\U0001f4a9", "(((a+)+)+)+$",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 100, 2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1.5, -0.0)
COMMON_CODES = {
    "SerializationException", "ValidationException", "UnknownOperationException", "RequestEntityTooLargeException",
    "UnsupportedFeatureException",
}  # fmt: skip
JSON_SERVICES = ("ecs", "events", "logs", "secretsmanager", "ssm")
QUERY_SERVICES = ("ec2", "iam", "sts")
MAX_DEPTH = 6
SESSION = botocore.session.get_session()


def strings(shape: botocore.model.Shape) -> st.SearchStrategy[str]:
    known = tuple(getattr(shape, "enum", ())) or KNOWN
    return st.one_of(
        st.sampled_from(known), st.sampled_from(KNOWN), st.sampled_from(HOSTILE), st.text(max_size=20)
    )


def texts() -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(KNOWN), st.sampled_from(HOSTILE), st.text(max_size=20))


def values(shape: botocore.model.Shape, depth: int, typed: bool) -> st.SearchStrategy[Any]:
    """Values for a shape. `typed`: of its own type at least, as clients send them."""
    own = _values(shape, depth, typed)
    if typed:
        return own
    wrong = st.sampled_from([None, True, 0, -1.5, "text", [], {}, [[]], {"": None}, "x" * 70_000])
    # One in twenty: most of an input must be right, or nothing but the first check is ever tried.
    return st.integers(0, 19).flatmap(lambda n: own if n else wrong)


def _values(shape: botocore.model.Shape, depth: int, typed: bool) -> st.SearchStrategy[Any]:
    kind = shape.type_name
    if kind == "structure":
        return structures(shape, depth, typed)
    if kind == "list":
        return st.lists(values(shape.member, depth + 1, typed), max_size=0 if depth > MAX_DEPTH else 3)
    if kind == "map":
        return st.dictionaries(strings(shape.key), values(shape.value, depth + 1, typed), max_size=3)
    if kind in ("integer", "long"):
        return st.sampled_from([n for n in NUMBERS if isinstance(n, int)])
    if kind in ("float", "double"):
        return st.sampled_from([n for n in NUMBERS if n != 10**400])
    if kind == "boolean":
        return st.booleans()
    if kind == "timestamp":
        return st.sampled_from([0, 1_700_000_000, 2_000_000_000])
    if kind == "blob":
        return st.just("eA==")
    return strings(shape)


@st.composite
def structures(draw: st.DrawFn, shape: Any, depth: int, typed: bool) -> dict[str, Any]:
    given_members = {}
    for name, member in shape.members.items():
        # Deep in a tree little is given; what is required nearly always.
        odds = 19 if name in shape.required_members else max(1, 8 - 3 * depth)
        if draw(st.integers(0, 20)) < odds:
            given_members[name] = draw(values(member, depth + 1, typed))
    if not typed and draw(st.integers(0, 30)) == 0:
        given_members[draw(st.sampled_from(HOSTILE))] = 1
    return given_members


def paths(value: Any, shape: Any, here: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Every place in an input, with its shape."""
    found = [(here, shape)]
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        inner = [(n, v, shape.members[n]) for n, v in value.items() if n in shape.members]
    elif kind == "map" and isinstance(value, dict):
        inner = [(n, v, shape.value) for n, v in value.items()]
    elif kind == "list" and isinstance(value, list):
        inner = [(i, v, shape.member) for i, v in enumerate(value)]
    else:
        inner = []
    for step, part, part_shape in inner:
        found += paths(part, part_shape, (*here, step))
    return found


def seeds_of(operation: botocore.model.OperationModel, right: Seeds) -> list[dict[str, Any]]:
    name = operation.name
    return right.get(f"{operation.service_model.service_name}.{name}") or right.get(name) or []


@st.composite
def inputs(draw: st.DrawFn, operation: botocore.model.OperationModel, right: Seeds, typed: bool) -> Any:
    """An input of an operation: one that is right but for one or two places, or one that is all made up."""
    shape = operation.input_shape
    if shape is None:
        return {}
    bases = seeds_of(operation, right)
    if not bases or draw(st.integers(0, 3)) == 0:
        return draw(values(shape, 0, typed))
    given_input = copy.deepcopy(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(0, 2))):
        places = paths(given_input, shape)[1:]
        if not places:
            break
        where, inner = draw(st.sampled_from(places))
        holder = given_input
        for step in where[:-1]:
            holder = holder[step]
        if draw(st.integers(0, 4)) == 0:
            del holder[where[-1]]
        else:
            holder[where[-1]] = draw(values(inner, len(where), typed))
    return given_input


def send(server: ApiServer, service: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """A signed request; the body of an answer that streams is not waited for."""
    signed = signed_headers(server, service, "POST", "/", "", headers, body)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("POST", "/", body=body, headers=signed)
        answer = connection.getresponse()
        streams = answer.headers["content-type"] == "application/vnd.amazon.eventstream"
        return answer.status, b"{}" if streams else answer.read()
    finally:
        connection.close()


def send_json(server: ApiServer, operation: botocore.model.OperationModel, body: Any) -> tuple[int, bytes]:
    metadata = operation.service_model.metadata
    headers = {
        "content-type": f"application/x-amz-json-{metadata['jsonVersion']}",
        "x-amz-target": f"{metadata['targetPrefix']}.{operation.name}",
    }
    return send(server, operation.service_model.service_name, headers, json.dumps(body).encode())


def served(aws: AwsServer, service: str) -> list[botocore.model.OperationModel]:
    model = SESSION.get_service_model(service)
    names = [o.name for s in aws.services if s.name == service for o in s.operations]
    return [model.operation_model(n) for n in names]


def make_stream(aws: AwsServer) -> None:
    logs = aws.client("logs")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName="/fuzz")
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_stream(logGroupName="/fuzz", logStreamName="stream")


@pytest.fixture(scope="module")
def right(aws: AwsServer) -> Seeds:
    """Inputs that are right: what they name has been made."""
    make_stream(aws)
    found = seeds(aws.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"])
    for definition in found["RegisterTaskDefinition"]:
        if definition["family"] != "fuzz-secrets":
            aws.client("ecs").register_task_definition(**definition)
    return found


def fuzz(examples: int) -> Any:
    """Settings of a run; the number bounds its time, 2 to 5 ms each."""
    return settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("service", JSON_SERVICES)
def test_the_seeds_would_be_accepted(aws: AwsServer, right: Seeds, service: str) -> None:
    """Else nothing behind the first check would be tried. What others need is made first."""
    for operation in sorted(served(aws, service), key=lambda o: not o.name.startswith("Create")):
        for seed in seeds_of(operation, right):
            status, answer = send_json(aws.http, operation, seed)
            not_yet = b"hutch does not support" in answer
            assert status == 200 or not_yet, (operation.name, answer)


@pytest.mark.parametrize("service", JSON_SERVICES)
def test_json_services_never_fail(aws: AwsServer, right: Seeds, service: str) -> None:
    operations = served(aws, service)
    known = {e.name for e in SESSION.get_service_model(service).error_shapes} | COMMON_CODES

    @fuzz(15 * len(operations))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(operations))
        status, answer = send_json(aws.http, operation, data.draw(inputs(operation, right, typed=False)))
        assert status == 200 or 400 <= status < 500, answer
        if status == 200 and operation.name in ("DeleteLogGroup", "DeleteLogStream"):
            make_stream(aws)
        if status != 200:
            error = json.loads(answer)
            assert error["message"]
            assert error["__type"] in known, error

    run()


@pytest.mark.parametrize("service", QUERY_SERVICES)
def test_query_services_never_fail(aws: AwsServer, right: Seeds, service: str) -> None:
    operations = served(aws, service)
    model = SESSION.get_service_model(service)
    serializer = botocore.serialize.create_serializer(model.metadata["protocol"], include_validation=False)

    @fuzz(max(60, 5 * len(operations)))
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        operation = data.draw(st.sampled_from(operations))
        given_input = data.draw(inputs(operation, right, typed=True))
        form = dict(serializer.serialize_to_request(given_input, operation)["body"])
        form.update(
            data.draw(
                st.dictionaries(
                    st.sampled_from([*(k for k in form if k != "Action"), "Filter.1", "X.y.z"]),
                    texts(),
                    max_size=2,
                )
            )
        )
        body = "&".join(f"{_quoted(k)}={_quoted(v)}" for k, v in form.items()).encode()
        headers = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}
        status, answer = send(aws.http, service, headers, body)
        assert status == 200 or 400 <= status < 500, answer
        assert status == 200 or ET.fromstring(answer).find(".//{*}Code") is not None, answer

    run()


def _quoted(value: Any) -> str:
    return quote(str(value), safe="")
