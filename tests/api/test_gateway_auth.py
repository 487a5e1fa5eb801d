"""Who may come in: header and presigned signatures from real clients, and every way to get them wrong."""

import asyncio
import datetime
import http.client
import re
from unittest import mock
from urllib.request import Request as UrlRequest
from urllib.request import urlopen

import botocore.auth
import botocore.exceptions
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from msgspec.structs import replace
from tests.api.support.server import ApiServer
from tests.api.support.toys import Toys

from hutch.model.record import Cause
from hutch.store.tables import ACCESS_KEYS

CLIENTS = [
    ("ecs", "list_clusters", {}, "json"),
    ("scheduler", "list_schedules", {}, "json"),
    ("sts", "get_caller_identity", {}, "query"),
    ("ec2", "describe_vpcs", {}, "ec2"),
]
CODES = {
    ("unknown", "json"): ("UnrecognizedClientException", 400),
    ("unknown", "query"): ("InvalidClientTokenId", 403),
    ("unknown", "ec2"): ("AuthFailure", 401),
    ("wrong", "json"): ("InvalidSignatureException", 403),
    ("wrong", "query"): ("SignatureDoesNotMatch", 403),
    ("wrong", "ec2"): ("AuthFailure", 401),
    ("late", "json"): ("InvalidSignatureException", 403),
    ("late", "query"): ("SignatureDoesNotMatch", 403),
    ("late", "ec2"): ("RequestExpired", 400),
}


def refusal(call, **given) -> tuple[str, int, str]:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**given)
    response = caught.value.response
    return (
        response["Error"]["Code"],
        response["ResponseMetadata"]["HTTPStatusCode"],
        response["Error"]["Message"],
    )


@pytest.mark.parametrize(("service", "method", "given", "family"), CLIENTS)
def test_bad_keys(server: ApiServer, service: str, method: str, given: dict, family: str) -> None:
    stranger = server.client(service, aws_access_key_id="AKIAAAAAAAAAAAAAAAAA")
    assert refusal(getattr(stranger, method), **given)[:2] == CODES["unknown", family]
    liar = server.client(service, aws_secret_access_key="x" * 40)
    assert refusal(getattr(liar, method), **given)[:2] == CODES["wrong", family]


@pytest.mark.parametrize(("service", "method", "given", "family"), CLIENTS)
@pytest.mark.parametrize("minutes", [-6, 6])
def test_clock_skew(
    server: ApiServer, service: str, method: str, given: dict, family: str, minutes: int
) -> None:
    moment = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=minutes)
    with mock.patch("botocore.auth.get_current_datetime", lambda: moment):
        code, status, message = refusal(getattr(server.client(service), method), **given)
    assert (code, status) == CODES["late", family]
    assert re.search(r"^Signature (expired|not yet current): \d{8}T\d{6}Z is ", message)


def test_four_minutes_are_no_skew(server: ApiServer) -> None:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=4)
    with mock.patch("botocore.auth.get_current_datetime", lambda: moment):
        assert server.client("sts").get_caller_identity()["Account"]


def test_wrong_region(server: ApiServer) -> None:
    code, status, message = refusal(server.client("ecs", region_name="eu-west-1").list_clusters)
    assert (code, status) == ("InvalidSignatureException", 403)
    assert "scoped to a valid region" in message and "eu-west-1" in message


def send(
    server: ApiServer, method: str, path: str, headers: dict[str, str], body: bytes = b""
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, body=body, headers=headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    assert response.headers["x-amzn-requestid"]
    return response.status, data


def signed(
    server: ApiServer, service: str, headers: dict[str, str], body: bytes, host: str = ""
) -> dict[str, str]:
    request = AWSRequest("POST", f"http://{host or f'127.0.0.1:{server.port}'}/", data=body, headers=headers)
    keys = Credentials(server.key.access_key_id, server.key.secret_key)
    botocore.auth.SigV4Auth(keys, service, server.region).add_auth(request)
    return dict(request.headers.items())


TARGET = {
    "X-Amz-Target": "AmazonEC2ContainerServiceV20141113.ListClusters",
    "Content-Type": "application/x-amz-json-1.1",
}


def test_a_signature_for_another_service(server: ApiServer) -> None:
    status, body = send(server, "POST", "/", signed(server, "logs", TARGET, b"{}"), b"{}")
    assert status == 403 and b"scoped to correct service: 'ecs'" in body


def test_what_was_signed_is_what_counts(server: ApiServer, toys: Toys) -> None:
    toys.answers["ListClusters"] = {}
    good = signed(server, "ecs", TARGET, b"{}")
    assert send(server, "POST", "/", good, b"{}")[0] == 200
    before = len(toys.seen)
    for change, body in (
        ({"X-Amz-Target": "AmazonEC2ContainerServiceV20141113.DeleteCluster"}, b"{}"),
        ({}, b'{"maxResults":5}'),
        ({"X-Amz-Content-SHA256": "0" * 64}, b"{}"),
        ({"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"}, b"{}"),
        ({"Host": "elsewhere"}, b"{}"),
    ):
        status, answer = send(server, "POST", "/", good | change, body)
        assert status == 403 and b"InvalidSignatureException" in answer, change
    assert send(server, "POST", "/other", good, b"{}")[0] == 403
    unsigned_target = good | {
        "Authorization": signed(server, "ecs", {"Content-Type": "application/x-amz-json-1.1"}, b"{}")[
            "Authorization"
        ]
    }
    status, answer = send(server, "POST", "/", unsigned_target, b"{}")
    assert status == 400 and b"'x-amz-target' must be a 'SignedHeader'" in answer
    assert len(toys.seen) == before


@pytest.mark.parametrize(
    ("authorization", "status", "code"),
    [
        ("", 403, b"MissingAuthenticationTokenException"),
        ("Basic abc", 400, b"IncompleteSignatureException"),
        ("AWS4-HMAC-SHA256 nonsense", 400, b"IncompleteSignatureException"),
        (
            "AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=x",
            400,
            b"IncompleteSignatureException",
        ),
        (
            "AWS4-HMAC-SHA256 Credential=a/20200101/r/s/aws4_request, SignedHeaders=host, Signature=é",
            403,
            b"",
        ),
    ],
)
def test_malformed_authorization(server: ApiServer, authorization: str, status: int, code: bytes) -> None:
    headers = {**TARGET, "X-Amz-Date": "20200101T000000Z"}
    if authorization:
        headers["Authorization"] = authorization
    found, body = send(server, "POST", "/", headers, b"{}")
    assert (found, code in body) == (status, True), body


def test_errors_before_the_key_is_known_are_in_the_clients_protocol(server: ApiServer) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, body = send(server, "POST", "/", form, b"Action=GetCallerIdentity")
    assert status == 403 and b"<Code>MissingAuthenticationToken</Code>" in body
    status, body = send(server, "GET", "/schedules", {})
    assert status == 403 and b"MissingAuthenticationTokenException" in body


def test_presigned(server: ApiServer) -> None:
    url = server.client("sts").generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod="GET")
    with urlopen(url, timeout=10) as response:
        assert b"<Arn>arn:aws:iam::000000000000:root</Arn>" in response.read()
    for spoilt in (url.replace("Expires=60", "Expires=61"), url[:-1] + ("0" if url[-1] != "0" else "1")):
        with pytest.raises(Exception, match="403") as caught:
            urlopen(spoilt, timeout=10)
        assert b"SignatureDoesNotMatch" in caught.value.read()


