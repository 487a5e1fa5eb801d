"""Writes the API coverage page: what hutch serves of each service, member by member.

The page is generated (docs/reference/api-coverage.md) and can't promise more than the code keeps: it is made
from the same `Coverage` declarations by which the gateway refuses requests.
"""

from collections.abc import Iterator, Sequence

import msgspec

from hutch.api.gateway.coverage import UNDECLARED, paths_above, states_of
from hutch.api.gateway.operation import Coverage, Operation, Service
from hutch.api.gateway.service_model import ServiceModel, load_model

_HEAD = """\
# API coverage

Generated from the code that enforces it; do not edit. hutch answers an operation that it does not serve, and
a request that uses a member it does not honour, with an error that says so. Nothing is ignored silently: a
member that is accepted without effect is listed as such, with the reason.

- **enforced**: does what AWS documents.
- **accepted, no effect**: hutch takes it and does nothing about it, for the reason given.
- **refused**: a request that uses it gets an error with the reason. An empty value uses nothing.
"""


class Row(msgspec.Struct, frozen=True):
    """One member of an operation's input, or all below it."""

    path: str
    state: str
    reason: str


def render(services: Sequence[Service]) -> str:
    """The page, in Markdown."""
    parts = [_HEAD, _summary(services)]
    parts += [_service(service, load_model(service.name)) for service in _sorted(services)]
    return "\n".join(parts)


def _sorted(services: Sequence[Service]) -> list[Service]:
    return sorted(services, key=lambda s: s.name)


def _summary(services: Sequence[Service]) -> str:
    lines = ["| service | operations served | of |", "|---|---|---|"]
    for service in _sorted(services):
        total = len(load_model(service.name).operation_names)
        lines.append(f"| [{service.name}](#{service.name}) | {len(service.operations)} | {total} |")
    return "\n".join(lines) + "\n"


def _service(service: Service, model: ServiceModel) -> str:
    served = {o.name: o for o in service.operations}
    about = f"{model.metadata.serviceFullName}, API version {model.metadata.apiVersion}."
    lines = [f"## {service.name}", "", about, ""]
    for name in sorted(served):
        lines += _operation(served[name], model)
    missing = sorted(set(model.operation_names) - set(served))
    if missing:
        lines += [f"### {service.name}: not served", "", ", ".join(missing) + ".", ""]
    return "\n".join(lines)


def _operation(operation: Operation, model: ServiceModel) -> list[str]:
    lines = [f"### {operation.name}", ""]
    found = rows(operation, model)
    if not found:
        return [*lines, "Takes no input.", ""]
    enforced = [f"`{r.path}`" for r in found if r.state == "enforced"]
    if enforced:
        lines += [f"Enforced: {', '.join(enforced)}.", ""]
    others = [r for r in found if r.state != "enforced"]
    if others:
        lines += ["| member | | why |", "|---|---|---|"]
        lines += [f"| `{r.path}` | {r.state} | {_cell(r.reason)} |" for r in others]
        lines.append("")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def rows(operation: Operation, model: ServiceModel) -> list[Row]:
    """The members of an operation's input with what becomes of each, as deep as the declaration goes.

    Raises `ValueError` for an operation that the model does not have.
    """
    found = model.operation(operation.name)
    if found is None:
        raise ValueError(f"{model.name} has no operation {operation.name}")
    if found.input is None:
        return []
    return list(_members(operation.coverage, model, found.input.shape, "", None))


def _members(
    coverage: Coverage, model: ServiceModel, shape_name: str, path: str, inherited: str | None
) -> Iterator[Row]:
    """`inherited` is the declared path that covers these members, or None."""
    states, above = states_of(coverage), paths_above(coverage)
    for member, ref in model.shape(shape_name).members.items():
        inner = f"{path}.{member}" if path else member
        declared = inner if inner in states else inherited
        if inner in above:
            yield from _members(coverage, model, _element(model, ref.shape), inner, declared)
        elif declared is None:
            yield Row(inner, "refused", UNDECLARED)
        elif declared in coverage.refused:
            yield Row(inner, "refused", coverage.refused[declared])
        elif declared in coverage.inert:
            yield Row(inner, "accepted, no effect", coverage.inert[declared])
        else:
            yield Row(inner, "enforced", "")


def _element(model: ServiceModel, shape_name: str) -> str:
    """The structure that a list or map holds, or the shape itself."""
    shape = model.shape(shape_name)
    inner = shape.member or shape.value
    return _element(model, inner.shape) if inner else shape_name
