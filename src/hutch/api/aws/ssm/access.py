"""What the Parameter Store's operations need permission for: the parameters that names mean."""

from collections.abc import Mapping, Sequence

from hutch.api.gateway.access import on
from hutch.api.gateway.operation import Access, AccessRule, Request
from hutch.rules.parameters import parameter_arn, parse_selection

_BY_NAME = "PutParameter GetParameter DeleteParameter GetParameterHistory LabelParameterVersion UnlabelParameterVersion"
_BY_NAMES = "GetParameters DeleteParameters"
_BY_RESOURCE = "AddTagsToResource RemoveTagsFromResource ListTagsForResource"

SESSION_RULES: Mapping[str, AccessRule] = dict.fromkeys(
    ("ResumeSession", "TerminateSession"), on("session/{SessionId}")
)


class ParameterAccess:
    """The rules of the Parameter Store's operations. `arn_prefix` ends with `:parameter`."""

    def __init__(self, arn_prefix: str) -> None:
        self._arn_prefix = arn_prefix

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        rules: dict[str, AccessRule] = {}
        for names, member in ((_BY_NAME, "Name"), (_BY_NAMES, "Names"), (_BY_RESOURCE, "ResourceId")):
            rules |= dict.fromkeys(names.split(), self._on(member))
        return rules | {"GetParametersByPath": self._path}

    def _on(self, member: str) -> AccessRule:
        def rule(request: Request) -> Sequence[Access]:
            given = request.input[member]
            names = given if isinstance(given, list) else [given]
            return (Access(resources=tuple(self._arn(n) for n in names)),)

        return rule

    def _arn(self, name: str) -> str:
        """Of an ARN of elsewhere nothing is found, so it may stand for itself."""
        found = parse_selection(name, self._arn_prefix).name
        return parameter_arn(self._arn_prefix, found) if found else name

    def _path(self, request: Request) -> Sequence[Access]:
        """All that is below, asked for as the path with its slash."""
        path = request.input["Path"].rstrip("/") + "/"
        return (Access(resources=(parameter_arn(self._arn_prefix, path),)),)
