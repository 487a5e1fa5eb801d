"""IAM policies: what matches, what holds, who wins; and that nobody's pattern can be slow."""

import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.iam.conditions import Condition
from hutch.rules.iam.document import IDENTITY, TRUST, Policy, parse_policy
from hutch.rules.iam.evaluation import (
    ALLOW,
    DENY,
    NONE,
    PolicySet,
    decide,
    decide_trust,
    denial,
    effect_of,
)
from hutch.rules.iam.patterns import Pattern

ARN = "arn:aws:ecs:us-east-1:000000000000:task/default/abc"


def document(*statements: dict[str, Any], version: str = "2012-10-17") -> str:
    return json.dumps({"Version": version, "Statement": list(statements)})


def allow(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action: Any = "*", resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Effect": "Deny", "Action": action, "Resource": resource, **more}


def policy(*statements: dict[str, Any]) -> Policy:
    return parse_policy(document(*statements))


# Patterns


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=14))
def test_a_pattern_matches_what_the_regular_expression_does(pattern: str, text: str) -> None:
    expression = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    assert Pattern(pattern).matches(text, {}) == bool(re.fullmatch(expression, text))


@given(st.text(max_size=40).filter(lambda t: "\0" not in t))
def test_a_pattern_without_wildcards_is_equality(text: str) -> None:
    assert Pattern(text, wildcards=False).matches(text, {})
    assert not Pattern(text, wildcards=False).matches(text + "x", {})


def test_no_pattern_is_slow() -> None:
    began = time.process_time()
    for pattern in ("a*" * 3000 + "b", "*?a" * 2000 + "b", "*" * 6000 + "b", "*" + "a?" * 1000 + "b" + "*"):
        assert not Pattern(pattern).matches("a" * 6000, {})
    assert time.process_time() - began < 2


def test_variables_are_text_not_patterns() -> None:
    pattern = Pattern("arn:aws:s3:::b/${aws:username}/*", variables=True)
    assert pattern.matches("arn:aws:s3:::b/ann/x", {"aws:username": ["ann"]})
    assert not pattern.matches("arn:aws:s3:::b/bob/x", {"aws:username": ["*"]})
    assert not pattern.matches("arn:aws:s3:::b/bob/x", {"aws:username": ["b?b"]})
    assert not pattern.matches("arn:aws:s3:::b//x", {})
    assert Pattern("${aws:username, 'none'}", variables=True).matches("none", {})
    assert Pattern("a${*}b${?}${$}", variables=True).matches("a*b?$", {})
    assert not Pattern("a${*}b", variables=True).matches("axb", {})
    assert Pattern("${aws:username}").matches("${aws:username}", {})
    for wrong in ("${aws:username", "${}", "${a, b}"):
        with pytest.raises(ValueError):
            Pattern(wrong, variables=True)


# Conditions


@pytest.mark.parametrize(
    ("operator", "wanted", "given_value", "holds"),
    [
        ("StringEquals", "a", "a", True),
        ("StringEquals", "a*", "ab", False),
        ("StringNotEquals", "a", "a", False),
        ("stringequalsignorecase", "A", "a", True),
        ("StringLike", "a*", "ab", True),
        ("StringNotLike", "a*", "ab", False),
        ("NumericLessThan", "10", "9", True),
        ("NumericLessThan", "10", "x", False),
        ("NumericEquals", 3, "3.0", True),
        ("NumericNotEquals", "3", "3", False),
        ("NumericGreaterThanEquals", "3", "3", True),
        ("DateLessThan", "2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z", True),
        ("DateGreaterThan", "1767225600", "2025-12-31T23:59:59Z", False),
        ("Bool", True, "true", True),
        ("Bool", "false", "true", False),
        ("BinaryEquals", "YQ==", "YQ==", True),
        ("IpAddress", "10.0.0.0/8", "10.1.2.3", True),
        ("IpAddress", "10.0.0.1", "10.0.0.2", False),
        ("IpAddress", "::1/128", "::1", True),
        ("NotIpAddress", "10.0.0.0/8", "192.168.0.1", True),
        ("ArnLike", "arn:aws:ecs:*:*:cluster/*", "arn:aws:ecs:us-east-1:0:cluster/a:b", True),
        ("ArnLike", "arn:aws:ecs:*:cluster/*", "arn:aws:ecs:us-east-1:0:cluster/a", False),
        ("ArnEquals", "arn:aws:iam::1:role/*", "arn:aws:iam::1:role/x", True),
        ("ArnNotLike", "arn:aws:iam::1:role/*", "arn:aws:iam::1:role/x", False),
        ("ArnLike", "no arn", "no arn", False),
    ],
)
def test_operators(operator: str, wanted: Any, given_value: str, holds: bool) -> None:
    statement = allow(Condition={operator: {"aws:Key": wanted}})
    effect = effect_of([policy(statement)], "ecs:RunTask", "*", {"aws:key": [given_value]})
    assert (effect == ALLOW) == holds


