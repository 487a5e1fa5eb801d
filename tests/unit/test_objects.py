"""The object store's rules: names, ranges, and listings that step over what has a common prefix."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.objects import check_bucket_name, check_key, list_page, parse_object_arn, parse_range

KEYS = st.lists(st.text(alphabet="ab/\ue000é", min_size=1, max_size=6), unique=True, max_size=40)


@given(
    KEYS,
    st.text(alphabet="ab/\ue000", max_size=3),
    st.sampled_from(["", "/", "a", "b/"]),
    st.integers(1, 5),
)
def test_pages_together_are_the_listing(keys: list[str], prefix: str, delimiter: str, limit: int) -> None:
    stored = sorted(keys)

    def scan(after: str, count: int) -> Sequence[str]:
        return [k for k in stored if k > after][:count]

    objects: list[str] = []
    prefixes: list[str] = []
    after = ""
    while True:
        page = list_page(scan, lambda k: k, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
        assert len(page.objects) + len(page.prefixes) <= limit
        objects += page.objects
        prefixes += page.prefixes
        if not page.last:
            break
        assert len(page.objects) + len(page.prefixes) == limit
        after = page.last
    matching = [k for k in stored if k.startswith(prefix)]
    grouped = {k: k.find(delimiter, len(prefix)) if delimiter else -1 for k in matching}
    assert objects == [k for k in matching if grouped[k] < 0]
    assert prefixes == sorted({k[: at + len(delimiter)] for k, at in grouped.items() if at >= 0})


def test_a_listing_does_not_read_what_it_steps_over() -> None:
    stored = [f"a/{i:05d}" for i in range(5000)] + ["b"]
    scans: list[str] = []

    def scan(after: str, count: int) -> Sequence[str]:
        scans.append(after)
        return [k for k in stored if k > after][:count]

    page = list_page(scan, lambda k: k, prefix="", delimiter="/", after="", limit=1000)
    assert (page.objects, page.prefixes, len(scans)) == (("b",), ("a/",), 2)


@pytest.mark.parametrize(
    ("text", "size", "part"),
    [
        ("bytes=0-4", 10, (0, 5)),
        ("bytes=5-", 10, (5, 10)),
        ("bytes=-3", 10, (7, 10)),
        ("bytes=-30", 10, (0, 10)),
        ("bytes=8-100", 10, (8, 10)),
        ("bytes=4-2", 10, None),
        ("bytes=0-1,4-5", 10, None),
        ("items=0-1", 10, None),
        ("", 10, None),
    ],
)
def test_ranges(text: str, size: int, part: tuple[int, int] | None) -> None:
    assert parse_range(text, size) == part


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_range(text, 10)


@pytest.mark.parametrize("name", ["ab", "a..b", "1.2.3.4", "Upper", "a_b", "-ab", "a" * 64, "a/b", ""])
def test_bucket_names_that_s3_refuses(name: str) -> None:
    with pytest.raises(Invalid):
        check_bucket_name(name)


def test_names() -> None:
    check_bucket_name("my.bucket-1")
    assert parse_object_arn("arn:aws:s3:::b/x/y.env") == ("b", "x/y.env")
    for arn in ("arn:aws:s3:::b", "arn:aws:s3:::b/", "s3://b/x.env", "arn:aws:ecs:::b/x"):
        with pytest.raises(Invalid):
            parse_object_arn(arn)
    check_key("é" * 512)
    for key in ("é" * 513, "a\0", "a\U0010ffff"):
        with pytest.raises(Invalid):
            check_key(key)
