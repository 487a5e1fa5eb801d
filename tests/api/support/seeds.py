"""Inputs that are right, one for each operation with deep input; the fuzzer puts a thing or two wrong in them.

By operation, or by service and operation where two services have one of that name.
"""

from typing import Any

_LOG = {
    "logDriver": "awslogs",
    "options": {
        "awslogs-group": "/fuzz",
        "awslogs-region": "us-east-1",
        "awslogs-stream-prefix": "p",
        "awslogs-create-group": "true",
        "mode": "non-blocking",
        "max-buffer-size": "1m",
    },
}
_CONTAINER = {
    "name": "main",
    "image": "registry.example:5000/team/app:1@sha256:" + "0" * 64,
    "cpu": 10,
    "memory": 256,
    "memoryReservation": 128,
    "essential": True,
    "portMappings": [{"containerPort": 80, "hostPort": 80, "protocol": "tcp", "name": "web"}],
    "environment": [{"name": "A", "value": "b"}],
    "command": ["sh", "-c", "true"],
    "entryPoint": ["/init"],
    "mountPoints": [{"sourceVolume": "data", "containerPath": "/data", "readOnly": True}],
    "healthCheck": {
        "command": ["CMD-SHELL", "true"],
        "interval": 5,
        "timeout": 2,
        "retries": 3,
        "startPeriod": 1,
    },
    "linuxParameters": {
        "capabilities": {"add": ["SYS_PTRACE"], "drop": ["ALL"]},
        "tmpfs": [{"containerPath": "/t", "size": 16, "mountOptions": ["noexec"]}],
    },
    "dependsOn": [{"containerName": "side", "condition": "START"}],
    "startTimeout": 30,
    "stopTimeout": 10,
    "hostname": "h",
    "user": "1000:1000",
    "workingDirectory": "/w",
    "dockerLabels": {"a": "b"},
    "ulimits": [{"name": "nofile", "softLimit": 1024, "hardLimit": 2048}],
    "logConfiguration": _LOG,
    "systemControls": [{"namespace": "net.ipv4.tcp_keepalive_time", "value": "60"}],
    "restartPolicy": {"enabled": True, "ignoredExitCodes": [0], "restartAttemptPeriod": 60},
}
_WITH_SECRETS = {
    "name": "main",
    "image": "x",
    "secrets": [{"name": "S", "valueFrom": "arn:aws:ssm:us-east-1:000000000000:parameter/p"}],
    "repositoryCredentials": {
        "credentialsParameter": "arn:aws:secretsmanager:us-east-1:000000000000:secret:s-abcdef"
    },
}
_PLACEMENT = {
    "placementConstraints": [{"type": "memberOf", "expression": "attribute:ecs.os-type == linux"}],
    "placementStrategy": [{"type": "spread", "field": "attribute:ecs.availability-zone"}],
}
_TAGS = [{"key": "a", "value": "b"}]
_TOKEN = "f/" + "0" * 56
_CLUSTER_ARN = "arn:aws:ecs:us-east-1:000000000000:cluster/default"

Seeds = dict[str, list[dict[str, Any]]]