@pytest.mark.parametrize(
    ("operator", "values", "context", "holds"),
    [
        ("StringEquals", ("a",), None, False),
        ("StringEqualsIfExists", ("a",), None, True),
        ("StringEqualsIfExists", ("a",), ("b",), False),
        ("StringNotEquals", ("a",), None, True),
        ("Null", ("true",), None, True),
        ("Null", ("false",), None, False),
        ("Null", ("false",), ("x",), True),
        ("ForAllValues:StringEquals", ("a", "b"), ("a", "b"), True),
        ("ForAllValues:StringEquals", ("a",), ("a", "b"), False),
        ("ForAllValues:StringEquals", ("a",), None, True),
        ("ForAnyValue:StringEquals", ("a",), ("b", "a"), True),
        ("ForAnyValue:StringEquals", ("a",), None, False),
        ("ForAnyValue:StringNotEquals", ("a",), ("b", "a"), True),
        ("ForAllValues:StringNotEquals", ("a",), ("b", "a"), False),
        ("StringNotEquals", ("a", "b"), ("c",), True),
        ("StringNotEquals", ("a", "b"), ("b",), False),
    ],
)
def test_absent_and_many_values(
    operator: str, values: tuple[str, ...], context: tuple[str, ...] | None, holds: bool
) -> None:
    condition = Condition(operator, "k", values, variables=True)
    assert condition.holds({"k": context} if context is not None else {}) == holds


# Decisions

statements = st.builds(
    lambda effect, actions, resources, negated: {
        "Effect": effect,
        "NotAction" if negated else "Action": actions,
        "Resource": resources,
    },
    st.sampled_from(["Allow", "Deny"]),
    st.lists(st.sampled_from(["*", "ecs:*", "ecs:Run*", "ecs:RunTask", "logs:GetLogEvents"]), min_size=1),
    st.lists(st.sampled_from(["*", ARN, "arn:aws:ecs:*:*:task/*", "arn:aws:logs:*"]), min_size=1),
    st.booleans(),
)
requests = st.tuples(
    st.sampled_from(["ecs:RunTask", "ecs:StopTask", "logs:GetLogEvents"]), st.sampled_from(["*", ARN])
)


@given(st.lists(statements, min_size=1, max_size=5), requests, st.randoms(use_true_random=False))
def test_order_and_grouping_do_not_matter(found: list[Any], request_: tuple[str, str], random: Any) -> None:
    action, resource = request_
    shuffled = list(found)
    random.shuffle(shuffled)
    together = effect_of([policy(*found)], action, resource, {})
    assert effect_of([policy(*shuffled)], action, resource, {}) == together
    assert effect_of([policy(s) for s in shuffled], action, resource, {}) == together


@given(st.lists(statements, min_size=1, max_size=5), requests)
def test_a_deny_always_wins(found: list[Any], request_: tuple[str, str]) -> None:
    action, resource = request_
    assert effect_of([policy(*found, deny(action, resource))], action, resource, {}) == DENY
    without = effect_of([policy(*found)], action, resource, {})
    allowed = effect_of([policy(*found, allow(action, resource))], action, resource, {})
    assert allowed == (DENY if without == DENY else ALLOW)


@given(st.lists(statements, min_size=1, max_size=4), st.lists(statements, min_size=1, max_size=4), requests)
def test_a_boundary_and_a_session_policy_only_take_away(
    found: list[Any], limit: list[Any], request_: tuple[str, str]
) -> None:
    identity, layer = (policy(*found),), (policy(*limit),)
    free = decide(PolicySet(identity=identity), *request_, {}).allowed
    for limited in (
        PolicySet(identity=identity, boundary=layer),
        PolicySet(identity=identity, session=layer),
    ):
        decision = decide(limited, *request_, {})
        assert decision.allowed == (free and effect_of(layer, *request_, {}) == ALLOW)


