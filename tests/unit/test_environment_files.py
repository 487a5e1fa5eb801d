"""What is read out of environment files: the lines as they are."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid, LimitExceeded
from hutch.rules.environment_files import (
    MAX_FILE_BYTES,
    MAX_LINE_BYTES,
    check_environment_files,
    merged_files,
    parse_environment_file,
)

ARN = "arn:aws:s3:::bucket/app.env"


def test_lines_are_taken_as_they_are() -> None:
    text = "# comment\n\nA=1\r\nB='quoted  '\n C=with space\nD=x=y\nE=\n=F\nG\n#H=1\nA=2\nI= # no comment"
    assert parse_environment_file(text.encode()) == {
        "A": "2",
        "B": "'quoted  '",
        " C": "with space",
        "D": "x=y",
        "I": " # no comment",
    }


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True), st.text(min_size=1)))
def test_whatever_fits_in_a_line_comes_back(variables: dict[str, str]) -> None:
    plain = {k: v for k, v in variables.items() if not set(v) & {"\n", "\r", "\0"}}
    content = "".join(f"{k}={v}\n" for k, v in plain.items()).encode()
    assert parse_environment_file(content) == plain


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"A=\xff", Invalid),
        (b"A=\0", Invalid),
        (b"x" * (MAX_FILE_BYTES + 1), LimitExceeded),
        (b"A=" + b"x" * MAX_LINE_BYTES, LimitExceeded),
    ],
)
def test_what_is_no_environment_file(content: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse_environment_file(content)


def test_the_environment_wins_then_the_first_file() -> None:
    files = [{"A": "1", "B": "1"}, {"B": "2", "C": "2"}]
    assert merged_files(files, {"A": "own"}) == {"B": "1", "C": "2"}


@pytest.mark.parametrize(
    "files",
    [
        [{"type": "s3", "value": "arn:aws:s3:::bucket/app.txt"}],
        [{"type": "s3", "value": "s3://bucket/app.env"}],
        [{"type": "efs", "value": ARN}],
        [{"value": ARN}],
        [{"type": "s3", "value": ARN}] * 11,
    ],
)
def test_what_is_refused_when_registered(files: list[dict[str, Any]]) -> None:
    with pytest.raises(Invalid) as refused:
        check_environment_files("main", files)
    assert refused.value.code == "ClientException"


def test_ten_files_are_taken() -> None:
    check_environment_files("main", [{"type": "s3", "value": ARN}] * 10)
