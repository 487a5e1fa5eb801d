"""Inputs of RegisterTaskDefinition outside of a request: read as a request's would be, and all that is refused is listed."""

import copy
from typing import Any

from hutch.api.aws.ecs.taskdefs import REGISTER_COVERAGE
from hutch.api.gateway.coverage import CoverageGuard, MemberNotServed
from hutch.api.gateway.service_model import load_model
from hutch.api.gateway.validate import BadInput, Validators
from hutch.base.errors import Invalid, LimitExceeded
from hutch.rules.preflight_findings import Finding
from hutch.rules.tags import tags_from_list

_OPERATION = "RegisterTaskDefinition"
_SHAPE = "RegisterTaskDefinitionRequest"
_ONLY_SHOWN = (
    "taskDefinitionArn",
    "revision",
    "status",
    "requiresAttributes",
    "compatibilities",
    "registeredAt",
    "registeredBy",
    "deregisteredAt",
    "deleteRequestedAt",
)
"""Members that DescribeTaskDefinition shows and RegisterTaskDefinition does not take."""


class RegistrationInput:
    """The model is read on first use, and only the part of it that is needed is kept."""

    def __init__(self) -> None:
        self._validators: Validators | None = None
        self._guard: CoverageGuard | None = None

    def read(self, given: Any) -> tuple[dict[str, Any], tuple[Finding, ...]]:
        """The input without what hutch does not serve, and what there is to say of that and of its tags. Also takes what
        DescribeTaskDefinition answers. Raises `Invalid` for what is no input at all."""
        if isinstance(given, dict) and isinstance(given.get("taskDefinition"), dict):
            tags = {"tags": given["tags"]} if given.get("tags") else {}
            given = {k: v for k, v in given["taskDefinition"].items() if k not in _ONLY_SHOWN} | tags
        validators, guard = self._compiled()
        try:
            value: dict[str, Any] = validators.check(_SHAPE, given)
        except BadInput as error:
            raise Invalid(error.message) from None
        value = copy.deepcopy(value)
        found = []
        while True:
            try:
                guard.check(value)
                break
            except MemberNotServed as error:
                found.append(_finding("NotServed", error.message, "take it out of the definition"))
                _remove(value, error.path.split("."))
        try:
            tags_from_list(value.pop("tags", ()))
        except (Invalid, LimitExceeded) as error:
            found.append(_finding("Refused", error.message, "correct the tags"))
        return value, tuple(found)

    def _compiled(self) -> tuple[Validators, CoverageGuard]:
        if self._validators is None or self._guard is None:
            model = load_model("ecs")
            model.keep_only({_OPERATION})
            self._validators = Validators(model)
            self._guard = CoverageGuard(REGISTER_COVERAGE, model, _SHAPE)
        return self._validators, self._guard


def _finding(kind: str, text: str, fix: str) -> Finding:
    return Finding(kind=kind, subject="definition", text=text, fix=fix)


def _remove(value: Any, path: list[str]) -> None:
    """Take a member out, of each item where there is a list on the way."""
    if isinstance(value, list):
        for item in value:
            _remove(item, path)
    elif isinstance(value, dict) and path[0] in value:
        if len(path) == 1:
            del value[path[0]]
        else:
            _remove(value[path[0]], path[1:])
