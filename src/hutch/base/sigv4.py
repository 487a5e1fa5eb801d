"""AWS Signature Version 4, both ways: our client signs with it, the gateway verifies with it. Pure.

Rules: the "Signature Version 4 signing process" of the AWS General Reference.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote, unquote_to_bytes

import msgspec

from hutch.base.errors import HutchError

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW_S = 300
MAX_QUERY_FIELDS = 1000
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class SignatureRefused(HutchError):
    """A request's signature is missing, malformed, expired or wrong.

    `kind` is one of Missing, Incomplete, Expired, UnknownKey, ExpiredToken, Mismatch.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Scope(msgspec.Struct, frozen=True, kw_only=True):
    """What an Authorization says of itself, before anything of it is believed."""

    access_key_id: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    timestamp: str
    """`YYYYMMDDTHHMMSSZ`."""
    expires_s: int = 0
    """Life of a presigned request; 0 for a header signature."""
    security_token: str = ""
    """The session token of temporary credentials."""


def parse_scope(query: str, headers: Mapping[str, str]) -> Scope:
    """The scope of a request; header names are lower case. Raises `SignatureRefused`."""
    authorization = headers.get("authorization", "")
    if authorization:
        return _from_header(authorization, headers)
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS))
    except ValueError:
        raise SignatureRefused("Incomplete", "The query string has too many fields.") from None
    if given.get("X-Amz-Algorithm") == ALGORITHM:
        return _from_query(given)
    raise SignatureRefused("Missing", "Missing Authentication Token")


def _from_header(authorization: str, headers: Mapping[str, str]) -> Scope:
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != ALGORITHM:
        raise SignatureRefused("Incomplete", f"Unsupported authorization algorithm; use {ALGORITHM}.")
    parts = dict(p.strip().partition("=")[::2] for p in rest.split(",", 10))
    missing = [n for n in ("Credential", "SignedHeaders", "Signature") if not parts.get(n)]
    if missing:
        raise SignatureRefused("Incomplete", f"Authorization header requires '{missing[0]}' parameter.")
    timestamp = headers.get("x-amz-date", "")
    if not timestamp:
        raise SignatureRefused(
            "Incomplete", "Authorization header requires existence of an 'X-Amz-Date' header."
        )
    return _scope(
        parts["Credential"],
        parts["SignedHeaders"],
        parts["Signature"],
        timestamp,
        0,
        headers.get("x-amz-security-token", ""),
    )


def _from_query(given: Mapping[str, str]) -> Scope:
    names = ("X-Amz-Credential", "X-Amz-SignedHeaders", "X-Amz-Signature", "X-Amz-Date", "X-Amz-Expires")
    missing = [n for n in names if not given.get(n)]
    if missing:
        raise SignatureRefused("Incomplete", f"The query string requires '{missing[0]}'.")
    expires = given["X-Amz-Expires"]
    if not (expires.isascii() and expires.isdecimal() and len(expires) < 7 and 0 < int(expires) <= 604800):
        raise SignatureRefused("Incomplete", "X-Amz-Expires must be between 1 and 604800 seconds.")
    return _scope(
        given["X-Amz-Credential"],
        given["X-Amz-SignedHeaders"],
        given["X-Amz-Signature"],
        given["X-Amz-Date"],
        int(expires),
        given.get("X-Amz-Security-Token", ""),
    )


def _scope(credential: str, signed: str, signature: str, timestamp: str, expires_s: int, token: str) -> Scope:
    parts = credential.split("/")
    if len(parts) < 5 or parts[-1] != "aws4_request":
        raise SignatureRefused(
            "Incomplete", "Credential must be of the form <key>/<date>/<region>/<service>/aws4_request."
        )
    if parts[-4] != timestamp[:8]:
        raise SignatureRefused(
            "Mismatch", "Date in Credential scope does not match YYYYMMDD from the request date."
        )
    return Scope(
        access_key_id="/".join(parts[:-4]),
        date=parts[-4],
        region=parts[-3],
        service=parts[-2],
        signed_headers=tuple(signed.lower().split(";")),
        signature=signature,
        timestamp=timestamp,
        expires_s=expires_s,
        security_token=token,
    )


