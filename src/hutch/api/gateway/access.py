"""Asks whether the caller may do what a request is for. Root is not asked about: that is the caller's branch.

A service says what its operations need permission for (`Service.access`); `on` makes such a rule of templates.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hutch.api.gateway.faults import Fault, access_denied_fault
from hutch.api.gateway.operation import Access, AccessRule, Principal, Request, Service
from hutch.base.errors import AccessDenied
from hutch.control.authorizer import Authorizer
from hutch.model.iam import ASSUMED_ROLE

_ACTION_PREFIXES = {"monitoring": "cloudwatch"}
"""Where actions are not called after the name that requests are signed with."""
_PLACE = re.compile(r"\{(\w+)(?:=([^}]*))?\}")
_USUAL = (Access(),)


def on(*templates: str, **context: str) -> AccessRule:
    """A rule: the operation on the resources that the templates make, in the account and region of the request.

    `cluster/{cluster=default}`: `{member}` is the last part (behind `/`) of the input's member, or of each of a list;
    a member that is not given is the default, or else `*`. `context` gives condition keys values made in the same way;
    a key's `__` stands for `:` and its `_` for `-` (`ecs__task_definition`); it is left out if the member is not given.
    """
    keys = {name.replace("__", ":").replace("_", "-"): template for name, template in context.items()}

    def rule(request: Request) -> Sequence[Access]:
        found = tuple(arn for t in templates for arn in _expand(t, request))
        given = {
            k: tuple(_expand(t, request))
            for k, t in keys.items()
            if all(m[1] in request.input or m[2] is not None for m in _PLACE.finditer(t))
        }
        return (Access(resources=found, context=given),)

    return rule


def nothing(request: Request) -> Sequence[Access]:
    """The rule of operations that need no permission."""
    return ()


def last_part(reference: str) -> str:
    """The name behind the last slash: what the use cases take of an ARN, whatever else it says."""
    return reference.rpartition("/")[2]


def _expand(template: str, request: Request) -> list[str]:
    if template == "*":
        return ["*"]
    prefix = f"arn:aws:{request.service}:{request.region}:{request.account_id}:"
    texts = [prefix]
    at = 0
    for match in _PLACE.finditer(template):
        literal = template[at : match.start()]
        values = request.input.get(match[1]) or match[2] or "*"
        listed = values if isinstance(values, list) else [values]
        texts = [f"{t}{literal}{last_part(str(v))}" for t in texts for v in listed]
        at = match.end()
    return [t + template[at:] for t in texts]


class AccessGuard:
    """Authorises requests of callers that are not root."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer

    def check(
        self, service: Service, signing_name: str, protocol: str, request: Request, user_agent: str
    ) -> None:
        """Raises `Fault` in the service's protocol unless the policies allow all that the request needs."""
        caller = request.principal.caller
        if signing_name == "iam" and caller.session and caller.kind != ASSUMED_ROLE:
            # As in AWS: GetSessionToken's credentials are not for managing identities.
            raise Fault("InvalidClientTokenId", "The security token included in the request is invalid.", 403)
        own = f"{_ACTION_PREFIXES.get(signing_name, signing_name)}:{request.operation}"
        rule = service.access.get(request.operation)
        try:
            for access in rule(request) if rule else _USUAL:
                for resource in access.resources:
                    context = _context(request, access.context, service.tags_of, resource, user_agent)
                    self._authorizer.check(caller, access.action or own, resource, context)
        except AccessDenied as error:
            raise access_denied_fault(error.message, protocol) from None

    def check_native(self, principal: Principal, action: str) -> None:
        """The same for a route of hutch's own. Raises `AccessDenied`."""
        if not principal.caller.is_root:
            self._authorizer.check(principal.caller, f"hutch:{action}", "*", dict)


def _context(
    request: Request,
    more: Mapping[str, Sequence[str]],
    tags_of: Callable[[str], Mapping[str, str]] | None,
    resource: str,
    user_agent: str,
) -> Callable[[], Mapping[str, Sequence[str]]]:
    def make() -> Mapping[str, Sequence[str]]:
        context: dict[str, Sequence[str]] = {
            "aws:sourceip": (request.source_address,),
            "aws:requestedregion": (request.region,),
            "aws:resourceaccount": (request.account_id,),
            "aws:securetransport": ("false",),
            **more,
        }
        if user_agent:
            context["aws:useragent"] = (user_agent,)
        for name, value in requested_tags(request.input).items():
            context[f"aws:requesttag/{name.lower()}"] = (value,)
        if keys := (*requested_tags(request.input), *_tag_keys(request.input)):
            context["aws:tagkeys"] = keys
        if tags_of is not None and resource != "*":
            for name, value in tags_of(resource).items():
                context[f"aws:resourcetag/{name.lower()}"] = (value,)
        return context

    return make


def requested_tags(given: Mapping[str, Any]) -> dict[str, str]:
    """The tags in a request's input, in whichever of AWS's shapes they are."""
    tags = given.get("tags") or given.get("Tags") or ()
    if isinstance(tags, dict):
        return {str(k): str(v) for k, v in tags.items()}
    return {
        str(t.get("key") or t.get("Key") or ""): str(t.get("value") or t.get("Value") or "")
        for t in tags
        if isinstance(t, dict)
    }


def _tag_keys(given: Mapping[str, Any]) -> tuple[str, ...]:
    keys = given.get("tagKeys") or given.get("TagKeys") or ()
    return tuple(k for k in keys if isinstance(k, str))
