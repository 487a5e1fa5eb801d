"""Pagination tokens: they come back as they went, and nobody else can make one."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.api.gateway.paging import Paging
from hutch.base.errors import Invalid

PAGING = Paging("ab" * 32)
keys = st.lists(st.text(st.characters(codec="utf-8"), max_size=20), max_size=4).map(tuple)


@given(scope=st.text(st.characters(codec="utf-8"), max_size=20), key=keys)
def test_there_and_back(scope: str, key: tuple[str, ...]) -> None:
    assert PAGING.decode_token(scope, PAGING.encode_token(scope, key)) == key


@given(key=keys, at=st.integers(0, 1000), flip=st.integers(1, 255))
def test_a_changed_token_is_refused(key: tuple[str, ...], at: int, flip: int) -> None:
    token = PAGING.encode_token("ListTasks", key)
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    raw[at % len(raw)] ^= flip
    with pytest.raises(Invalid):
        PAGING.decode_token("ListTasks", base64.urlsafe_b64encode(bytes(raw)).decode())


@given(token=st.text(max_size=60))
def test_invented_tokens_are_refused(token: str) -> None:
    with pytest.raises(Invalid):
        PAGING.decode_token("ListTasks", token)


def test_a_token_of_another_listing_or_platform_is_refused() -> None:
    token = PAGING.encode_token("ListTasks", ("a",))
    for other, scope in ((PAGING, "ListClusters"), (Paging("cd" * 32), "ListTasks")):
        with pytest.raises(Invalid):
            other.decode_token(scope, token)
