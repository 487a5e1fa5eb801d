"""The session protocol of AWS Systems Manager: what `aws ecs execute-command` speaks."""
