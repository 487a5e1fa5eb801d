"""hutch's own client against a real server."""

import hashlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.api.support.server import ApiServer
from tests.api.support.toys import Toys

from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.api.gateway.service_model import load_model
from hutch.base.errors import Conflict, NotFound, Unavailable
from hutch.client.client import SERVICES, HutchClient
from hutch.client.errors import AwsError, ClientError, Unreachable


async def _describe(request: NativeRequest) -> dict:
    if request.params["name"] == "missing":
        raise NotFound("no such image")
    if request.params["name"] == "taken":
        raise Conflict("taken")
    if request.params["name"] == "later":
        raise Unavailable("later")
    if request.params["name"] == "bug":
        raise RuntimeError("a bug of ours")
    return {"params": request.params, "query": request.query, "who": request.principal.arn}


async def _echo(request: NativeRequest) -> dict:
    return {"body": request.body}


async def _upload(request: NativeRequest) -> dict:
    data = Path(request.file_path).read_bytes()
    return {
        "sha256": hashlib.sha256(data).hexdigest(),
        "mode": Path(request.file_path).stat().st_mode & 0o777,
    }


ROUTES = (
    NativeRoute(method="GET", template="/hutch/v1/images/{name*}", handler=_describe),
    NativeRoute(method="POST", template="/hutch/v1/echo", handler=_echo, max_body_bytes=1000),
    NativeRoute(
        method="PUT", template="/hutch/v1/upload", handler=_upload, takes_file=True, max_body_bytes=5_000_000
    ),
)


@pytest.fixture(scope="module")
def uploads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(toys: Toys, uploads: Path) -> Iterator[ApiServer]:
    running = ApiServer(toys.services(), uploads, native_routes=ROUTES)
    yield running
    running.stop()


@pytest.fixture
def client(server: ApiServer) -> Iterator[HutchClient]:
    with HutchClient(server.url, server.key.access_key_id, server.key.secret_key, server.region) as made:
        yield made


def test_its_table_is_the_models() -> None:
    for name, (target, version) in SERVICES.items():
        metadata = load_model(name).metadata
        assert (metadata.targetPrefix, metadata.jsonVersion) == (target, version)


def test_call(client: HutchClient, toys: Toys) -> None:
    toys.answers["ListClusters"] = {"clusterArns": ["é"]}
    assert client.call("ecs", "ListClusters", {"maxResults": 3}) == {"clusterArns": ["é"]}
    assert toys.last == {"maxResults": 3}
    assert client.call("ecs", "ListClusters") == {"clusterArns": ["é"]}


def test_an_error_has_code_message_and_request_id(client: HutchClient) -> None:
    with pytest.raises(AwsError) as caught:
        client.call("ecs", "DeleteCluster", {"cluster": "own-code"})
    assert (caught.value.code, caught.value.message) == ("ClusterNotFoundException", "Cluster not found.")
    assert len(caught.value.request_id) == 36 and caught.value.status == 400
    assert client.call("ecs", "ListClusters")  # the connection still serves


def test_paginate(client: HutchClient, toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {None: {"clusterArns": ["a", "b"], "nextToken": "1"}, "1": {"clusterArns": ["c"]}}
    monkeypatch.setattr(client, "call", lambda s, o, p: pages[p.get("nextToken")])
    assert list(client.paginate("ecs", "ListClusters", {}, "clusterArns")) == ["a", "b", "c"]


def test_stream(client: HutchClient) -> None:
    events = list(client.stream("logs", "StartLiveTail", {"logGroupIdentifiers": ["done"]}))
    assert [name for name, _ in events] == ["sessionStart", "sessionUpdate"]
    assert events[1][1]["sessionResults"][0]["message"] == "hello é"
    with pytest.raises(AwsError, match="it broke off"):
        list(client.stream("logs", "StartLiveTail", {"logGroupIdentifiers": ["fails"]}))
    with pytest.raises(AwsError, match="Member must not be null"):
        list(client.stream("logs", "StartLiveTail", {}))


def test_native(client: HutchClient) -> None:
    answer = client.native("GET", "/images/docker.io/a b:é+~", {"q u": "a&b=c/é+"})
    assert answer["params"] == {"name": "docker.io/a b:é+~"}
    assert answer["query"] == {"q u": "a&b=c/é+"}
    assert answer["who"].endswith(":root")
    assert client.native("POST", "/echo", body={"a": [1, None]}) == {"body": {"a": [1, None]}}


@pytest.mark.parametrize(
    ("name", "code", "status"),
    [
        ("missing", "NotFound", 404),
        ("taken", "Conflict", 409),
        ("later", "Unavailable", 503),
        ("bug", "InternalFailure", 500),
    ],
)
def test_native_errors(client: HutchClient, name: str, code: str, status: int) -> None:
    with pytest.raises(AwsError) as caught:
        client.native("GET", f"/images/{name}")
    assert (caught.value.code, caught.value.status) == (code, status)
    assert "a bug of ours" not in caught.value.message and len(caught.value.request_id) == 36


def test_native_limits(client: HutchClient) -> None:
    with pytest.raises(AwsError) as caught:
        client.native("POST", "/echo", body="x" * 2000)
    assert (caught.value.code, caught.value.status) == ("TooLarge", 413)
    with pytest.raises(AwsError) as caught:
        client.native("GET", "/nothing")
    assert caught.value.status == 404


def test_upload(client: HutchClient, uploads: Path, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(bytes(range(256)) * 12_000)
    answer = client.native("PUT", "/upload", file=file)
    assert answer == {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "mode": 0o600}
    file.write_bytes(b"x" * 5_000_001)
    with pytest.raises(AwsError, match="at most 5000000 bytes"):
        client.native("PUT", "/upload", file=file)
    assert not [p for p in uploads.iterdir() if p.name.startswith("upload-")]
    with pytest.raises(ClientError, match="can't read"):
        client.native("PUT", "/upload", file=tmp_path / "absent")


def test_wrong_key(server: ApiServer) -> None:
    with HutchClient(server.url, server.key.access_key_id, "wrong", server.region) as client:
        for call in (lambda: client.call("ecs", "ListClusters"), lambda: client.native("GET", "/images/a")):
            with pytest.raises(AwsError) as caught:
                call()
            assert (caught.value.code, caught.value.status) == ("InvalidSignatureException", 403)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = HutchClient(f"http://127.0.0.1:{port}", "a", "b", "us-east-1")
    with pytest.raises(
        Unreachable, match=re.escape(f"not running at http://127.0.0.1:{port}: start it with `hutch up`")
    ):
        client.call("ecs", "ListClusters")
    with pytest.raises(ClientError, match="is not an endpoint"):
        HutchClient("127.0.0.1:4566", "a", "b", "us-east-1")


def test_it_is_light() -> None:
    code = "import hutch.client.client, sys; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"botocore", "boto3", "starlette", "uvicorn", "asyncio", "requests", "hutch.api"}
    assert not heavy & set(done.stdout.split())