def test_what_is_not_allowed_is_refused_in_awss_words() -> None:
    user = "arn:aws:iam::000000000000:user/ann"
    nothing = decide(PolicySet(), "ecs:RunTask", ARN, {})
    assert nothing.effect == NONE
    assert denial(user, "ecs:RunTask", ARN, nothing) == (
        f"User: {user} is not authorized to perform: ecs:RunTask on resource: {ARN} "
        "because no identity-based policy allows the ecs:RunTask action"
    )
    explicit = decide(PolicySet(identity=(policy(allow(), deny("ecs:*")),)), "ecs:RunTask", "*", {})
    assert denial(user, "ecs:RunTask", "*", explicit) == (
        f"User: {user} is not authorized to perform: ecs:RunTask on resource: * "
        "with an explicit deny in an identity-based policy"
    )
    bounded = decide(PolicySet(identity=(policy(allow()),), boundary=()), "ecs:RunTask", "*", {})
    assert denial(user, "ecs:RunTask", "*", bounded).endswith(
        "because no permissions boundary allows the ecs:RunTask action"
    )


def test_actions_have_no_case_resources_do() -> None:
    found = [policy(allow("ECS:runtask", "arn:aws:ecs:*:*:task/Default/*"))]
    assert effect_of(found, "ecs:RunTask", ARN.replace("default", "Default"), {}) == ALLOW
    assert effect_of(found, "ecs:RunTask", ARN, {}) == NONE
    other = [policy({"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:iam::*"})]
    assert effect_of(other, "iam:GetRole", "arn:aws:iam::000000000000:role/x", {}) == NONE
    assert effect_of(other, "ecs:RunTask", ARN, {}) == ALLOW


# Trust

ACCOUNT = "000000000000"
ANN = ("AWS", f"arn:aws:iam::{ACCOUNT}:user/ann")
TASKS = ("Service", "ecs-tasks.amazonaws.com")


def trust(principal: Any, **more: Any) -> Policy:
    statement = {"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole", **more}
    return parse_policy(document(statement), TRUST)


@pytest.mark.parametrize(
    ("principal", "who", "allowed", "direct"),
    [
        ({"AWS": ANN[1]}, ANN, True, True),
        ({"AWS": ACCOUNT}, ANN, True, False),
        ({"AWS": [f"arn:aws:iam::{ACCOUNT}:root"]}, ANN, True, False),
        ({"AWS": f"arn:aws:iam::{ACCOUNT}:user/bob"}, ANN, False, False),
        ("*", ANN, True, True),
        ({"Service": TASKS[1]}, TASKS, True, True),
        ({"Service": TASKS[1]}, ANN, False, False),
        ({"AWS": ACCOUNT}, TASKS, False, False),
        ({"AWS": "111111111111"}, ANN, False, False),
    ],
)
def test_trust(principal: Any, who: tuple[str, str], allowed: bool, direct: bool) -> None:
    decision = decide_trust(trust(principal), [who], ACCOUNT, "sts:AssumeRole", {})
    assert (decision.allowed, decision.direct) == (allowed, direct)


def test_trust_has_conditions_and_denials() -> None:
    with_id = trust({"AWS": ACCOUNT}, Condition={"StringEquals": {"sts:ExternalId": "x"}})
    assert decide_trust(with_id, [ANN], ACCOUNT, "sts:AssumeRole", {"sts:externalid": ["x"]}).allowed
    assert not decide_trust(with_id, [ANN], ACCOUNT, "sts:AssumeRole", {}).allowed
    assert not decide_trust(with_id, [ANN], ACCOUNT, "sts:TagSession", {"sts:externalid": ["x"]}).allowed
    both = parse_policy(
        document(
            {"Effect": "Allow", "Principal": {"AWS": ACCOUNT}, "Action": "sts:AssumeRole"},
            {"Effect": "Deny", "Principal": {"AWS": ANN[1]}, "Action": "sts:*"},
        ),
        TRUST,
    )
    assert not decide_trust(both, [ANN], ACCOUNT, "sts:AssumeRole", {}).allowed
    assert decide_trust(both, [("AWS", "arn:bob")], ACCOUNT, "sts:AssumeRole", {}).allowed


# Documents