def test_presigned_with_odd_characters(server: ApiServer, toys: Toys) -> None:
    toys.answers["ListRoles"] = {"Roles": [], "IsTruncated": False}
    odd = "/a b+c=d,e@f~é%2F/"
    iam = server.client("iam")
    url = iam.generate_presigned_url(
        "list_roles", Params={"PathPrefix": "/a.b+c=d,e@f-g/"}, ExpiresIn=60, HttpMethod="GET"
    )
    with urlopen(url, timeout=10) as response:
        assert response.status == 200
    assert toys.last == {"PathPrefix": "/a.b+c=d,e@f-g/"}
    url = iam.generate_presigned_url("list_roles", Params={"PathPrefix": odd}, ExpiresIn=60, HttpMethod="GET")
    with pytest.raises(Exception, match="400") as caught:
        urlopen(url, timeout=10)
    assert b"failed to satisfy constraint" in caught.value.read(), "the signature was good, the value was not"


def test_presigned_expires(server: ApiServer) -> None:
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=2)
    with mock.patch("botocore.auth.get_current_datetime", lambda: moment):
        url = server.client("sts").generate_presigned_url(
            "get_caller_identity", ExpiresIn=60, HttpMethod="GET"
        )
        longer = server.client("sts").generate_presigned_url(
            "get_caller_identity", ExpiresIn=600, HttpMethod="GET"
        )
    assert urlopen(longer, timeout=10).status == 200
    with pytest.raises(Exception, match="403"):
        urlopen(url, timeout=10)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "ecs.localhost:4566", "streaming-logs.hutch.example", "[::1]:4566"]
)
def test_any_host_that_was_signed(server: ApiServer, toys: Toys, host: str) -> None:
    toys.answers["ListClusters"] = {}
    headers = signed(server, "ecs", TARGET, b"{}", host) | {"Host": host}
    assert send(server, "POST", "/", headers, b"{}")[0] == 200


def test_a_key_that_is_switched_off_or_deleted_is_refused_at_once(server: ApiServer) -> None:
    cause = Cause(id="t", actor="t", action="t")

    def write(work):
        return asyncio.run_coroutine_threadsafe(server.store.write(cause, work), server.loop).result(10)

    second = replace(server.key, version=0, access_key_id="AKIASECONDSECONDSECO", secret_key="s" * 40)
    write(lambda tx: tx.put(ACCESS_KEYS, second))
    sts = server.client(
        "sts", aws_access_key_id=second.access_key_id, aws_secret_access_key=second.secret_key
    )
    assert sts.get_caller_identity()["Account"]
    stored = write(
        lambda tx: tx.put(ACCESS_KEYS, replace(tx.get(ACCESS_KEYS, second.access_key_id), status="Inactive"))
    )
    assert refusal(sts.get_caller_identity)[0] == "InvalidClientTokenId"
    write(lambda tx: tx.put(ACCESS_KEYS, replace(stored, status="Active", secret_key="n" * 40)))
    assert refusal(sts.get_caller_identity)[0] == "SignatureDoesNotMatch"
    write(lambda tx: tx.delete(ACCESS_KEYS, second.access_key_id))
    assert refusal(sts.get_caller_identity)[0] == "InvalidClientTokenId"


def test_health_needs_no_signature(server: ApiServer) -> None:
    with urlopen(UrlRequest(f"{server.url}/_hutch/health"), timeout=10) as response:
        assert response.status == 200 and b'"status":"ok"' in response.read()