def seeds(subnet_id: str) -> Seeds:
    """The inputs, on a platform with this subnet."""
    return {
        "PutRule": [
            {
                "Name": "fuzz",
                "EventPattern": '{"source": ["a"], "detail": {"b": [{"prefix": "c"}, {"numeric": [">", 1]}]}}',
                "State": "ENABLED",
                "Tags": [{"Key": "a", "Value": "b"}],
            },
            {"Name": "fuzz", "ScheduleExpression": "cron(0 0 ? * MON#1 *)", "State": "DISABLED"},
        ],
        "PutTargets": [
            {
                "Rule": "fuzz",
                "Targets": [
                    {
                        "Id": "1",
                        "Arn": _CLUSTER_ARN,
                        "Input": '{"cpu": "256"}',
                        "EcsParameters": {
                            "TaskDefinitionArn": "fuzz",
                            "TaskCount": 1,
                            "LaunchType": "FARGATE",
                            "Tags": [{"Key": "a", "Value": "b"}],
                        },
                        "RetryPolicy": {"MaximumRetryAttempts": 1, "MaximumEventAgeInSeconds": 60},
                    },
                    {
                        "Id": "2",
                        "Arn": "http://127.0.0.1:9/x",
                        "InputTransformer": {
                            "InputPathsMap": {"a": "$.detail.a[0]"},
                            "InputTemplate": '{"a": <a>}',
                        },
                        "HttpParameters": {"HeaderParameters": {"a": "b"}},
                    },
                ],
            }
        ],
        "PutEvents": [
            {"Entries": [{"Source": "a", "DetailType": "b", "Detail": '{"b": 2}', "Resources": ["c"], "Time": 1.0}]}
        ],
        "TestEventPattern": [
            {
                "EventPattern": '{"source": ["a"]}',
                "Event": '{"id": "", "account": "", "source": "", "time": "", "region": "", "resources": [], "detail-type": ""}',
            }
        ],
        "RegisterTaskDefinition": [
            {
                "family": "fuzz",
                "networkMode": "awsvpc",
                "requiresCompatibilities": ["FARGATE"],
                "cpu": "256",
                "memory": "512",
                "containerDefinitions": [_CONTAINER, {"name": "side", "image": "x", "essential": False}],
                "volumes": [{"name": "data", "host": {}}],
                "tags": _TAGS,
                "ephemeralStorage": {"sizeInGiB": 30},
                "runtimePlatform": {"cpuArchitecture": "X86_64", "operatingSystemFamily": "LINUX"},
                "executionRoleArn": "arn:aws:iam::000000000000:role/r",
                "taskRoleArn": "arn:aws:iam::000000000000:role/r",
            },
            {
                "family": "fuzz-secrets",
                "networkMode": "awsvpc",
                "requiresCompatibilities": ["FARGATE"],
                "cpu": "256",
                "memory": "512",
                "executionRoleArn": "arn:aws:iam::000000000000:role/r",
                "containerDefinitions": [_WITH_SECRETS],
            },
            {
                "family": "fuzz-ec2",
                "networkMode": "bridge",
                "requiresCompatibilities": ["EC2"],
                "containerDefinitions": [{"name": "a", "image": "x", "memory": 64, "portMappings": [{"containerPort": 1}]}],
                "volumes": [{"name": "data", "host": {"sourcePath": "/srv"}}],
                "placementConstraints": _PLACEMENT["placementConstraints"],
            },
        ],
        "RunTask": [
            {
                "taskDefinition": "fuzz",
                "launchType": "FARGATE",
                "count": 1,
                "clientToken": "token",
                "group": "g",
                "startedBy": "me",
                "platformVersion": "LATEST",
                "propagateTags": "TASK_DEFINITION",
                "tags": [{"key": "hutch:publish", "value": "80"}, {"key": "hutch:endpoint", "value": "web"}],
                "networkConfiguration": {
                    "awsvpcConfiguration": {"subnets": [subnet_id], "securityGroups": [], "assignPublicIp": "ENABLED"}
                },
                "overrides": {
                    "containerOverrides": [
                        {"name": "main", "command": ["x"], "environment": [{"name": "A", "value": "b"}], "cpu": 1, "memory": 200}
                    ],
                    "cpu": "512",
                    "memory": "1024",
                    "ephemeralStorage": {"sizeInGiB": 21},
                },
            },
            {"taskDefinition": "fuzz", "launchType": "FARGATE", "tags": [{"key": "hutch:publish", "value": "30001:80"}]},
            {"taskDefinition": "fuzz-ec2", "launchType": "EC2", "count": 1, **_PLACEMENT},
            {
                "taskDefinition": "fuzz",
                "capacityProviderStrategy": [
                    {"capacityProvider": "FARGATE", "weight": 1, "base": 1},
                    {"capacityProvider": "FARGATE_SPOT", "weight": 2},
                ],
            },
        ],
        "CreateCluster": [
            {
                "clusterName": "c",
                "tags": _TAGS,
                "settings": [{"name": "containerInsights", "value": "enabled"}],
                "capacityProviders": ["FARGATE"],
                "defaultCapacityProviderStrategy": [{"capacityProvider": "FARGATE", "weight": 1, "base": 0}],
                "configuration": {"executeCommandConfiguration": {"logging": "DEFAULT"}},
            }
        ],
        "UpdateCluster": [{"cluster": "default", "settings": [{"name": "containerInsights", "value": "enabled"}]}],
        "PutClusterCapacityProviders": [
            {
                "cluster": "default",
                "capacityProviders": ["FARGATE", "FARGATE_SPOT"],
                "defaultCapacityProviderStrategy": [{"capacityProvider": "FARGATE", "weight": 1, "base": 0}],
            }
        ],
        "DescribeTasks": [{"tasks": ["0" * 32], "include": ["TAGS"]}],
        "ListTasks": [{"cluster": _CLUSTER_ARN, "desiredStatus": "RUNNING", "family": "fuzz", "maxResults": 1}],
        "ListContainerInstances": [{"filter": "attribute:ecs.os-type == linux and runningTasksCount < 5", "status": "ACTIVE"}],
        "ListAttributes": [{"targetType": "container-instance", "attributeName": "ecs.os-type", "maxResults": 1}],
        "RegisterContainerInstance": [
            {
                "instanceIdentityDocument": '{"instanceId": "i-0123456789abcdef0"}',
                "attributes": [{"name": "a", "value": "b"}],
                "tags": _TAGS,
            }
        ],
        "ecs.TagResource": [{"resourceArn": _CLUSTER_ARN, "tags": _TAGS}],
        "logs.TagResource": [
            {"resourceArn": "arn:aws:logs:us-east-1:000000000000:log-group:/fuzz", "tags": {"a": "b"}}
        ],
        "ListTaskDefinitions": [{"familyPrefix": "fuzz", "status": "ACTIVE", "sort": "DESC", "maxResults": 1}],
        "DeleteTaskDefinitions": [{"taskDefinitions": ["fuzz:2"]}],
        "PutLogEvents": [
            {
                "logGroupName": "/fuzz",
                "logStreamName": "stream",
                "logEvents": [{"timestamp": 1_700_000_000_000, "message": "m"}, {"timestamp": 1_700_000_000_001, "message": "n"}],
            }
        ],
        "FilterLogEvents": [
            {
                "logGroupName": "/fuzz",
                "logStreamNames": ["stream"],
                "startTime": 0,
                "endTime": 2_000_000_000_000,
                "filterPattern": '{ $.a = "b" && $.c > 1 }',
                "limit": 10,
            },
            {"logGroupName": "/fuzz", "filterPattern": "[ip, user, code = 4*, ...]"},
            {"logGroupName": "/fuzz", "filterPattern": '?a "b c" -d %e[0-9]+%'},
        ],
        "GetLogEvents": [{"logGroupName": "/fuzz", "logStreamName": "stream", "startTime": 0, "limit": 1, "nextToken": _TOKEN}],
        "DescribeLogStreams": [{"logGroupName": "/fuzz", "orderBy": "LastEventTime", "descending": True, "limit": 1}],
        "DescribeLogGroups": [{"logGroupNamePattern": "f", "limit": 1}],
        "StartLiveTail": [
            {"logGroupIdentifiers": ["arn:aws:logs:us-east-1:000000000000:log-group:/fuzz"], "logEventFilterPattern": "a"}
        ],
        "CreateSecret": [
            {"Name": "team/db", "SecretString": '{"password": "x"}', "Description": "d", "Tags": [{"Key": "a", "Value": "b"}]}
        ],
        "GetSecretValue": [{"SecretId": "team/db", "VersionStage": "AWSCURRENT"}],
        "PutSecretValue": [{"SecretId": "team/db", "SecretString": "y", "VersionStages": ["AWSCURRENT"]}],
        "ListSecrets": [{"MaxResults": 1, "Filters": [{"Key": "name", "Values": ["team"]}], "SortOrder": "asc"}],
        "PutParameter": [
            {"Name": "/a/b", "Value": "v", "Type": "SecureString", "Overwrite": True, "Tier": "Standard"},
            {"Name": "plain", "Value": "v1,v2", "Type": "StringList", "AllowedPattern": "v[0-9,v]*", "Overwrite": True},
        ],
        "GetParameters": [{"Names": ["/a/b", "plain:1", "no"], "WithDecryption": True}],
        "GetParametersByPath": [{"Path": "/a", "Recursive": True, "WithDecryption": True, "MaxResults": 1}],
        "DescribeParameters": [
            {"ParameterFilters": [{"Key": "Name", "Option": "BeginsWith", "Values": ["/a"]}], "MaxResults": 1}
        ],
        "DescribeVpcs": [{"Filters": [{"Name": "vpc-id", "Values": ["vpc-*"]}], "MaxResults": 5}],
        "DescribeSubnets": [{"Filters": [{"Name": "availability-zone", "Values": ["us-east-1a"]}]}],
    }  # fmt: skip
