"""Which service a request is for. A model is loaded on its service's first use, so that starting is cheap."""

from collections.abc import Sequence

from hutch.api.gateway.dispatch import ServedService
from hutch.api.gateway.operation import Service

WIRE_NAMES = {
    "application-autoscaling": ("application-autoscaling", "AnyScaleFrontendService"),
    "apprunner": ("apprunner", "AppRunner"),
    "cloudwatch": ("monitoring", "GraniteServiceVersion20100801"),
    "ec2": ("ec2", ""),
    "ecr": ("ecr", "AmazonEC2ContainerRegistry_V20150921"),
    "ecs": ("ecs", "AmazonEC2ContainerServiceV20141113"),
    "efs": ("elasticfilesystem", ""),
    "eks": ("eks", ""),
    "elbv2": ("elasticloadbalancing", ""),
    "events": ("events", "AWSEvents"),
    "iam": ("iam", ""),
    "logs": ("logs", "Logs_20140328"),
    "s3": ("s3", ""),
    "scheduler": ("scheduler", ""),
    "secretsmanager": ("secretsmanager", "secretsmanager"),
    "servicediscovery": ("servicediscovery", "Route53AutoNaming_v20170314"),
    "ssm": ("ssm", "AmazonSSM"),
    "sts": ("sts", ""),
}
"""Model name to signing name and target prefix, so that no model need be read to find the right one. A test
keeps this equal to the models; a service that is not listed is loaded at start to find out."""

GLOBAL_SERVICES = frozenset({"iam", "sts"})
"""Signing names that clients scope to us-east-1 wherever they are (STS: with its global endpoint)."""

_LOADED_AT_START = frozenset({"ecs"})


class Directory:
    """The services by what requests name them by. `strict`: load all now, and check every answer."""

    def __init__(self, services: Sequence[Service], *, strict: bool = False) -> None:
        self._strict = strict
        self._services = {s.name: s for s in services}
        if len(self._services) != len(services):
            raise ValueError("a service is listed twice")
        self._loaded: dict[str, ServedService] = {}
        self._by_target: dict[str, str] = {}
        self._by_signing_name: dict[str, list[str]] = {}
        for name in self._services:
            signing_name, target = WIRE_NAMES.get(name) or self._look(name)
            if target:
                self._by_target[target] = name
            self._by_signing_name.setdefault(signing_name, []).append(name)
            if strict or name in _LOADED_AT_START:
                self.load(name)

    def _look(self, name: str) -> tuple[str, str]:
        model = self.load(name).model
        return model.signing_name, model.metadata.targetPrefix

    def load(self, name: str) -> ServedService:
        """A service by its model's name."""
        served = self._loaded.get(name)
        if served is None:
            served = self._loaded[name] = ServedService(self._services[name], strict=self._strict)
        return served

    def by_target(self, prefix: str) -> ServedService | None:
        """The service with this X-Amz-Target prefix."""
        name = self._by_target.get(prefix)
        return self.load(name) if name else None

    def by_signing_name(self, signing_name: str) -> list[ServedService]:
        """The services that sign with this name; several models may share one."""
        return [self.load(name) for name in self._by_signing_name.get(signing_name, ())]
