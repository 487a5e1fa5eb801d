"""The object store over HTTP, by boto3 and by hand."""

import hashlib
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer

from hutch.base import sigv4
from hutch.base.clock import SystemClock
from hutch.rules.objects import MAX_OBJECT_BYTES


@pytest.fixture(scope="module")
def s3(aws: AwsServer) -> Any:
    return aws.client("s3")


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


def refusal(call: Callable[[], Any]) -> tuple[str, int]:
    with pytest.raises(ClientError) as refused:
        call()
    answer = refused.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]


def send(
    aws: AwsServer, method: str, path: str, body: bytes, digest: str, headers: dict[str, str]
) -> tuple[int, bytes]:
    """A signed request whose every byte is the test's."""
    key, host = aws.http.key, urlsplit(aws.http.url).netloc
    given = {"host": host, "x-amz-content-sha256": digest, **headers}
    raw_path, _, query = path.partition("?")
    signed = sigv4.sign(
        access_key_id=key.access_key_id,
        secret_key=key.secret_key,
        region="us-east-1",
        service="s3",
        method=method,
        raw_path=raw_path.encode(),
        query=query,
        headers=given,
        payload_sha256=digest,
        now=SystemClock().now(),
    )
    request = urllib.request.Request(
        f"{aws.http.url}{path}", data=body or None, method=method, headers={**given, **signed}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_an_object_comes_back_as_it_was_put(s3: Any, bucket: str) -> None:
    body = bytes(range(256)) * 10_000
    put = s3.put_object(
        Bucket=bucket,
        Key="a b/é+~.env",
        Body=body,
        ContentType="text/plain",
        CacheControl="no-cache",
        Metadata={"owner": "me"},
    )
    assert put["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="a b/é+~.env")
    assert got["Body"].read() == body and got["ETag"] == put["ETag"]
    assert (got["ContentType"], got["CacheControl"], got["Metadata"]) == (
        "text/plain",
        "no-cache",
        {"owner": "me"},
    )
    head = s3.head_object(Bucket=bucket, Key="a b/é+~.env")
    assert head["ContentLength"] == len(body) and head["LastModified"] == got["LastModified"]
    part = s3.get_object(Bucket=bucket, Key="a b/é+~.env", Range="bytes=256-511")
    assert part["Body"].read() == bytes(range(256))
    assert part["ContentRange"] == f"bytes 256-511/{len(body)}"
    assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
    s3.put_object(Bucket=bucket, Key="a b/é+~.env", Body=b"")
    assert s3.get_object(Bucket=bucket, Key="a b/é+~.env")["Body"].read() == b""
    s3.delete_object(Bucket=bucket, Key="a b/é+~.env")
    assert refusal(lambda: s3.get_object(Bucket=bucket, Key="a b/é+~.env")) == ("NoSuchKey", 404)
    assert refusal(lambda: s3.head_object(Bucket=bucket, Key="a b/é+~.env")) == ("404", 404)


def test_what_is_replaced_or_deleted_takes_no_room(s3: Any, bucket: str, aws: AwsServer) -> None:
    from hutch.store import tables

    def parts() -> int:
        with aws.store.read() as reader:
            return reader.count(tables.OBJECT_PARTS)

    before = parts()
    for _ in range(3):
        s3.put_object(Bucket=bucket, Key="k", Body=b"x" * (2 * 1024 * 1024 + 1))
    assert parts() == before + 3
    s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}, {"Key": "never"}]})
    assert parts() == before
    s3.delete_bucket(Bucket=bucket)
    assert refusal(lambda: s3.head_bucket(Bucket=bucket)) == ("404", 404)


