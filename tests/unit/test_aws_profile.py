"""Editing one section of an AWS configuration file."""

import configparser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.cli.platform import with_section

OLD = """\
# a comment of mine
[default]
region = eu-west-1
[ profile  hutch ]
# keep me
region = old
s3 =
  max_concurrent_requests = 20
endpoint_url = http://old
  [and its rest]
output = json
[profile other]
region = x
"""


def test_a_section_is_changed_in_place() -> None:
    text = with_section(OLD, "profile hutch", {"region": "new", "endpoint_url": "http://new"})
    assert (
        text
        == """\
# a comment of mine
[default]
region = eu-west-1
[ profile  hutch ]
region = new
endpoint_url = http://new
# keep me
s3 =
  max_concurrent_requests = 20
output = json
[profile other]
region = x
"""
    )
    assert with_section(text, "profile hutch", {"region": "new", "endpoint_url": "http://new"}) == text


@pytest.mark.parametrize("before", ["", "\n", "[x]\na = 1", "; only a comment\n"])
def test_a_section_that_is_missing_is_appended(before: str) -> None:
    text = with_section(before, "hutch", {"a": "b"})
    assert text.endswith("[hutch]\na = b\n") and text.startswith(before.strip())


_WORD = st.text(st.characters(codec="ascii", categories=["L"]), min_size=1, max_size=5)


@given(sections=st.dictionaries(_WORD, st.dictionaries(_WORD, _WORD, max_size=3), max_size=4), name=_WORD)
def test_nothing_else_changes(sections: dict[str, dict[str, str]], name: str) -> None:
    text = "".join(f"[{s}]\n" + "".join(f"{k} = {v}\n" for k, v in o.items()) for s, o in sections.items())
    parsed = configparser.RawConfigParser(strict=False, default_section="\0")
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(with_section(text, name, {"key": "new"}))
    expected = {**sections, name: {**sections.get(name, {}), "key": "new"}}
    assert {s: dict(parsed[s]) for s in parsed.sections()} == expected
