"""EC2 over HTTP, by boto3: the network that ECS's tools look at."""

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer


@pytest.fixture(scope="module")
def ec2(aws: AwsServer) -> Any:
    return aws.client("ec2")


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def by(name: str, *values: str) -> list[dict[str, Any]]:
    return [{"Name": name, "Values": list(values)}]


def test_the_default_vpc(ec2: Any) -> None:
    (vpc,) = ec2.describe_vpcs()["Vpcs"]
    assert vpc["IsDefault"] and vpc["CidrBlock"] == "172.31.0.0/16" and vpc["OwnerId"] == "0" * 12
    assert ec2.describe_vpcs(Filters=by("is-default", "true"))["Vpcs"] == [vpc]
    assert ec2.describe_vpcs(Filters=by("is-default", "false"))["Vpcs"] == []
    assert ec2.describe_vpcs(VpcIds=[vpc["VpcId"]])["Vpcs"] == [vpc]
    assert refusal(lambda: ec2.describe_vpcs(VpcIds=["vpc-0"])) == (
        "InvalidVpcID.NotFound",
        "The vpc ID 'vpc-0' does not exist",
    )


def test_subnets_by_filter_and_by_page(ec2: Any) -> None:
    subnets = ec2.describe_subnets()["Subnets"]
    assert len(subnets) > 1 and all(s["DefaultForAz"] for s in subnets)
    zone = subnets[0]["AvailabilityZone"]
    found = ec2.describe_subnets(
        Filters=by("vpc-id", subnets[0]["VpcId"]) + by("availability-zone", zone, "nowhere")
    )["Subnets"]
    assert [s["SubnetId"] for s in found] == [s["SubnetId"] for s in subnets if s["AvailabilityZone"] == zone]
    assert ec2.describe_subnets(Filters=by("availability-zone", "us-east-1?"))["Subnets"] == subnets
    pages = ec2.get_paginator("describe_subnets").paginate(PaginationConfig={"PageSize": 5})
    assert [s for p in pages for s in p["Subnets"]] == subnets
    assert refusal(lambda: ec2.describe_subnets(Filters=by("color", "red")))[0] == "InvalidParameterValue"
    assert refusal(lambda: ec2.describe_subnets(SubnetIds=["subnet-0"]))[0] == "InvalidSubnetID.NotFound"
    assert refusal(lambda: ec2.describe_subnets(NextToken="x", MaxResults=5))[0] == "InvalidParameterValue"


def test_security_groups(ec2: Any) -> None:
    (group,) = ec2.describe_security_groups(Filters=by("group-name", "default"))["SecurityGroups"]
    assert group["IpPermissionsEgress"][0]["IpRanges"] == [{"CidrIp": "0.0.0.0/0"}]
    assert group["IpPermissions"][0]["UserIdGroupPairs"][0]["GroupId"] == group["GroupId"]
    assert refusal(lambda: ec2.describe_security_groups(GroupIds=["sg-0"]))[0] == "InvalidGroup.NotFound"
    code, words = refusal(lambda: ec2.describe_security_groups(GroupNames=["default"]))
    assert code == "UnsupportedOperation" and "GroupNames" in words


def test_zones(ec2: Any) -> None:
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    assert zones[0]["ZoneName"] == "us-east-1a" and zones[0]["State"] == "available"
    assert len(ec2.describe_availability_zones(ZoneNames=["us-east-1a"])["AvailabilityZones"]) == 1
    assert refusal(lambda: ec2.describe_availability_zones(ZoneNames=["eu-west-1a"]))[0] == (
        "InvalidParameterValue"
    )


def test_the_interface_of_a_task(ec2: Any, aws: AwsServer) -> None:
    ecs = aws.client("ecs")
    ecs.register_task_definition(
        family="eni",
        networkMode="awsvpc",
        requiresCompatibilities=["FARGATE"],
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "a", "image": "x"}],
    )
    (subnet, *_) = ec2.describe_subnets()["Subnets"]
    network = {"awsvpcConfiguration": {"subnets": [subnet["SubnetId"]]}}
    task = ecs.run_task(taskDefinition="eni", launchType="FARGATE", networkConfiguration=network)["tasks"][0]
    details = {d["name"]: d["value"] for d in task["attachments"][0]["details"]}
    (interface,) = ec2.describe_network_interfaces(
        NetworkInterfaceIds=[details["networkInterfaceId"]],
        Filters=by("private-ip-address", details["privateIPv4Address"]),
    )["NetworkInterfaces"]
    assert interface["MacAddress"] == details["macAddress"]
    assert interface["SubnetId"] == subnet["SubnetId"] == details["subnetId"]
    (after,) = ec2.describe_subnets(SubnetIds=[subnet["SubnetId"]])["Subnets"]
    assert after["AvailableIpAddressCount"] == subnet["AvailableIpAddressCount"] - 1
    assert refusal(lambda: ec2.describe_network_interfaces(NetworkInterfaceIds=["eni-0"]))[0] == (
        "InvalidNetworkInterfaceID.NotFound"
    )


def test_what_is_not_served_says_so(ec2: Any) -> None:
    code, words = refusal(lambda: ec2.run_instances(MinCount=1, MaxCount=1))
    assert code == "InvalidAction" and "RunInstances" in words


def test_who_am_i(aws: AwsServer) -> None:
    me = aws.client("sts").get_caller_identity()
    assert me["Account"] == "0" * 12 and me["Arn"] == "arn:aws:iam::000000000000:root"


def test_snapshots_that_are_not_there(ec2: Any) -> None:
    assert ec2.describe_snapshots()["Snapshots"] == []
    assert refusal(lambda: ec2.create_snapshot(VolumeId="vol-0"))[0] == "InvalidVolume.NotFound"
    assert refusal(lambda: ec2.delete_snapshot(SnapshotId="snap-0"))[0] == "InvalidSnapshot.NotFound"
    assert refusal(lambda: ec2.describe_snapshots(SnapshotIds=["snap-0"]))[0] == "InvalidSnapshot.NotFound"
    assert refusal(lambda: ec2.describe_snapshots(Filters=by("color", "red")))[0] == "InvalidParameterValue"
    assert refusal(lambda: ec2.describe_snapshots(MaxResults=-1))[0] == "InvalidParameterValue"
    assert refusal(lambda: ec2.create_snapshot(VolumeId="vol-0", DryRun=True))[0] == "UnsupportedOperation"
