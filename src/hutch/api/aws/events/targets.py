"""Targets of rules: EventBridge's shape and the record."""

from typing import Any

from hutch.model.event import MAX_EVENT_AGE_S, MAX_RETRIES, Target


def target_record(given: dict[str, Any]) -> Target:
    """A `Target` shape as a record, unchecked."""
    transformer = given.get("InputTransformer", {})
    retry = given.get("RetryPolicy", {})
    return Target(
        target_id=given["Id"],
        arn=given["Arn"],
        role_arn=given.get("RoleArn", ""),
        constant=given.get("Input"),
        path=given.get("InputPath", ""),
        template_paths=transformer.get("InputPathsMap", {}),
        template=transformer.get("InputTemplate", ""),
        parameters=given.get("EcsParameters") or given.get("HttpParameters") or {},
        max_retries=retry.get("MaximumRetryAttempts", MAX_RETRIES),
        max_age_s=retry.get("MaximumEventAgeInSeconds", MAX_EVENT_AGE_S),
    )


def target_shape(target: Target) -> dict[str, Any]:
    """A record as a `Target` shape."""
    shape: dict[str, Any] = {
        "Id": target.target_id,
        "Arn": target.arn,
        "RoleArn": target.role_arn or None,
        "Input": target.constant,
        "InputPath": target.path or None,
    }
    if target.template:
        shape["InputTransformer"] = {
            "InputPathsMap": target.template_paths,
            "InputTemplate": target.template,
        }
    if target.parameters:
        kind = "EcsParameters" if "TaskDefinitionArn" in target.parameters else "HttpParameters"
        shape[kind] = target.parameters
    if (target.max_retries, target.max_age_s) != (MAX_RETRIES, MAX_EVENT_AGE_S):
        shape["RetryPolicy"] = {
            "MaximumRetryAttempts": target.max_retries,
            "MaximumEventAgeInSeconds": target.max_age_s,
        }
    return {k: v for k, v in shape.items() if v is not None}
