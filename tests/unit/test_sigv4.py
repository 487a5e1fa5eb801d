"""Signatures against botocore's own, which is the reference here."""

import contextlib
import hashlib
from urllib.parse import quote, urlsplit

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from hutch.base import sigv4
from hutch.base.sigv4 import SignatureRefused

ACCESS_KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
NOW = 1_440_938_160.0  # 2015-08-30T12:36:00Z

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def signed_by_botocore(method: str, url: str, body: bytes, headers: dict[str, str]) -> AWSRequest:
    request = AWSRequest(method=method, url=url, data=body, headers=headers)
    botocore.auth.SigV4Auth(Credentials(ACCESS_KEY, SECRET), "ecs", "us-east-1").add_auth(request)
    return request


def signature_of(request: AWSRequest, body: bytes) -> tuple[str, sigv4.Scope]:
    parts = urlsplit(request.url)
    headers = {k.lower(): v for k, v in request.headers.items()} | {"host": parts.netloc}
    scope = sigv4.parse_scope(parts.query, headers)
    key = sigv4.signing_key(SECRET, scope.date, scope.region, scope.service)
    digest = hashlib.sha256(body).hexdigest()
    return (
        sigv4.signature_of(key, scope, request.method, parts.path.encode(), parts.query, headers, digest),
        scope,
    )


@given(
    method=st.sampled_from(["GET", "POST", "DELETE"]),
    segments=st.lists(text, max_size=4),
    query=st.lists(st.tuples(text, text), max_size=4),
    value=st.text("abcXYZ 019~-_.,;=\t", max_size=30),
    body=st.binary(max_size=50),
)
def test_we_agree_with_botocore(method, segments, query, value, body) -> None:
    path = "/" + "/".join(quote(s, safe="-._~") for s in segments)
    encoded = "&".join(f"{quote(k, safe='-._~')}={quote(v, safe='-._~')}" for k, v in query)
    url = f"http://task.localhost:4566{path}" + (f"?{encoded}" if encoded else "")
    request = signed_by_botocore(method, url, body, {"X-Amz-Target": "T.Op", "X-Odd": value})
    computed, scope = signature_of(request, body)
    assert computed == scope.signature


@given(body=st.binary(max_size=50), query=st.dictionaries(text, text, max_size=3))
def test_what_we_sign_we_accept(body: bytes, query: dict[str, str]) -> None:
    raw = "&".join(f"{quote(k, safe='')}={quote(v, safe='')}" for k, v in query.items())
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": "h:1", "x-amz-target": "a.b"}
    added = sigv4.sign(
        access_key_id=ACCESS_KEY,
        secret_key=SECRET,
        region="eu-west-1",
        service="ecs",
        method="POST",
        raw_path=b"/a%20b/",
        query=raw,
        headers=headers,
        payload_sha256=digest,
        now=NOW,
    )
    complete = headers | added
    scope = sigv4.parse_scope(raw, complete)
    sigv4.check_time(scope, NOW)
    sigv4.check_signed_headers(scope, complete)
    key = sigv4.signing_key(SECRET, scope.date, "eu-west-1", "ecs")
    assert sigv4.signature_of(key, scope, "POST", b"/a%20b/", raw, complete, digest) == scope.signature
    for other in (("GET", b"/a%20b/", digest), ("POST", b"/", digest), ("POST", b"/a%20b/", "0" * 64)):
        assert sigv4.signature_of(key, scope, other[0], other[1], raw, complete, other[2]) != scope.signature


def test_the_published_key_derivation() -> None:
    # The example in the AWS General Reference.
    key = sigv4.signing_key("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20120215", "us-east-1", "iam")
    assert key.hex() == "f4780e2d9f65fa895f9c67b32ce1baf0b0d8a43505a000a1a9e090d414db404d"


def scope_of(**changes: object) -> sigv4.Scope:
    given = {
        "access_key_id": "a",
        "date": "20150830",
        "region": "r",
        "service": "s",
        "signed_headers": ("host",),
        "signature": "x",
        "timestamp": "20150830T123600Z",
        "expires_s": 0,
    }
    return sigv4.Scope(**(given | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("offset", [0, 299, 300, -299, -300])
def test_five_minutes_are_allowed(offset: int) -> None:
    sigv4.check_time(scope_of(), NOW + offset)


@pytest.mark.parametrize(("offset", "expires"), [(301, 0), (-301, 0), (601, 600), (-301, 600)])
def test_more_are_not(offset: int, expires: int) -> None:
    with pytest.raises(SignatureRefused) as caught:
        sigv4.check_time(scope_of(expires_s=expires), NOW + offset)
    assert caught.value.kind == "Expired"


def test_a_presigned_request_lives_as_long_as_it_says() -> None:
    sigv4.check_time(scope_of(expires_s=3600), NOW + 3599)


@pytest.mark.parametrize(
    "stamp", ["", "2015-08-30T12:36:00Z", "20150830T123600", "20150830T126100Z", "٢0150830T123600Z"]
)
def test_dates_of_another_form(stamp: str) -> None:
    with pytest.raises(SignatureRefused) as caught:
        sigv4.check_time(scope_of(timestamp=stamp), NOW)
    assert caught.value.kind == "Incomplete"


@given(authorization=st.text(max_size=80), query=st.text(max_size=80))
def test_no_text_breaks_the_reader(authorization: str, query: str) -> None:
    for headers in (
        {"authorization": authorization},
        {"authorization": "AWS4-HMAC-SHA256 " + authorization},
        {},
    ):
        with contextlib.suppress(SignatureRefused):
            sigv4.parse_scope("X-Amz-Algorithm=AWS4-HMAC-SHA256&" + query, headers)


@pytest.mark.parametrize("unsigned", ["host", "x-amz-target"])
def test_headers_that_decide_must_be_signed(unsigned: str) -> None:
    names = tuple(n for n in ("host", "x-amz-target") if n != unsigned)
    with pytest.raises(SignatureRefused, match=unsigned):
        sigv4.check_signed_headers(scope_of(signed_headers=names), {"host": "h", "x-amz-target": "t"})