def test_listings(s3: Any, bucket: str) -> None:
    keys = ["a.env", "conf/1.env", "conf/2.env", "conf/deep/3.env", "z&<x>"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 2})
    assert [o["Key"] for p in pages for o in p["Contents"]] == keys
    top = s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    assert [o["Key"] for o in top["Contents"]] == ["a.env", "z&<x>"]
    assert top["CommonPrefixes"] == [{"Prefix": "conf/"}] and top["KeyCount"] == 3
    inside = s3.list_objects_v2(Bucket=bucket, Prefix="conf/", Delimiter="/", StartAfter="conf/1.env")
    assert [o["Key"] for o in inside["Contents"]] == ["conf/2.env"]
    assert inside["CommonPrefixes"] == [{"Prefix": "conf/deep/"}]
    old = s3.get_paginator("list_objects").paginate(
        Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
    )
    found = [o["Key"] for p in old for o in p.get("Contents", ())]
    assert found == ["a.env", "z&<x>"]
    assert refusal(lambda: s3.delete_bucket(Bucket=bucket)) == ("BucketNotEmpty", 409)


def test_buckets(s3: Any, bucket: str) -> None:
    assert bucket in [b["Name"] for b in s3.list_buckets()["Buckets"]]
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    s3.create_bucket(Bucket=bucket)
    assert refusal(lambda: s3.create_bucket(Bucket="Not_A_Bucket")) == ("InvalidBucketName", 400)
    assert refusal(lambda: s3.put_object(Bucket="nowhere", Key="k", Body=b"")) == ("NoSuchBucket", 404)
    assert refusal(lambda: s3.list_objects_v2(Bucket="nowhere")) == ("NoSuchBucket", 404)
    elsewhere = {"LocationConstraint": "eu-west-1"}
    code, _ = refusal(lambda: s3.create_bucket(Bucket="abc", CreateBucketConfiguration=elsewhere))
    assert code == "InvalidLocationConstraint"


def test_what_is_not_served_is_refused(s3: Any, bucket: str) -> None:
    put = {"Bucket": bucket, "Key": "k", "Body": b"x"}
    assert refusal(lambda: s3.create_multipart_upload(Bucket=bucket, Key="k")) == ("NotImplemented", 501)
    assert refusal(lambda: s3.upload_part(**put, PartNumber=1, UploadId="u")) == ("NotImplemented", 501)
    copy = {"Bucket": bucket, "Key": "k", "CopySource": f"{bucket}/k"}
    assert refusal(lambda: s3.copy_object(**copy)) == ("NotImplemented", 501)
    assert refusal(lambda: s3.get_bucket_acl(Bucket=bucket)) == ("NotImplemented", 501)
    assert refusal(lambda: s3.put_object(**put, ACL="public-read"))[0] == "NotImplemented"
    assert refusal(lambda: s3.put_object(**put, ServerSideEncryption="aws:kms"))[0] == "NotImplemented"
    assert refusal(lambda: s3.get_object(Bucket=bucket, Key="k", VersionId="1"))[0] == "NotImplemented"
    assert refusal(lambda: s3.put_object(**put, ContentMD5="AAAAAAAAAAAAAAAAAAAAAA=="))[0] == "BadDigest"
    assert refusal(lambda: s3.put_object(**put, ChecksumCRC32="AAAAAA=="))[0] == "BadDigest"
    too_long = {"Bucket": bucket, "Key": "k", "Body": b"x" * (MAX_OBJECT_BYTES + 1)}
    assert refusal(lambda: s3.put_object(**too_long))[0] == "EntityTooLarge"
    s3.put_object(**put, IfNoneMatch="*")
    assert refusal(lambda: s3.put_object(**put, IfNoneMatch="*")) == ("PreconditionFailed", 412)
    assert refusal(lambda: s3.get_object(Bucket=bucket, Key="k", Range="bytes=5-")) == ("InvalidRange", 416)


