"""Parameter Store as boto3 sees it."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.secrets_api import SecretsServer


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    server = SecretsServer(tmp_path_factory.mktemp("ssm"))
    yield server.api.client("ssm")
    server.api.stop()


@pytest.fixture
def path() -> str:
    return f"/{uuid.uuid4().hex[:8]}"


def refused(code: str, call: Any, **arguments: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    return str(error["Message"])


def test_the_life_of_a_parameter(client: Any, path: str) -> None:
    name = f"{path}/db"
    assert client.put_parameter(Name=name, Value="1", Type="String", Description="d")["Version"] == 1
    message = refused("ParameterAlreadyExists", client.put_parameter, Name=name, Value="2", Type="String")
    assert message.startswith("The parameter already exists. To overwrite this value")
    answer = client.put_parameter(Name=name, Value="2", Overwrite=True)
    assert answer["Version"] == 2 and answer["Tier"] == "Standard"
    got = client.get_parameter(Name=name)["Parameter"]
    assert (got["Value"], got["Version"], got["Type"], got["DataType"]) == ("2", 2, "String", "text")
    assert got["ARN"] == f"arn:aws:ssm:us-east-1:000000000000:parameter{name}"
    assert client.get_parameter(Name=got["ARN"])["Parameter"]["Value"] == "2"
    old = client.get_parameter(Name=f"{name}:1")["Parameter"]
    assert (old["Value"], old["Selector"]) == ("1", ":1")
    refused("ParameterVersionNotFound", client.get_parameter, Name=f"{name}:3")
    history = client.get_parameter_history(Name=name)["Parameters"]
    assert [(h["Version"], h["Value"], h["Description"]) for h in history] == [(1, "1", "d"), (2, "2", "d")]
    client.delete_parameter(Name=name)
    refused("ParameterNotFound", client.get_parameter, Name=name)
    refused("ParameterNotFound", client.delete_parameter, Name=name)
    refused("ParameterNotFound", client.get_parameter_history, Name=name)


def test_a_secure_string_is_shown_only_decrypted(client: Any, path: str) -> None:
    name = f"{path}/pw"
    client.put_parameter(Name=name, Value="hunter2", Type="SecureString", KeyId="alias/aws/ssm")
    assert "hunter2" not in client.get_parameter(Name=name)["Parameter"]["Value"]
    assert client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"] == "hunter2"
    found = client.get_parameters(Names=[name, "nowhere"], WithDecryption=True)
    assert [p["Value"] for p in found["Parameters"]] == ["hunter2"]
    assert found["InvalidParameters"] == ["nowhere"]
    described = client.describe_parameters(ParameterFilters=[{"Key": "Name", "Values": [name]}])["Parameters"]
    assert described[0]["KeyId"] == "alias/aws/ssm" and "Value" not in described[0]
    refused(
        "InvalidKeyId", client.put_parameter, Name=f"{name}2", Value="x", Type="SecureString", KeyId="mine"
    )


def test_a_path(client: Any, path: str) -> None:
    for tail in ("a", "b", "deep/c", "deep/er/d"):
        client.put_parameter(
            Name=f"{path}/{tail}", Value=tail, Type="StringList" if tail == "b" else "String"
        )
    client.put_parameter(Name=f"{path}x", Value="other", Type="String")

    def names(**more: Any) -> list[str]:
        pages = client.get_paginator("get_parameters_by_path").paginate(
            Path=path, PaginationConfig={"PageSize": 2}, **more
        )
        return [p["Name"].removeprefix(path) for page in pages for p in page["Parameters"]]

    assert names() == ["/a", "/b"]
    assert names(Recursive=True) == ["/a", "/b", "/deep/c", "/deep/er/d"]
    assert names(ParameterFilters=[{"Key": "Type", "Values": ["StringList"]}]) == ["/b"]
    refused(
        "InvalidFilterKey",
        client.get_parameters_by_path,
        Path=path,
        ParameterFilters=[{"Key": "Name", "Values": ["x"]}],
    )
    under = [{"Key": "Path", "Option": "Recursive", "Values": [path]}]
    pages = client.get_paginator("describe_parameters").paginate(
        ParameterFilters=under, PaginationConfig={"PageSize": 3}
    )
    assert sum(len(p["Parameters"]) for p in pages) == 4
    gone = client.delete_parameters(Names=[f"{path}/a", f"{path}/none"])
    assert gone["DeletedParameters"] == [f"{path}/a"] and gone["InvalidParameters"] == [f"{path}/none"]


def test_labels_and_tags(client: Any, path: str) -> None:
    name = f"{path}/x"
    client.put_parameter(Name=name, Value="1", Type="String", Tags=[{"Key": "a", "Value": "b"}])
    client.put_parameter(Name=name, Value="2", Overwrite=True)
    answer = client.label_parameter_version(Name=name, ParameterVersion=1, Labels=["prod", "aws-no"])
    assert answer["InvalidLabels"] == ["aws-no"]
    assert client.get_parameter(Name=f"{name}:prod")["Parameter"]["Value"] == "1"
    client.label_parameter_version(Name=name, Labels=["prod"])
    assert client.get_parameter(Name=f"{name}:prod")["Parameter"]["Value"] == "2"
    answer = client.unlabel_parameter_version(Name=name, ParameterVersion=2, Labels=["prod", "none"])
    assert answer["RemovedLabels"] == ["prod"] and answer["InvalidLabels"] == ["none"]
    resource = {"ResourceType": "Parameter", "ResourceId": name}
    client.add_tags_to_resource(**resource, Tags=[{"Key": "c", "Value": "d"}])
    client.remove_tags_from_resource(**resource, TagKeys=["a"])
    assert client.list_tags_for_resource(**resource)["TagList"] == [{"Key": "c", "Value": "d"}]
    refused("InvalidResourceType", client.list_tags_for_resource, ResourceType="Document", ResourceId="x")
    refused("InvalidResourceId", client.list_tags_for_resource, ResourceType="Parameter", ResourceId="none")


def test_refusals(client: Any, path: str) -> None:
    put = client.put_parameter
    refused("ValidationException", put, Name=f"{path}/x", Value="v")
    refused("ValidationException", put, Name="a b", Value="v", Type="String")
    refused("ValidationException", put, Name="a/b", Value="v", Type="String")
    refused("ValidationException", put, Name="ssm-mine", Value="v", Type="String")
    refused("AccessDeniedException", put, Name="/aws/mine", Value="v", Type="String")
    refused("HierarchyLevelLimitExceededException", put, Name="/a" * 16, Value="v", Type="String")
    message = refused("ValidationException", put, Name=f"{path}/x", Value="v" * 4097, Type="String")
    assert message.startswith("Standard tier parameters support a maximum parameter value of 4096")
    assert (
        put(Name=f"{path}/x", Value="v" * 4097, Type="String", Tier="Intelligent-Tiering")["Tier"]
        == "Advanced"
    )
    refused("ValidationException", put, Name=f"{path}/y", Value="v" * 8193, Type="String", Tier="Advanced")
    refused(
        "ValidationException",
        put,
        Name=f"{path}/x",
        Value="v",
        Overwrite=True,
        Tags=[{"Key": "a", "Value": "b"}],
    )
    with pytest.raises(ClientError, match="AllowedPattern"):
        put(Name=f"{path}/y", Value="v", Type="String", AllowedPattern=".*")


def test_too_many_versions(client: Any, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.rules.parameters.MAX_VERSIONS", 6)
    name = f"{path}/many"
    client.put_parameter(Name=name, Value="0", Type="String")
    for number in range(1, 7):
        client.put_parameter(Name=name, Value=str(number), Overwrite=True)
    pages = client.get_paginator("get_parameter_history").paginate(Name=name)
    numbers = [p["Version"] for page in pages for p in page["Parameters"]]
    assert numbers == list(range(2, 8))
    client.label_parameter_version(Name=name, ParameterVersion=2, Labels=["keep"])
    refused("ParameterMaxVersionLimitExceeded", client.put_parameter, Name=name, Value="x", Overwrite=True)