VENDOR = "Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc."


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", IDENTITY, "This policy contains invalid Json"),
        ("[" * 100_000, IDENTITY, "This policy contains invalid Json"),
        ('{"Version": "2012-10-17", "Version": "2012-10-17"}', IDENTITY, "This policy contains invalid Json"),
        ("[]", IDENTITY, "Syntax errors in policy."),
        ('{"Version": "2012-10-17"}', IDENTITY, "Syntax errors in policy."),
        (document(), IDENTITY, "Syntax errors in policy."),
        (
            document(allow(), version="2008-10-17"),
            IDENTITY,
            "Policy document must be version 2012-10-17 or greater.",
        ),
        (document(allow(), version="2020-10-17"), IDENTITY, "Syntax errors in policy."),
        (document({**allow(), "Effect": "allow"}), IDENTITY, "Syntax errors in policy."),
        (document({**allow(), "Surprise": 1}), IDENTITY, "Syntax errors in policy."),
        (document(allow(action=[])), IDENTITY, "Policy statement must contain actions."),
        (
            document({"Effect": "Allow", "Action": "*"}),
            IDENTITY,
            "Policy statement must contain resources.",
        ),
        (document(allow("RunTask")), IDENTITY, VENDOR),
        (document(allow("e c:RunTask")), IDENTITY, "Vendor e c is not valid"),
        (document(allow(resource="x")), IDENTITY, 'Resource x must be in ARN format or "*".'),
        (document(allow(resource="arn:aws:s3")), IDENTITY, "The policy failed legacy parsing"),
        (
            document(allow(resource="arn:azure:s3:::x")),
            IDENTITY,
            'Partition "azure" is not valid for resource "arn:azure:s3:::x".',
        ),
        (
            document(allow(resource="arn:aws:iam:us-east-1::x")),
            IDENTITY,
            "IAM resource arn:aws:iam:us-east-1::x cannot contain region information.",
        ),
        (
            document(allow(Sid="a"), allow(Sid="a")),
            IDENTITY,
            "Statement IDs (SID) in a single policy must be unique.",
        ),
        (document(allow(Principal="*")), IDENTITY, "Policy document should not specify a principal."),
        (
            document(allow(Condition={"StringIsh": {"a": "b"}})),
            IDENTITY,
            "Invalid Condition type : StringIsh",
        ),
        (document(allow(resource="arn:aws:s3:::${x")), IDENTITY, "a policy variable is not closed"),
        (document(allow()), TRUST, "Has prohibited field Resource"),
        (
            document({"Effect": "Allow", "Action": "sts:AssumeRole"}),
            TRUST,
            "Missing required field Principal",
        ),
        (
            document({"Effect": "Allow", "Action": "ecs:RunTask", "Principal": "*"}),
            TRUST,
            "AssumeRole policy may only specify STS AssumeRole actions.",
        ),
        (
            document({"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "ann"}}),
            TRUST,
            'Invalid principal in policy: "AWS":"ann"',
        ),
    ],
)
def test_malformed(text: str, kind: str, words: str) -> None:
    with pytest.raises(Invalid) as raised:
        parse_policy(text, kind)
    assert (raised.value.message, raised.value.code) == (words, "MalformedPolicyDocument")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["Version", "Statement", "Effect", "Action", "Resource", "Condition", "Principal"]
            ),
            inner,
            max_size=4,
        )
    ),
)


@given(json_values, st.sampled_from([IDENTITY, TRUST]))
def test_a_document_is_parsed_or_malformed(value: Any, kind: str) -> None:
    try:
        parse_policy(json.dumps(value), kind)
    except Invalid as error:
        assert error.code == "MalformedPolicyDocument"


@given(
    st.fixed_dictionaries(
        {
            "Effect": st.sampled_from(["Allow", "Deny"]),
            "Action": json_values | st.just("*"),
            "Resource": json_values | st.just("*"),
            "Condition": st.dictionaries(
                st.sampled_from(["IpAddress", "DateLessThan", "NumericEquals", "Bool", "ArnLike", "Null"]),
                json_values | st.dictionaries(st.text(max_size=4), st.text(max_size=9), max_size=2),
                max_size=2,
            ),
        }
    )
)
def test_a_statement_is_parsed_or_malformed(value: Any) -> None:
    try:
        found = policy(value)
    except Invalid as error:
        assert error.code == "MalformedPolicyDocument"
    else:
        effect_of([found], "ecs:RunTask", ARN, {"aws:sourceip": ["10.0.0.1"]})