def test_signatures(aws: AwsServer, s3: Any, bucket: str) -> None:
    wrong = aws.http.client("s3", aws_secret_access_key="x" * 40)
    assert refusal(wrong.list_buckets) == ("SignatureDoesNotMatch", 403)
    unknown = aws.http.client("s3", aws_access_key_id="AKIAAAAAAAAAAAAAAAAA")
    assert refusal(unknown.list_buckets) == ("InvalidAccessKeyId", 403)
    status, body = send(aws, "PUT", f"/{bucket}/k", b"other", hashlib.sha256(b"signed").hexdigest(), {})
    assert status == 403 and b"<Code>SignatureDoesNotMatch</Code>" in body
    status, body = send(aws, "PUT", f"/{bucket}/k", b"x", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", {})
    assert status == 501 and b"sign the whole body" in body
    assert send(aws, "PUT", f"/{bucket}/../k", b"x", sigv4.UNSIGNED_PAYLOAD, {})[0] == 200
    assert s3.get_object(Bucket=bucket, Key="../k")["Body"].read() == b"x"


def test_a_body_in_chunks(aws: AwsServer, s3: Any, bucket: str) -> None:
    chunked = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "10"}
    body = b"6\r\nhello \r\n4\r\nyou!\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    word = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    assert send(aws, "PUT", f"/{bucket}/k?x-id=PutObject", body, word, chunked)[0] == 200
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == b"hello you!" and "ContentEncoding" not in got
    for broken in (b"6\r\nhello ", b"zz\r\n", b"6\r\nhello !\r\n0\r\n", b"", b"0" * 300):
        assert b"<Code>IncompleteBody</Code>" in send(aws, "PUT", f"/{bucket}/k", broken, word, chunked)[1]


def test_hostile_xml(aws: AwsServer, bucket: str) -> None:
    entity = b'<!DOCTYPE d [<!ENTITY a "aaaa">]><Delete><Object><Key>&a;</Key></Object></Delete>'
    for body in (entity, b"<Delete>", b"no", b"<Delete><X/></Delete>", b"<a>" * 5000):
        status, answer = send(
            aws,
            "POST",
            f"/{bucket}?delete",
            body,
            hashlib.sha256(body).hexdigest(),
            {"content-type": "text/xml"},
        )
        assert status == 400 and b"<Error><Code>" in answer, answer


def test_presigned_addresses_and_buckets_as_hosts(aws: AwsServer, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"shared")
    signing = aws.http.client("s3", config=Config(signature_version="s3v4"))
    address = signing.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    with urllib.request.urlopen(address, timeout=20) as answer:
        assert answer.read() == b"shared"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address + "0", timeout=20)
    assert refused.value.code == 403
    port = urlsplit(aws.http.url).port
    host = {"host": f"{bucket}.localhost:{port}"}
    assert send(aws, "GET", "/k", b"", sigv4.EMPTY_SHA256, host) == (200, b"shared")


def test_policies_decide_about_objects(aws: AwsServer, s3: Any, bucket: str) -> None:
    iam, name = aws.client("iam"), f"u-{bucket}"
    iam.create_user(UserName=name)
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:GetObject",'
        f'"Resource":"arn:aws:s3:::{bucket}/open/*"}}]}}'
    )
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    theirs = aws.http.client(
        "s3", aws_access_key_id=key["AccessKeyId"], aws_secret_access_key=key["SecretAccessKey"]
    )
    for k in ("open/a", "closed/a"):
        s3.put_object(Bucket=bucket, Key=k, Body=b"x")
    assert theirs.get_object(Bucket=bucket, Key="open/a")["Body"].read() == b"x"
    denied = ("AccessDenied", 403)
    assert refusal(lambda: theirs.get_object(Bucket=bucket, Key="closed/a")) == denied
    assert refusal(lambda: theirs.put_object(Bucket=bucket, Key="open/a", Body=b"y")) == denied
    assert refusal(lambda: theirs.list_objects_v2(Bucket=bucket)) == denied
    many = {"Objects": [{"Key": "open/a"}]}
    assert refusal(lambda: theirs.delete_objects(Bucket=bucket, Delete=many)) == denied
