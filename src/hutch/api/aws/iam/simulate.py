"""SimulatePrincipalPolicy and GetAccountSummary: shape in, one use case, shape out."""

from hutch.api.aws.iam.shapes import PAGE, Pages, Shape
from hutch.api.gateway.operation import Operation, Request, operation
from hutch.control.ops.iam.simulate import Simulated, Simulator, account_summary
from hutch.store.contract import Store

_NO_RESOURCE_POLICIES = "hutch has no resource policies"


class SimulateHandlers:
    """The operations of IAM that only tell."""

    def __init__(self, store: Store, simulator: Simulator, pages: Pages) -> None:
        self._store = store
        self._simulator = simulator
        self._pages = pages

    def operations(self) -> tuple[Operation, ...]:
        return (
            operation(
                "SimulatePrincipalPolicy",
                self.simulate,
                *(
                    "PolicySourceArn",
                    "PolicyInputList",
                    "ActionNames",
                    "ResourceArns",
                    "ContextEntries",
                    *PAGE,
                ),
                refused={
                    "CallerArn": "the source of the policies is the caller",
                    "PermissionsBoundaryPolicyInputList": "the entity's own boundary is used",
                    "PolicyExclusionList": "all of the entity's policies are used",
                    "ResourceHandlingOption": "hutch simulates no EC2 scenarios",
                    "ResourceOwner": _NO_RESOURCE_POLICIES,
                    "ResourcePolicy": _NO_RESOURCE_POLICIES,
                },
            ),
            operation("GetAccountSummary", self.summary),
        )

    async def simulate(self, request: Request) -> Shape:
        given = request.input
        context = {
            e["ContextKeyName"].lower(): tuple(e.get("ContextKeyValues", ()))
            for e in given.get("ContextEntries", ())
            if "ContextKeyName" in e
        }
        found = self._simulator.simulate(
            given["PolicySourceArn"],
            given.get("PolicyInputList", ()),
            given["ActionNames"],
            given.get("ResourceArns") or ("*",),
            context,
        )
        return self._pages.cut(
            request, "EvaluationResults", [(f"{i:06d}", _shape(s)) for i, s in enumerate(found)]
        )

    async def summary(self, request: Request) -> Shape:
        return {"SummaryMap": account_summary(self._store)}


def _shape(simulated: Simulated) -> Shape:
    shape: Shape = {
        "EvalActionName": simulated.action,
        "EvalResourceName": simulated.resource,
        "EvalDecision": simulated.decision.effect,
        "MatchedStatements": [
            {"SourcePolicyId": s.name, "SourcePolicyType": s.kind} for s in simulated.matched
        ],
        "MissingContextValues": list(simulated.missing_keys),
    }
    if simulated.within_boundary is not None:
        shape["PermissionsBoundaryDecisionDetail"] = {
            "AllowedByPermissionsBoundary": simulated.within_boundary
        }
    return shape
