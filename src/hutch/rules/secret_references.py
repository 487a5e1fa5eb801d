"""What a task definition's `valueFrom` and `credentialsParameter` name, and how a value is taken from it (reference B.10)."""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from hutch.base.errors import Invalid

_PARAMETER_NAME = re.compile(r"/?[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_SECRET_NAME = re.compile(r"[A-Za-z0-9/_+=.@!-]{1,519}")
_ENVIRONMENT_NAME = re.compile(r"[^=\0]{1,255}")


class SecretReference(msgspec.Struct, frozen=True, kw_only=True):
    """A value in Secrets Manager. "" where nothing was asked for; stage and version exclude each other."""

    secret_id: str
    json_key: str = ""
    stage: str = ""
    version_id: str = ""


class ParameterReference(msgspec.Struct, frozen=True, kw_only=True):
    """A value in Parameter Store: a name or an ARN."""

    name: str


def parse_value_from(text: str) -> SecretReference | ParameterReference:
    """`arn:..:secretsmanager:..:secret:name-AbCdEf[:json-key:stage:version-id]`, the ARN of an SSM parameter, or the
    name of one. Raises `Invalid`."""
    if not text.startswith("arn:"):
        if not _PARAMETER_NAME.fullmatch(text):
            raise Invalid(f"{text[:200]!r} is neither an ARN nor the name of an SSM parameter.")
        return ParameterReference(name=text)
    parts = text.split(":")
    if len(parts) == 6 and parts[2] == "ssm" and parts[5].startswith("parameter/"):
        return ParameterReference(name=text)
    if len(parts) in (7, 10) and parts[2] == "secretsmanager" and parts[5] == "secret":
        if not _SECRET_NAME.fullmatch(parts[6]):
            raise Invalid(f"{text[:200]!r} has no valid name of a secret.")
        json_key, stage, version_id = parts[7:] or ("", "", "")
        if stage and version_id:
            raise Invalid(
                f"{text[:200]!r} names a version stage and a version id: leave one empty (both colons stay)."
            )
        return SecretReference(
            secret_id=":".join(parts[:7]), json_key=json_key, stage=stage, version_id=version_id
        )
    raise Invalid(
        f"{text[:200]!r} is neither the ARN of a secret (arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME, then nothing "
        f"or :JSON-KEY:VERSION-STAGE:VERSION-ID) nor that of an SSM parameter."
    )


def check_container(container: Mapping[str, Any]) -> None:
    """What RegisterTaskDefinition refuses about a container's secrets. Raises `Invalid`."""
    known = {e.get("name") for e in container.get("environment", ())}
    for secret in container.get("secrets", ()):
        name, value_from = secret.get("name", ""), secret.get("valueFrom", "")
        if not _ENVIRONMENT_NAME.fullmatch(name):
            raise Invalid(
                f"Container '{container['name']}': a secret needs a name of 1 to 255 characters without '='."
            )
        if name in known:
            raise Invalid(
                f"The secret name must be unique and not shared with any new or existing environment variables set on "
                f"the container, such as '{name}'"
            )
        known.add(name)
        try:
            parse_value_from(value_from)
        except Invalid as error:
            raise Invalid(f"Container '{container['name']}', secret {name}: {error.message}") from None
    given = container.get("repositoryCredentials")
    if given is not None and (
        not given.get("credentialsParameter") or len(given["credentialsParameter"]) > 2048
    ):
        raise Invalid(
            f"Container '{container['name']}': repositoryCredentials needs the ARN or the name of a secret as its "
            f"credentialsParameter."
        )


def check_override(container: Mapping[str, Any], environment: Any) -> None:
    """A variable of RunTask must not hide a secret. Raises `Invalid`."""
    secrets = {s["name"] for s in container.get("secrets", ())}
    for item in environment or ():
        if item.get("name") in secrets:
            raise Invalid(
                f"The secret name must be unique and not shared with any new or existing environment variables set on "
                f"the container, such as '{item['name']}'",
                code="ClientException",
            )


def json_member(text: str, key: str) -> str:
    """A member of a secret that is a JSON object: a string as it is, anything else as JSON. Raises `Invalid` in the
    words of the ECS agent; never with a part of the secret."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Invalid("retrieved secret from Secrets Manager is not a JSON object, so it has no key to take")
    if key not in document:
        raise Invalid(f"retrieved secret from Secrets Manager did not contain json key {key[:200]}")
    value = document[key]
    return value if isinstance(value, str) else json.dumps(value)


def registry_credentials(text: str) -> tuple[str, str]:
    """User name and password of a `credentialsParameter`. Raises `Invalid`; never with a part of the secret."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    values = tuple(document.get(k) if isinstance(document, dict) else None for k in ("username", "password"))
    user, password = values
    if not isinstance(user, str) or not isinstance(password, str) or not user or ":" in user:
        raise Invalid(
            'the secret is not a JSON object with the members "username" and "password", both of them strings'
        )
    return user, password
