"""IAM and STS over HTTP, by boto3: entities and policies, and what they let their holders do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer
from tests.api.support.identities import ACCOUNT_ID, identity_services, task_roles
from tests.api.support.server import ApiServer

from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.base.errors import AccessDenied, NotFound
from hutch.client.client import HutchClient
from hutch.client.errors import AwsError
from hutch.store import tables
from hutch.store.memory import MemoryStore

TASKS_TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow",
            "Principal": {"Service": "ecs-tasks.amazonaws.com"},
            "Action": "sts:AssumeRole",
        },
    }
)
EXECUTION = "arn:aws:iam::aws:policy/service-role/AmazonECSTaskExecutionRolePolicy"
DEFINITION = {
    "family": "web",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [{"name": "main", "image": "x"}],
}


def document(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def allow(action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def trust(principal: Any, **more: Any) -> str:
    statement = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole", **more}
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def refused(call: Callable[..., Any], **given: Any) -> tuple[str, str]:
    """Code and message of the error that a call must give."""
    with pytest.raises(ClientError) as raised:
        call(**given)
    error = raised.value.response["Error"]
    return error["Code"], error["Message"]


class Account:
    """Makes users and clients for them; names are new each time."""

    def __init__(self, aws: AwsServer) -> None:
        self.aws = aws
        self.iam = aws.client("iam")
        self.count = 0

    def user(self, *statements: dict[str, Any], **given: Any) -> tuple[str, dict[str, str]]:
        """The name of a new user with these permissions, and its keys as a client takes them."""
        self.count += 1
        name = f"user-{self.count}"
        self.iam.create_user(UserName=name, **given)
        if statements:
            self.iam.put_user_policy(UserName=name, PolicyName="own", PolicyDocument=document(*statements))
        key = self.iam.create_access_key(UserName=name)["AccessKey"]
        return name, {
            "aws_access_key_id": key["AccessKeyId"],
            "aws_secret_access_key": key["SecretAccessKey"],
        }

    def client(self, service: str, keys: dict[str, str]) -> Any:
        return self.aws.http.client(service, **keys)

    @staticmethod
    def keys(credentials: dict[str, Any]) -> dict[str, str]:
        return {
            "aws_access_key_id": credentials["AccessKeyId"],
            "aws_secret_access_key": credentials["SecretAccessKey"],
            "aws_session_token": credentials["SessionToken"],
        }


@pytest.fixture(scope="module")
def account(aws: AwsServer) -> Iterator[Account]:
    yield Account(aws)


# Entities


def test_a_roles_life(account: Account) -> None:
    iam = account.iam
    made = iam.create_role(
        RoleName="life",
        Path="/team/",
        AssumeRolePolicyDocument=TASKS_TRUST,
        Description="d",
        MaxSessionDuration=7200,
        Tags=[{"Key": "a", "Value": "1"}],
    )["Role"]
    assert made["Arn"] == f"arn:aws:iam::{ACCOUNT_ID}:role/team/life"
    assert made["RoleId"].startswith("AROA") and made["MaxSessionDuration"] == 7200
    got = iam.get_role(RoleName="life")["Role"]
    assert got == made and got["AssumeRolePolicyDocument"] == json.loads(TASKS_TRUST)
    assert refused(iam.create_role, RoleName="LIFE", AssumeRolePolicyDocument=TASKS_TRUST) == (
        "EntityAlreadyExists",
        "Role with name LIFE already exists.",
    )
    assert [r["RoleName"] for r in iam.list_roles(PathPrefix="/team/")["Roles"]] == ["life"]

    iam.put_role_policy(RoleName="life", PolicyName="p", PolicyDocument=document(allow("ecs:*")))
    assert iam.get_role_policy(RoleName="life", PolicyName="p")["PolicyDocument"]["Statement"]
    assert iam.list_role_policies(RoleName="life")["PolicyNames"] == ["p"]
    iam.attach_role_policy(RoleName="life", PolicyArn=EXECUTION)
    iam.attach_role_policy(RoleName="life", PolicyArn=EXECUTION)
    attached = iam.list_attached_role_policies(RoleName="life")["AttachedPolicies"]
    assert attached == [{"PolicyName": "AmazonECSTaskExecutionRolePolicy", "PolicyArn": EXECUTION}]
    assert [r["RoleName"] for r in iam.list_entities_for_policy(PolicyArn=EXECUTION)["PolicyRoles"]] == [
        "life"
    ]
    assert refused(iam.delete_role, RoleName="life") == (
        "DeleteConflict",
        "Cannot delete entity, must detach all policies first.",
    )
    iam.detach_role_policy(RoleName="life", PolicyArn=EXECUTION)
    assert refused(iam.delete_role, RoleName="life")[1] == "Cannot delete entity, must delete policies first."
    iam.delete_role_policy(RoleName="life", PolicyName="p")

    iam.update_role(RoleName="life", Description="", MaxSessionDuration=3600)
    iam.update_assume_role_policy(RoleName="life", PolicyDocument=trust({"AWS": ACCOUNT_ID}))
    iam.tag_role(RoleName="life", Tags=[{"Key": "A", "Value": "2"}, {"Key": "b", "Value": ""}])
    iam.untag_role(RoleName="life", TagKeys=["B"])
    assert iam.list_role_tags(RoleName="life")["Tags"] == [{"Key": "A", "Value": "2"}]
    got = iam.get_role(RoleName="life")["Role"]
    assert "Description" not in got and got["MaxSessionDuration"] == 3600
    iam.delete_role(RoleName="life")
    assert refused(iam.get_role, RoleName="life") == (
        "NoSuchEntity",
        "The role with name life cannot be found.",
    )
    with pytest.raises(iam.exceptions.NoSuchEntityException):
        iam.get_role(RoleName="life")


def test_a_managed_policys_life(account: Account) -> None:
    iam = account.iam
    first, second = document(allow("ecs:*")), document(allow("logs:*"))
    made = iam.create_policy(PolicyName="managed", PolicyDocument=first, Description="d")["Policy"]
    arn = made["Arn"]
    assert arn == f"arn:aws:iam::{ACCOUNT_ID}:policy/managed" and made["DefaultVersionId"] == "v1"
    assert refused(iam.create_policy, PolicyName="managed", PolicyDocument=first)[0] == "EntityAlreadyExists"
    iam.create_policy_version(PolicyArn=arn, PolicyDocument=second, SetAsDefault=True)
    assert iam.get_policy_version(PolicyArn=arn, VersionId="v2")["PolicyVersion"]["Document"] == json.loads(
        second
    )
    versions = iam.list_policy_versions(PolicyArn=arn)["Versions"]
    assert [(v["VersionId"], v["IsDefaultVersion"]) for v in versions] == [("v2", True), ("v1", False)]
    assert refused(iam.delete_policy, PolicyArn=arn)[0] == "DeleteConflict"
    assert refused(iam.delete_policy_version, PolicyArn=arn, VersionId="v2") == (
        "DeleteConflict",
        "Cannot delete the default version of a policy.",
    )
    iam.set_default_policy_version(PolicyArn=arn, VersionId="v1")
    iam.delete_policy_version(PolicyArn=arn, VersionId="v2")
    for _ in range(4):
        iam.create_policy_version(PolicyArn=arn, PolicyDocument=second)
    assert refused(iam.create_policy_version, PolicyArn=arn, PolicyDocument=second)[0] == "LimitExceeded"
    iam.create_user(UserName="holder")
    iam.attach_user_policy(UserName="holder", PolicyArn=arn)
    assert iam.get_policy(PolicyArn=arn)["Policy"]["AttachmentCount"] == 1
    local = iam.list_policies(Scope="Local", OnlyAttached=True)["Policies"]
    assert [p["Arn"] for p in local] == [arn]
    iam.detach_user_policy(UserName="holder", PolicyArn=arn)
    for version in ("v3", "v4", "v5", "v6"):
        iam.delete_policy_version(PolicyArn=arn, VersionId=version)
    iam.delete_policy(PolicyArn=arn)
    assert refused(iam.get_policy, PolicyArn=arn) == ("NoSuchEntity", f"Policy {arn} was not found.")


def test_awss_own_policies_are_there_and_stay_as_they_are(account: Account) -> None:
    iam = account.iam
    own = iam.get_policy(PolicyArn=EXECUTION)["Policy"]
    found = iam.get_policy_version(PolicyArn=EXECUTION, VersionId=own["DefaultVersionId"])
    assert "ecr:GetAuthorizationToken" in found["PolicyVersion"]["Document"]["Statement"][0]["Action"]
    assert refused(iam.delete_policy, PolicyArn=EXECUTION)[0] == "InvalidInput"
    pages = list(iam.get_paginator("list_policies").paginate(Scope="AWS", PaginationConfig={"PageSize": 7}))
    names = [p["PolicyName"] for page in pages for p in page["Policies"]]
    assert len(pages) > 3 and len(names) == len(set(names)) and "AdministratorAccess" in names


def test_instance_profiles(account: Account) -> None:
    iam = account.iam
    iam.create_role(RoleName="ec2", AssumeRolePolicyDocument=TASKS_TRUST)
    iam.create_instance_profile(InstanceProfileName="ec2")
    iam.add_role_to_instance_profile(InstanceProfileName="ec2", RoleName="ec2")
    code, _ = refused(iam.add_role_to_instance_profile, InstanceProfileName="ec2", RoleName="ec2")
    assert code == "LimitExceeded"
    profile = iam.get_instance_profile(InstanceProfileName="ec2")["InstanceProfile"]
    assert [r["RoleName"] for r in profile["Roles"]] == ["ec2"]
    assert iam.list_instance_profiles_for_role(RoleName="ec2")["InstanceProfiles"] == [profile]
    assert refused(iam.delete_role, RoleName="ec2")[0] == "DeleteConflict"
    assert refused(iam.delete_instance_profile, InstanceProfileName="ec2")[0] == "DeleteConflict"
    iam.remove_role_from_instance_profile(InstanceProfileName="ec2", RoleName="ec2")
    iam.delete_instance_profile(InstanceProfileName="ec2")
    iam.delete_role(RoleName="ec2")


def test_service_linked_roles_are_their_services(account: Account) -> None:
    iam = account.iam
    role = iam.create_service_linked_role(AWSServiceName="ecs.amazonaws.com")["Role"]
    assert role["Arn"].endswith(":role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS")
    assert refused(iam.create_service_linked_role, AWSServiceName="ecs.amazonaws.com") == (
        "InvalidInput",
        "Service role name AWSServiceRoleForECS has been taken in this account, please try a different suffix.",
    )
    assert refused(iam.delete_role, RoleName="AWSServiceRoleForECS")[0] == "UnmodifiableEntity"


@pytest.mark.parametrize(
    ("call", "given", "code"),
    [
        ("create_role", {"RoleName": "x", "AssumeRolePolicyDocument": "{"}, "MalformedPolicyDocument"),
        ("create_policy", {"PolicyName": "x", "PolicyDocument": "{}"}, "MalformedPolicyDocument"),
        ("create_policy", {"PolicyName": "a b", "PolicyDocument": document(allow("*"))}, "ValidationError"),
        ("create_user", {"UserName": "x", "Path": "no/slash"}, "ValidationError"),
        ("create_user", {"UserName": "x", "PermissionsBoundary": EXECUTION + "x"}, "NoSuchEntity"),
        ("get_user", {"UserName": "nobody"}, "NoSuchEntity"),
        ("get_policy", {"PolicyArn": "arn:aws:iam::aws:role/abc"}, "InvalidInput"),
        ("attach_role_policy", {"RoleName": "nobody", "PolicyArn": EXECUTION}, "NoSuchEntity"),
        ("delete_access_key", {"AccessKeyId": "AKIA0000000000000000"}, "NoSuchEntity"),
        ("list_roles", {"Marker": "made-up"}, "ValidationError"),
        (
            "create_role",
            {
                "RoleName": "x",
                "AssumeRolePolicyDocument": TASKS_TRUST,
                "Tags": [{"Key": "a", "Value": ""}, {"Key": "A", "Value": ""}],
            },
            "InvalidInput",
        ),
        ("create_policy", {"PolicyName": "x", "PolicyDocument": document(*[allow("a:" + "b" * 99)] * 60)}, "LimitExceeded"),
    ],
)  # fmt: skip
def test_refusals(account: Account, call: str, given: dict[str, Any], code: str) -> None:
    assert refused(getattr(account.iam, call), **given)[0] == code


# Access keys


def test_access_keys(account: Account) -> None:
    iam = account.iam
    name, keys = account.user()
    sts = account.client("sts", keys)
    user = iam.get_user(UserName=name)["User"]
    me = sts.get_caller_identity()
    assert (me["Arn"], me["UserId"]) == (user["Arn"], user["UserId"])
    listed = iam.list_access_keys(UserName=name)["AccessKeyMetadata"]
    assert [k["AccessKeyId"] for k in listed] == [keys["aws_access_key_id"]]
    assert "SecretAccessKey" not in listed[0]
    iam.create_access_key(UserName=name)
    assert refused(iam.create_access_key, UserName=name) == (
        "LimitExceeded",
        "Cannot exceed quota for AccessKeysPerUser: 2",
    )
    assert refused(iam.delete_user, UserName=name)[0] == "DeleteConflict"
    key_id = keys["aws_access_key_id"]
    iam.update_access_key(UserName=name, AccessKeyId=key_id, Status="Inactive")
    assert refused(sts.get_caller_identity)[0] == "InvalidClientTokenId"
    iam.update_access_key(UserName=name, AccessKeyId=key_id, Status="Active")
    assert sts.get_caller_identity()["Arn"] == user["Arn"]
    iam.delete_access_key(UserName=name, AccessKeyId=key_id)
    assert refused(sts.get_caller_identity)[0] == "InvalidClientTokenId"


def test_no_secret_is_stored_in_clear(account: Account) -> None:
    _, keys = account.user()
    with account.aws.store.read() as reader:
        stored = reader.get(tables.ACCESS_KEYS, keys["aws_access_key_id"])
    assert stored is not None and stored.sealed is not None
    assert keys["aws_secret_access_key"] not in repr(stored)


# Authorisation


def test_what_no_policy_allows_is_refused_in_awss_words(account: Account) -> None:
    name, keys = account.user()
    arn = f"arn:aws:iam::{ACCOUNT_ID}:user/{name}"
    ecs = account.client("ecs", keys)
    task = f"arn:aws:ecs:us-east-1:{ACCOUNT_ID}:task/default/abc"
    code, message = refused(ecs.stop_task, task="abc")
    assert code == "AccessDeniedException"
    assert message == (
        f"User: {arn} is not authorized to perform: ecs:StopTask on resource: {task} "
        "because no identity-based policy allows the ecs:StopTask action"
    )
    assert refused(ecs.list_clusters)[1].endswith(
        "ecs:ListClusters on resource: * because no identity-based policy allows the ecs:ListClusters action"
    )
    iam = account.client("iam", keys)
    assert refused(iam.get_role, RoleName="x")[0] == "AccessDenied"
    with pytest.raises(ClientError) as raised:
        iam.list_users()
    assert raised.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    assert refused(account.client("ec2", keys).describe_vpcs)[0] == "UnauthorizedOperation"


def test_a_policy_counts_at_once_and_for_its_resources_only(account: Account) -> None:
    name, keys = account.user()
    ecs = account.client("ecs", keys)
    assert refused(ecs.describe_clusters)[0] == "AccessDeniedException"
    cluster = f"arn:aws:ecs:us-east-1:{ACCOUNT_ID}:cluster/default"
    account.iam.put_user_policy(
        UserName=name, PolicyName="p", PolicyDocument=document(allow("ecs:Describe*", cluster))
    )
    assert ecs.describe_clusters()["clusters"]
    assert ecs.describe_clusters(clusters=[cluster])["clusters"]
    assert refused(ecs.describe_clusters, clusters=["default", "other"])[0] == "AccessDeniedException"
    denied = {"Effect": "Deny", "Action": "ecs:DescribeClusters", "Resource": "*"}
    account.iam.put_user_policy(UserName=name, PolicyName="q", PolicyDocument=document(denied))
    assert refused(ecs.describe_clusters)[1].endswith("with an explicit deny in an identity-based policy")
    account.iam.delete_user_policy(UserName=name, PolicyName="q")
    assert ecs.describe_clusters()["clusters"]
    account.iam.delete_user_policy(UserName=name, PolicyName="p")
    assert refused(ecs.describe_clusters)[0] == "AccessDeniedException"


def test_an_arn_of_another_cluster_opens_no_door(account: Account) -> None:
    """The use case takes the cluster from the request and only the id from the ARN: that is what is authorised."""
    allowed = f"arn:aws:ecs:us-east-1:{ACCOUNT_ID}:task/mine/*"
    _, keys = account.user(allow("ecs:*", allowed))
    ecs = account.client("ecs", keys)
    code, message = refused(ecs.stop_task, cluster="default", task=allowed.replace("*", "abc"))
    assert code == "AccessDeniedException" and ":task/default/abc" in message


def test_conditions_see_the_request(account: Account) -> None:
    local = allow("ecs:ListClusters", Condition={"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}})
    tagged = allow("ecs:CreateCluster", Condition={"StringEquals": {"aws:RequestTag/team": "a"}})
    owned = allow("ecs:DescribeClusters", Condition={"StringEquals": {"aws:ResourceTag/team": "a"}})
    inside = allow("ecs:ListTasks", Condition={"ArnLike": {"ecs:cluster": "arn:aws:ecs:*:*:cluster/tagged"}})
    own = allow("iam:GetUser", f"arn:aws:iam::{ACCOUNT_ID}:user/${{aws:username}}")
    late = allow(
        "ecs:ListServices", Condition={"DateGreaterThan": {"aws:CurrentTime": "2999-01-01T00:00:00Z"}}
    )
    name, keys = account.user(local, tagged, owned, inside, own, late)
    ecs, iam = account.client("ecs", keys), account.client("iam", keys)
    assert ecs.list_clusters()["clusterArns"]
    assert refused(ecs.create_cluster, clusterName="tagged")[0] == "AccessDeniedException"
    ecs.create_cluster(clusterName="tagged", tags=[{"key": "team", "value": "a"}])
    assert ecs.describe_clusters(clusters=["tagged"])["clusters"]
    assert refused(ecs.describe_clusters, clusters=["default"])[0] == "AccessDeniedException"
    assert ecs.list_tasks(cluster="tagged")["taskArns"] == []
    assert refused(ecs.list_tasks, cluster="default")[0] == "AccessDeniedException"
    assert refused(ecs.list_services)[0] in ("AccessDeniedException", "UnknownOperationException")
    assert iam.get_user()["User"]["UserName"] == name
    assert refused(iam.get_user, UserName="somebody")[0] == "AccessDenied"


def test_a_permissions_boundary_limits(account: Account) -> None:
    boundary = account.iam.create_policy(
        PolicyName="boundary", PolicyDocument=document(allow("ecs:ListClusters"))
    )["Policy"]["Arn"]
    _, keys = account.user(allow("ecs:*"), PermissionsBoundary=boundary)
    ecs = account.client("ecs", keys)
    assert ecs.list_clusters()
    assert refused(ecs.describe_clusters)[1].endswith(
        "because no permissions boundary allows the ecs:DescribeClusters action"
    )
    assert refused(account.iam.delete_policy, PolicyArn=boundary)[0] == "DeleteConflict"


def test_roles_are_passed_only_by_those_who_may(account: Account) -> None:
    role = account.iam.create_role(RoleName="passed", AssumeRolePolicyDocument=TASKS_TRUST)["Role"]["Arn"]
    name, keys = account.user(allow("ecs:*"))
    ecs = account.client("ecs", keys)
    given = {**DEFINITION, "taskRoleArn": role}
    assert refused(ecs.register_task_definition, **given) == (
        "AccessDeniedException",
        f"User: arn:aws:iam::{ACCOUNT_ID}:user/{name} is not authorized to perform: iam:PassRole on resource: {role} "
        "because no identity-based policy allows the iam:PassRole action",
    )
    definition = account.aws.client("ecs").register_task_definition(**given)["taskDefinition"]
    run = {"taskDefinition": definition["taskDefinitionArn"], "launchType": "FARGATE"}
    assert "iam:PassRole" in refused(ecs.run_task, **run)[1]
    passing = allow(
        "iam:PassRole", role, Condition={"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
    )
    account.iam.put_user_policy(UserName=name, PolicyName="pass", PolicyDocument=document(passing))
    assert ecs.register_task_definition(**given)["taskDefinition"]["revision"] == definition["revision"] + 1
    assert ecs.run_task(**run)["tasks"]
    overriding = {**run, "overrides": {"taskRoleArn": role + "2"}}
    assert "iam:PassRole" in refused(ecs.run_task, **overriding)[1]


def test_a_family_means_its_newest_revision(account: Account) -> None:
    root = account.aws.client("ecs")
    arn = root.register_task_definition(**{**DEFINITION, "family": "fam"})["taskDefinition"][
        "taskDefinitionArn"
    ]
    _, keys = account.user(allow("ecs:RunTask", arn))
    ecs = account.client("ecs", keys)
    assert ecs.run_task(taskDefinition="fam", launchType="FARGATE")["tasks"]
    root.register_task_definition(**{**DEFINITION, "family": "fam"})
    code, message = refused(ecs.run_task, taskDefinition="fam", launchType="FARGATE")
    assert code == "AccessDeniedException" and f"{arn[:-1]}2 because" in message


# STS


def test_assume_role(account: Account) -> None:
    name, keys = account.user(allow("sts:AssumeRole"))
    trusted = trust({"AWS": f"arn:aws:iam::{ACCOUNT_ID}:user/{name}"})
    made = account.iam.create_role(
        RoleName="become", AssumeRolePolicyDocument=trusted, MaxSessionDuration=7200
    )["Role"]
    account.iam.put_role_policy(
        RoleName="become", PolicyName="p", PolicyDocument=document(allow("ecs:ListClusters"))
    )
    sts = account.client("sts", keys)
    answer = sts.assume_role(RoleArn=made["Arn"], RoleSessionName="me", DurationSeconds=7200)
    arn = f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/become/me"
    assert answer["AssumedRoleUser"] == {"Arn": arn, "AssumedRoleId": f"{made['RoleId']}:me"}
    session = account.keys(answer["Credentials"])
    me = account.client("sts", session).get_caller_identity()
    assert (me["Arn"], me["UserId"]) == (arn, f"{made['RoleId']}:me")
    ecs = account.client("ecs", session)
    assert ecs.list_clusters()
    assert refused(ecs.describe_clusters)[1].startswith(f"User: {arn} is not authorized")

    for change in (
        {"aws_session_token": ""},
        {"aws_session_token": session["aws_session_token"][:-8] + "AAAAAAA="},
    ):
        assert refused(account.client("ecs", {**session, **change}).list_clusters)[0] == (
            "UnrecognizedClientException"
        )
    other = {**session, "aws_secret_access_key": "x" * 40}
    assert refused(account.client("ecs", other).list_clusters)[0] == "InvalidSignatureException"
    stolen = {**keys, "aws_session_token": session["aws_session_token"]}
    assert refused(account.client("ecs", stolen).list_clusters)[0] == "UnrecognizedClientException"

    account.iam.delete_role_policy(RoleName="become", PolicyName="p")
    account.iam.delete_role(RoleName="become")
    account.iam.create_role(RoleName="become", AssumeRolePolicyDocument=trusted)
    account.iam.attach_role_policy(RoleName="become", PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess")
    # The session was of the role that is gone.
    assert refused(ecs.list_clusters)[0] == "AccessDeniedException"


def test_who_may_assume_a_role(account: Account) -> None:
    name, keys = account.user()
    role = f"arn:aws:iam::{ACCOUNT_ID}:role/closed"
    sts = account.client("sts", keys)
    words = (
        "AccessDenied",
        f"User: arn:aws:iam::{ACCOUNT_ID}:user/{name} is not authorized to perform: sts:AssumeRole on resource: {role}",
    )
    given = {"RoleArn": role, "RoleSessionName": "me"}
    assert refused(sts.assume_role, **given) == words
    account.iam.create_role(RoleName="closed", AssumeRolePolicyDocument=TASKS_TRUST)
    assert refused(sts.assume_role, **given) == words
    # The account is trusted, so the user's own policies decide.
    account.iam.update_assume_role_policy(RoleName="closed", PolicyDocument=trust({"AWS": ACCOUNT_ID}))
    assert refused(sts.assume_role, **given) == words
    account.iam.put_user_policy(
        UserName=name, PolicyName="p", PolicyDocument=document(allow("sts:AssumeRole", role))
    )
    chained = sts.assume_role(**given)["Credentials"]
    # With an external id.
    condition = {"StringEquals": {"sts:ExternalId": "secret"}}
    account.iam.update_assume_role_policy(
        RoleName="closed", PolicyDocument=trust({"AWS": ACCOUNT_ID}, Condition=condition)
    )
    assert refused(sts.assume_role, **given) == words
    assert sts.assume_role(**given, ExternalId="secret")["Credentials"]
    assert refused(sts.assume_role, **given, ExternalId="secret", DurationSeconds=3601) == (
        "ValidationError",
        "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
    )
    # One role to the next, for an hour at most.
    account.iam.create_role(
        RoleName="next", AssumeRolePolicyDocument=trust({"AWS": role}), MaxSessionDuration=43200
    )
    again = account.client("sts", account.keys(chained))
    next_role = {"RoleArn": role.replace("closed", "next"), "RoleSessionName": "me"}
    assert again.assume_role(**next_role)["Credentials"]
    assert "role chaining" in refused(again.assume_role, **next_role, DurationSeconds=7200)[1]


def test_a_session_policy_only_takes_away(account: Account) -> None:
    trusted = trust({"AWS": ACCOUNT_ID}, Action=["sts:AssumeRole", "sts:SetSourceIdentity"])
    role = account.iam.create_role(RoleName="wide", AssumeRolePolicyDocument=trusted)["Role"]["Arn"]
    account.iam.put_role_policy(
        RoleName="wide", PolicyName="p", PolicyDocument=document(allow(["ecs:ListClusters", "logs:*"]))
    )
    sts = account.aws.client("sts")
    answer = sts.assume_role(
        RoleArn=role, RoleSessionName="me", Policy=document(allow("ecs:*")), SourceIdentity="ann"
    )
    assert answer["PackedPolicySize"] > 0 and answer["SourceIdentity"] == "ann"
    ecs = account.client("ecs", account.keys(answer["Credentials"]))
    assert ecs.list_clusters()
    assert "no identity-based policy" in refused(ecs.describe_clusters)[1]
    logs = account.client("logs", account.keys(answer["Credentials"]))
    assert refused(logs.describe_log_groups)[1].endswith(
        "because no session policy allows the logs:DescribeLogGroups action"
    )
    assert refused(sts.assume_role, RoleArn=role, RoleSessionName="me", Policy="{")[0] == (
        "MalformedPolicyDocument"
    )


def test_session_tags_reach_policies(account: Account) -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ACCOUNT_ID},
        "Action": ["sts:AssumeRole", "sts:TagSession"],
    }
    role = account.iam.create_role(RoleName="tagged", AssumeRolePolicyDocument=document(statement))["Role"][
        "Arn"
    ]
    own = f"arn:aws:ecs:us-east-1:{ACCOUNT_ID}:cluster/${{aws:PrincipalTag/cluster}}"
    account.iam.put_role_policy(
        RoleName="tagged", PolicyName="p", PolicyDocument=document(allow("ecs:DescribeClusters", own))
    )
    answer = account.aws.client("sts").assume_role(
        RoleArn=role, RoleSessionName="me", Tags=[{"Key": "cluster", "Value": "default"}]
    )
    ecs = account.client("ecs", account.keys(answer["Credentials"]))
    assert ecs.describe_clusters()["clusters"]
    assert refused(ecs.describe_clusters, clusters=["other"])[0] == "AccessDeniedException"


def test_session_tokens_are_their_users(account: Account) -> None:
    name, keys = account.user(allow(["ecs:ListClusters", "iam:*"]))
    issued = account.client("sts", keys).get_session_token(DurationSeconds=900)["Credentials"]
    session = account.keys(issued)
    sts = account.client("sts", session)
    assert sts.get_caller_identity()["Arn"].endswith(f":user/{name}")
    assert account.client("ecs", session).list_clusters()
    assert refused(account.client("ecs", session).describe_clusters)[0] == "AccessDeniedException"
    assert refused(sts.get_session_token)[0] == "AccessDenied"
    assert refused(account.client("iam", session).get_user)[0] == "InvalidClientTokenId"
    presigned = sts.generate_presigned_url("get_caller_identity", ExpiresIn=60, HttpMethod="GET")
    assert "X-Amz-Security-Token" in presigned
    with urlopen(presigned, timeout=10) as response:
        assert f":user/{name}" in response.read().decode()
    account.iam.delete_user_policy(UserName=name, PolicyName="own")
    assert refused(account.client("ecs", session).list_clusters)[0] == "AccessDeniedException"


def test_root_becomes_what_trusts_its_account(account: Account) -> None:
    sts = account.aws.client("sts")
    assert sts.get_caller_identity()["Arn"] == f"arn:aws:iam::{ACCOUNT_ID}:root"
    assert account.iam.get_user()["User"]["Arn"].endswith(":root")
    closed = account.iam.create_role(RoleName="tasks-only", AssumeRolePolicyDocument=TASKS_TRUST)["Role"][
        "Arn"
    ]
    assert refused(sts.assume_role, RoleArn=closed, RoleSessionName="me")[0] == "AccessDenied"
    issued = sts.get_session_token()["Credentials"]
    assert account.client("ecs", account.keys(issued)).list_clusters()


# Simulation


def test_simulation_says_what_the_gateway_would(account: Account) -> None:
    statement = allow("ecs:Run*", Condition={"StringEquals": {"ecs:cluster": "a"}})
    denied = {"Effect": "Deny", "Action": "ecs:StopTask", "Resource": "*"}
    name, keys = account.user(statement, allow("ecs:Stop*"), denied)
    arn = account.iam.get_user(UserName=name)["User"]["Arn"]
    given = {"PolicySourceArn": arn, "ActionNames": ["ecs:RunTask", "ecs:StopTask", "ecs:ListTasks"]}
    results = account.iam.simulate_principal_policy(**given)["EvaluationResults"]
    assert [r["EvalDecision"] for r in results] == ["implicitDeny", "explicitDeny", "implicitDeny"]
    assert results[0]["MissingContextValues"] == ["ecs:cluster"]
    assert results[1]["MatchedStatements"] == [{"SourcePolicyId": "own", "SourcePolicyType": "user"}]
    entry = {"ContextKeyName": "ecs:Cluster", "ContextKeyValues": ["a"], "ContextKeyType": "string"}
    results = account.iam.simulate_principal_policy(
        **given, ContextEntries=[entry], PolicyInputList=[document(allow("ecs:ListTasks"))]
    )["EvaluationResults"]
    assert [r["EvalDecision"] for r in results] == ["allowed", "explicitDeny", "allowed"]
    assert refused(account.iam.simulate_principal_policy, **{**given, "PolicySourceArn": arn + "x"})[0] == (
        "NoSuchEntity"
    )
    many = {**given, "ActionNames": ["ecs:RunTask"] * 101, "ResourceArns": ["*"] * 10}
    assert refused(account.iam.simulate_principal_policy, **many)[0] == "InvalidInput"
    assert refused(account.client("iam", keys).simulate_principal_policy, **given)[0] == "AccessDenied"
    assert account.iam.get_account_summary()["SummaryMap"]["Users"] > 0


# Task roles


def test_a_task_signs_as_its_role(account: Account) -> None:
    role = account.iam.create_role(RoleName="task", AssumeRolePolicyDocument=TASKS_TRUST)["Role"]["Arn"]
    account.iam.put_role_policy(
        RoleName="task", PolicyName="p", PolicyDocument=document(allow("ecs:ListClusters"))
    )
    root = account.aws.client("ecs")
    root.register_task_definition(**{**DEFINITION, "family": "with-role", "taskRoleArn": role})
    task = root.run_task(taskDefinition="with-role", launchType="FARGATE")["tasks"][0]
    task_id = task["taskArn"].rpartition("/")[2]
    given = task_roles(account.aws.store).credentials("default", task_id)
    keys = {
        "aws_access_key_id": given.credentials.access_key_id,
        "aws_secret_access_key": given.credentials.secret_access_key,
        "aws_session_token": given.credentials.session_token,
    }
    assert given.role_arn == role and given.credentials.access_key_id.startswith("ASIA")
    arn = f"arn:aws:sts::{ACCOUNT_ID}:assumed-role/task/{task_id}"
    assert account.client("sts", keys).get_caller_identity()["Arn"] == arn
    ecs = account.client("ecs", keys)
    assert ecs.list_clusters()
    assert refused(ecs.describe_clusters)[1].startswith(f"User: {arn} is not authorized")


def test_a_task_without_a_usable_role_is_told_why(account: Account) -> None:
    root, roles = account.aws.client("ecs"), task_roles(account.aws.store)
    untrusting = account.iam.create_role(
        RoleName="untrusting", AssumeRolePolicyDocument=trust({"AWS": ACCOUNT_ID})
    )["Role"]["Arn"]
    for family, role, kind, words in (
        ("no-role", "", NotFound, "has no task role"),
        ("gone-role", untrusting + "x", NotFound, "does not exist"),
        ("untrusting", untrusting, AccessDenied, "trust policy"),
    ):
        more = {"taskRoleArn": role} if role else {}
        root.register_task_definition(**{**DEFINITION, "family": family, **more})
        task = root.run_task(taskDefinition=family, launchType="FARGATE")["tasks"][0]
        with pytest.raises(kind, match=words):
            roles.credentials("default", task["taskArn"].rpartition("/")[2])


# hutch's own routes


def test_hutchs_own_routes_ask_for_permission(tmp_path: Path) -> None:
    async def list_images(request: NativeRequest) -> dict[str, Any]:
        return {"images": []}

    route = NativeRoute(method="GET", template="/hutch/v1/images", handler=list_images)
    store = MemoryStore()
    server = ApiServer(identity_services(store), tmp_path, store=store, native_routes=(route,))
    try:
        iam = server.client("iam")
        iam.create_user(UserName="ann")
        key = iam.create_access_key(UserName="ann")["AccessKey"]
        keys = (key["AccessKeyId"], key["SecretAccessKey"])
        with HutchClient(server.url, *keys, server.region) as client:
            with pytest.raises(AwsError, match="not authorized to perform: hutch:ListImages") as raised:
                client.native("GET", "/images")
            assert raised.value.status == 403
            given = document(allow("hutch:List*"))
            iam.put_user_policy(UserName="ann", PolicyName="p", PolicyDocument=given)
            assert client.native("GET", "/images") == {"images": []}
    finally:
        server.stop()