def check_time(scope: Scope, now: float) -> None:
    """Refuse a request that is too old, or from the future."""
    stamp = scope.timestamp
    try:
        if not (len(stamp) == 16 and stamp[8] == "T" and stamp[15] == "Z" and stamp.isascii()):
            raise ValueError
        sent = datetime.fromisoformat(stamp).timestamp()
    except ValueError:
        raise SignatureRefused("Incomplete", "Date must be in ISO-8601 'basic format'.") from None
    life_s = scope.expires_s or MAX_SKEW_S
    if now > sent + life_s:
        life = f"{scope.expires_s} s" if scope.expires_s else "5 min."
        raise SignatureRefused(
            "Expired",
            f"Signature expired: {scope.timestamp} is now earlier than {_stamp(now - life_s)} "
            f"({_stamp(now)} - {life})",
        )
    if sent > now + MAX_SKEW_S:
        raise SignatureRefused(
            "Expired",
            f"Signature not yet current: {scope.timestamp} is still later than {_stamp(now + MAX_SKEW_S)} "
            f"({_stamp(now)} + 5 min.)",
        )


def check_signed_headers(scope: Scope, headers: Mapping[str, str]) -> None:
    """Refuse a request in which a header that decides what it means is left out of the signature."""
    for name in ("host", "x-amz-target"):
        if name not in scope.signed_headers and (name == "host" or name in headers):
            raise SignatureRefused(
                "Incomplete", f"'{name}' must be a 'SignedHeader' in the AWS Authorization."
            )


def _stamp(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y%m%dT%H%M%SZ")


def signing_key(secret_key: str, date: str, region: str, service: str) -> bytes:
    """The derived key of one day, region and service; worth keeping."""
    key = ("AWS4" + secret_key).encode()
    for part in (date, region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def signature_of(
    key: bytes,
    scope: Scope,
    method: str,
    raw_path: bytes,
    query: str,
    headers: Mapping[str, str],
    payload_sha256: str,
) -> str:
    """The signature that a request should carry."""
    canonical = "\n".join(
        (
            method,
            _canonical_path(raw_path, scope.service),
            _canonical_query(query),
            *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in scope.signed_headers),
            "",
            ";".join(scope.signed_headers),
            payload_sha256,
        )
    )
    to_sign = "\n".join(
        (
            ALGORITHM,
            scope.timestamp,
            f"{scope.date}/{scope.region}/{scope.service}/aws4_request",
            hashlib.sha256(canonical.encode()).hexdigest(),
        )
    )
    return hmac.digest(key, to_sign.encode(), "sha256").hex()


def _canonical_path(raw_path: bytes, service: str) -> str:
    """Encoded twice, with empty and dot segments normalised; S3's, whose keys may hold such, as it was sent."""
    path = raw_path.decode("latin-1") or "/"
    if path == "/" or service == "s3":
        return path
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if segments:
                segments.pop()
        elif segment not in ("", "."):
            segments.append(segment)
    joined = "/" + "/".join(segments) + ("/" if path.endswith("/") and segments else "")
    return quote(joined, safe="/~-_.")


def _canonical_query(query: str) -> str:
    pairs = []
    for item in query.split("&") if query else ():
        name, _, value = item.partition("=")
        name, value = (quote(unquote_to_bytes(x.replace("+", " ")), safe="-_.~") for x in (name, value))
        if name != "X-Amz-Signature":
            pairs.append((name, value))
    return "&".join(f"{n}={v}" for n, v in sorted(pairs))


def sign(
    *,
    access_key_id: str,
    secret_key: str,
    region: str,
    service: str,
    method: str,
    raw_path: bytes,
    query: str,
    headers: Mapping[str, str],
    payload_sha256: str,
    now: float,
    signed: Sequence[str] = (),
) -> dict[str, str]:
    """The headers to add to a request. `headers` (lower case) must hold `host`."""
    timestamp = _stamp(now)
    with_date = {**headers, "x-amz-date": timestamp}
    names = tuple(sorted({"host", "x-amz-date", *signed, *(h for h in headers if h.startswith("x-amz-"))}))
    scope = Scope(
        access_key_id=access_key_id,
        date=timestamp[:8],
        region=region,
        service=service,
        signed_headers=names,
        signature="",
        timestamp=timestamp,
    )
    key = signing_key(secret_key, scope.date, region, service)
    signature = signature_of(key, scope, method, raw_path, query, with_date, payload_sha256)
    credential = f"{access_key_id}/{scope.date}/{region}/{service}/aws4_request"
    return {
        "x-amz-date": timestamp,
        "authorization": (
            f"{ALGORITHM} Credential={credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
        ),
    }
