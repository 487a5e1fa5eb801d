"""EC2's filters: all must hold, any value of each; wildcards cost no more than pattern times text."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.api.aws.ec2.filters import filtered, member
from hutch.base.errors import Invalid

KNOWN = {"name": member("Name"), "default": member("IsDefault")}


def names(value: str, *texts: str) -> list[str]:
    found = filtered([{"Name": t} for t in texts], [{"Name": "name", "Values": [value]}], KNOWN)
    return [f["Name"] for f in found]


@given(st.text("ab*?", max_size=12), st.text("ab", max_size=12))
def test_wildcards_are_those_of_a_shell(pattern: str, text: str) -> None:
    assert bool(names(pattern, text)) == fnmatch.fnmatchcase(text, pattern)


@given(st.text("ab*?\\", max_size=12))
def test_a_backslash_makes_each_letter_ordinary(text: str) -> None:
    assert names("".join("\\" + letter for letter in text), text) == [text]


def test_many_stars_end_at_once() -> None:
    assert names("*a" * 100 + "*b", "a" * 255) == []


def test_filters_are_and_values_are_or() -> None:
    shapes = [
        {"Name": n, "IsDefault": d, "Tags": [{"Key": "k", "Value": n}]} for n in "xyz" for d in (True, False)
    ]
    found = filtered(
        shapes,
        [
            {"Name": "tag:k", "Values": ["x", "y"]},
            {"Name": "tag-key", "Values": ["k"]},
            {"Name": "default", "Values": ["true"]},
        ],
        KNOWN,
    )
    assert [(f["Name"], f["IsDefault"]) for f in found] == [("x", True), ("y", True)]


@pytest.mark.parametrize(
    ("given_filter", "code"),
    [
        ({"Name": "nonsense", "Values": ["x"]}, "InvalidParameterValue"),
        ({"Name": "name", "Values": ["x"] * 201}, "FilterLimitExceeded"),
        ({"Name": "name", "Values": ["x" * 256]}, "InvalidParameterValue"),
    ],
)
def test_what_is_refused(given_filter: dict[str, object], code: str) -> None:
    with pytest.raises(Invalid) as caught:
        filtered([], [given_filter], KNOWN)
    assert caught.value.code == code
