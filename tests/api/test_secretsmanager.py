"""Secrets Manager as boto3 sees it; and what of it is on the disk."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.secrets_api import CAUSE, SecretsServer

DAY_S = 86400


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecretsServer]:
    running = SecretsServer(tmp_path_factory.mktemp("secrets"))
    yield running
    running.api.stop()


@pytest.fixture(scope="module")
def client(server: SecretsServer) -> Any:
    return server.api.client("secretsmanager")


@pytest.fixture
def name() -> str:
    return f"app/{uuid.uuid4().hex[:8]}"


def refused(code: str, call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    return str(error["Message"])


def test_the_life_of_a_secret(client: Any, name: str) -> None:
    made = client.create_secret(
        Name=name, SecretString="one", Description="d", Tags=[{"Key": "a", "Value": "b"}]
    )
    assert made["Name"] == name and made["ARN"].startswith(
        f"arn:aws:secretsmanager:us-east-1:000000000000:secret:{name}-"
    )
    assert len(made["ARN"].rpartition("-")[2]) == 6
    for secret_id in (name, made["ARN"], made["ARN"][:-7]):
        got = client.get_secret_value(SecretId=secret_id)
        assert (got["SecretString"], got["VersionStages"], got["VersionId"]) == (
            "one",
            ["AWSCURRENT"],
            made["VersionId"],
        )
    described = client.describe_secret(SecretId=name)
    assert described["Description"] == "d" and described["Tags"] == [{"Key": "a", "Value": "b"}]
    assert described["VersionIdsToStages"] == {made["VersionId"]: ["AWSCURRENT"]}
    assert described["LastAccessedDate"] <= described["CreatedDate"]
    client.update_secret(SecretId=name, Description="e", SecretBinary=b"\0\1\xff")
    got = client.get_secret_value(SecretId=name)
    assert got["SecretBinary"] == b"\0\1\xff" and "SecretString" not in got
    assert client.get_secret_value(SecretId=name, VersionStage="AWSPREVIOUS")["SecretString"] == "one"
    assert client.get_secret_value(SecretId=name, VersionId=made["VersionId"])["SecretString"] == "one"
    client.tag_resource(SecretId=name, Tags=[{"Key": "c", "Value": "d"}])
    client.untag_resource(SecretId=name, TagKeys=["a"])
    assert client.describe_secret(SecretId=name)["Tags"] == [{"Key": "c", "Value": "d"}]
    assert client.get_resource_policy(SecretId=name)["Name"] == name


def test_stages_move_from_version_to_version(client: Any, name: str) -> None:
    first = client.create_secret(Name=name, SecretString="1")["VersionId"]
    second = client.put_secret_value(SecretId=name, SecretString="2")["VersionId"]
    pending = client.put_secret_value(SecretId=name, SecretString="3", VersionStages=["AWSPENDING"])
    assert pending["VersionStages"] == ["AWSPENDING"]
    third = pending["VersionId"]
    stages = client.describe_secret(SecretId=name)["VersionIdsToStages"]
    assert stages == {first: ["AWSPREVIOUS"], second: ["AWSCURRENT"], third: ["AWSPENDING"]}
    refused(
        "InvalidParameterException",
        client.update_secret_version_stage,
        SecretId=name,
        VersionStage="AWSCURRENT",
        MoveToVersionId=third,
    )
    client.update_secret_version_stage(
        SecretId=name, VersionStage="AWSCURRENT", MoveToVersionId=third, RemoveFromVersionId=second
    )
    stages = client.describe_secret(SecretId=name)["VersionIdsToStages"]
    assert stages == {second: ["AWSPREVIOUS"], third: ["AWSPENDING", "AWSCURRENT"]}
    listed = client.list_secret_version_ids(SecretId=name)["Versions"]
    assert {v["VersionId"] for v in listed} == {second, third}
    every = client.list_secret_version_ids(SecretId=name, IncludeDeprecated=True)["Versions"]
    assert [v["VersionId"] for v in every] == [first, second, third]
    message = refused(
        "ResourceNotFoundException", client.get_secret_value, SecretId=name, VersionStage="nothing"
    )
    assert message == "Secrets Manager can't find the specified secret value for staging label: nothing"


def test_a_token_makes_a_change_repeatable(client: Any, name: str) -> None:
    token = str(uuid.uuid4())
    first = client.create_secret(Name=name, SecretString="x", ClientRequestToken=token)
    again = client.create_secret(Name=name, SecretString="x", ClientRequestToken=token)
    assert (first["ARN"], first["VersionId"]) == (again["ARN"], again["VersionId"]) and first[
        "VersionId"
    ] == token
    message = refused("ResourceExistsException", client.create_secret, Name=name, SecretString="y")
    assert message == f"The operation failed because the secret {name} already exists."
    refused(
        "ResourceExistsException",
        client.put_secret_value,
        SecretId=name,
        SecretString="y",
        ClientRequestToken=token,
    )
    client.put_secret_value(SecretId=name, SecretString="x", ClientRequestToken=token)


def test_deletion_waits_and_can_be_taken_back(server: SecretsServer, client: Any, name: str) -> None:
    client.create_secret(Name=name, SecretString="x")
    refused("InvalidParameterException", client.delete_secret, SecretId=name, RecoveryWindowInDays=6)
    refused(
        "InvalidParameterException",
        client.delete_secret,
        SecretId=name,
        RecoveryWindowInDays=7,
        ForceDeleteWithoutRecovery=True,
    )
    client.delete_secret(SecretId=name, RecoveryWindowInDays=7)
    message = refused("InvalidRequestException", client.get_secret_value, SecretId=name)
    assert "marked for deletion" in message
    refused("InvalidRequestException", client.create_secret, Name=name, SecretString="y")
    assert client.describe_secret(SecretId=name)["DeletedDate"]
    listed = {s["Name"] for s in client.list_secrets()["SecretList"]}
    marked = {s["Name"] for s in client.list_secrets(IncludePlannedDeletion=True)["SecretList"]}
    assert name not in listed and name in marked
    client.restore_secret(SecretId=name)
    assert client.get_secret_value(SecretId=name)["SecretString"] == "x"
    client.delete_secret(SecretId=name, RecoveryWindowInDays=7)
    server.clock.ahead_s = 7 * DAY_S + 1
    try:
        refused("ResourceNotFoundException", client.describe_secret, SecretId=name)
        assert server.run(server.secrets.expire(CAUSE)) >= 1
    finally:
        server.clock.ahead_s = 0
    refused("ResourceNotFoundException", client.describe_secret, SecretId=name)


def test_a_forced_deletion_frees_the_name(client: Any, name: str) -> None:
    old = client.create_secret(Name=name, SecretString="x")["ARN"]
    client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
    client.delete_secret(SecretId=name, ForceDeleteWithoutRecovery=True)
    assert client.create_secret(Name=name, SecretString="y")["ARN"] != old
    refused("ResourceNotFoundException", client.get_secret_value, SecretId=old)


def test_refusals(client: Any, name: str) -> None:
    refused("ValidationException", client.create_secret, Name="no spaces", SecretString="x")
    refused("InvalidParameterException", client.create_secret, Name=name, SecretString="x", SecretBinary=b"y")
    refused("InvalidParameterException", client.create_secret, Name=name, KmsKeyId="alias/mine")
    message = refused("ResourceNotFoundException", client.get_secret_value, SecretId="nowhere")
    assert message == "Secrets Manager can't find the specified secret."
    client.create_secret(Name=name)
    refused("ResourceNotFoundException", client.get_secret_value, SecretId=name)
    refused("InvalidRequestException", client.put_secret_value, SecretId=name)
    refused("ResourceNotFoundException", client.get_secret_value, SecretId="arn:aws:ecs:us-east-1:0:secret:x")


def test_many_versions_lose_the_oldest_that_are_deprecated(
    client: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.rules.secrets.MAX_VERSIONS", 6)
    first = client.create_secret(Name=name, SecretString="0")["VersionId"]
    for number in range(8):
        client.put_secret_value(SecretId=name, SecretString=str(number))
    ids, token = [], {}
    while token is not None:
        page = client.list_secret_version_ids(SecretId=name, IncludeDeprecated=True, MaxResults=4, **token)
        ids += [v["VersionId"] for v in page["Versions"]]
        token = {"NextToken": page["NextToken"]} if "NextToken" in page else None
    assert len(ids) == 6 == len(set(ids)) and first not in ids


def test_lists_are_filtered_ordered_and_paged(client: Any) -> None:
    mark = uuid.uuid4().hex[:8]
    for number in (2, 1, 3):
        client.create_secret(
            Name=f"{mark}/{number}",
            SecretString="v",
            Description=f"Number {number}",
            Tags=[{"Key": mark, "Value": "t"}],
        )
    by_name = {"Filters": [{"Key": "name", "Values": [mark]}]}
    pages = client.get_paginator("list_secrets").paginate(
        **by_name, SortBy="name", SortOrder="asc", PaginationConfig={"PageSize": 2}
    )
    assert [s["Name"] for p in pages for s in p["SecretList"]] == [f"{mark}/{n}" for n in (1, 2, 3)]
    newest_first = [s["Name"][-1] for s in client.list_secrets(**by_name)["SecretList"]]
    assert newest_first == ["3", "1", "2"]
    found = client.list_secrets(
        Filters=[{"Key": "tag-key", "Values": [mark]}, {"Key": "description", "Values": ["number 2"]}]
    )
    assert [s["Name"] for s in found["SecretList"]] == [f"{mark}/2"]
    batch = client.batch_get_secret_value(SecretIdList=[f"{mark}/1", "nowhere"])
    assert [v["SecretString"] for v in batch["SecretValues"]] == ["v"]
    assert batch["Errors"][0]["ErrorCode"] == "ResourceNotFoundException"


def test_values_are_never_on_the_disk(
    server: SecretsServer, client: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    value = f"plain-{uuid.uuid4().hex}"
    caplog.set_level("DEBUG", "hutch")
    client.create_secret(Name=name, SecretString=json.dumps({"password": value}))
    server.api.client("ssm").put_parameter(Name=f"/{name}", Value=value, Type="String")
    found = [p for p in server.directory.rglob("*") if p.is_file() and value.encode() in p.read_bytes()]
    ours = [r for r in caplog.records if r.name.startswith("hutch")]
    assert ours and found == []
    assert value not in repr([(r.getMessage(), r.__dict__) for r in ours])
    assert name.encode() in b"".join(p.read_bytes() for p in server.directory.glob("state.sqlite3*"))
    assert (server.directory / "secrets.key").stat().st_mode & 0o777 == 0o600


def test_a_damaged_or_swapped_value_is_not_given_out(server: SecretsServer, client: Any, name: str) -> None:
    """The ciphertext of one secret does not open as another's."""
    from msgspec.structs import replace

    from hutch.store import tables

    ids = [client.create_secret(Name=f"{name}-{n}", SecretString=n)["VersionId"] for n in "ab"]

    def swap(tx: Any) -> None:
        a, b = (tx.get(tables.SECRET_VERSIONS, f"{name}-{n}", i) for n, i in zip("ab", ids, strict=True))
        tx.put(tables.SECRET_VERSIONS, replace(b, sealed=a.sealed))

    server.run(server.api.store.write(CAUSE, swap))
    assert client.get_secret_value(SecretId=f"{name}-a")["SecretString"] == "a"
    assert "can't be decrypted" in refused("DecryptionFailure", client.get_secret_value, SecretId=f"{name}-b")


def test_files_of_the_vault(tmp_path: Path) -> None:
    from hutch.base.errors import HutchError
    from hutch.base.ids import RandomIds
    from hutch.control.vault import open_vault

    path, ids = tmp_path / "secrets.key", RandomIds()
    with pytest.raises(HutchError, match="is missing, and secrets, parameters or access keys are stored"):
        open_vault(path, ids, values_exist=True)
    old = open_vault(path, ids, values_exist=False).seal(b"v", "x")
    document = json.loads(path.read_bytes())
    document["keys"].append({**document["keys"][0], "version": 2, "key": "A" * 43 + "="})
    path.write_text(json.dumps(document))
    rotated = open_vault(path, ids, values_exist=True)
    assert rotated.open(old, "x") == b"v" and rotated.seal(b"v", "x").key_version == 2
    path.write_text("{}")
    with pytest.raises(HutchError, match="is damaged"):
        open_vault(path, ids, values_exist=True)
