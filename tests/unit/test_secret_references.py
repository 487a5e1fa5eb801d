"""What `valueFrom` names, and what comes of a value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.secret_references import (
    ParameterReference,
    SecretReference,
    check_container,
    check_override,
    json_member,
    parse_value_from,
    registry_credentials,
)

ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app/db-AbCdEf"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (ARN, SecretReference(secret_id=ARN)),
        (f"{ARN}:user::", SecretReference(secret_id=ARN, json_key="user")),
        (f"{ARN}::AWSPREVIOUS:", SecretReference(secret_id=ARN, stage="AWSPREVIOUS")),
        (f"{ARN}:user::{'v' * 32}", SecretReference(secret_id=ARN, json_key="user", version_id="v" * 32)),
        ("/a/b", ParameterReference(name="/a/b")),
        ("plain", ParameterReference(name="plain")),
        (
            "arn:aws:ssm:us-east-1:0:parameter/a/b",
            ParameterReference(name="arn:aws:ssm:us-east-1:0:parameter/a/b"),
        ),
    ],
)
def test_references(text: str, wanted: object) -> None:
    assert parse_value_from(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a b",
        f"{ARN}:user",
        f"{ARN}:user:",
        f"{ARN}:k:stage:{'v' * 32}",
        "arn:aws:s3:::b",
        "arn:aws:ssm:r:0:x/a",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(Invalid):
        parse_value_from(text)


@given(st.text(max_size=200))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        parse_value_from(text)
    except Invalid as error:
        assert error.message


def test_names_of_secrets_are_the_containers_own() -> None:
    secrets = [{"name": "A", "valueFrom": "/a"}]
    check_container({"name": "c", "secrets": secrets, "environment": [{"name": "B", "value": ""}]})
    for bad in (
        {"secrets": secrets * 2},
        {"secrets": secrets, "environment": [{"name": "A", "value": ""}]},
        {"secrets": [{"name": "A=", "valueFrom": "/a"}]},
        {"secrets": [{"name": "A", "valueFrom": "a b"}]},
        {"repositoryCredentials": {"credentialsParameter": ""}},
    ):
        with pytest.raises(Invalid):
            check_container({"name": "c", **bad})
    with pytest.raises(Invalid, match="must be unique and not shared"):
        check_override({"secrets": secrets}, [{"name": "A", "value": "x"}])
    check_override({"secrets": secrets}, [{"name": "B", "value": "x"}])


def test_json_members() -> None:
    text = json.dumps({"a": "x", "n": 5, "o": {"b": None}})
    assert [json_member(text, k) for k in "ano"] == ["x", "5", '{"b": null}']
    with pytest.raises(Invalid, match="did not contain json key missing"):
        json_member(text, "missing")
    for bad in ("not json hunter2", "[1]", "[" * 100_000):
        with pytest.raises(Invalid) as caught:
            json_member(bad, "a")
        assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("text", ["x", "{}", '{"username": "u"}', '{"username": 1, "password": "p"}', "[]"])
def test_what_are_no_credentials(text: str) -> None:
    with pytest.raises(Invalid):
        registry_credentials(text)
    assert registry_credentials('{"username": "u", "password": "p:q"}') == ("u", "p:q")
