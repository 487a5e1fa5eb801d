"""Sizes, image references, tags and ARNs: what is accepted, what it means, what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid, LimitExceeded
from hutch.rules.arns import parse_resource, short_name
from hutch.rules.image_reference import normalise_name, parse_reference
from hutch.rules.sizes import check_fargate_size, parse_cpu_units, parse_memory_mib
from hutch.rules.tags import merged, tags_from_list

# As AWS's probe of RegisterTaskDefinition gave it: (CPU units, first MiB, last MiB, step), or a list.
_RANGES = [
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16384, 1024),
    (4096, 8192, 30720, 1024),
    (8192, 16384, 61440, 4096),
    (16384, 32768, 122880, 8192),
]
_LISTS = {256: (512, 1024, 2048), 32768: (61440, 122880, 249856)}
OFFERED = {(c, m) for c, low, high, by in _RANGES for m in range(low, high + 1, by)} | {
    (c, m) for c, sizes in _LISTS.items() for m in sizes
}


def test_there_are_77_sizes_and_all_are_offered() -> None:
    assert len(OFFERED) == 77
    assert [s for s in sorted(OFFERED) if check_fargate_size(*s)] == []


@pytest.mark.parametrize(
    ("cpu", "memory"),
    [
        (1024, 9216), (2048, 17408), (4096, 31744), (8192, 62464), (16384, 131072),
        (1024, 2560), (8192, 17408), (8192, 18432), (16384, 33792), (16384, 36864),
        (256, 256), (256, 3072), (128, 512), (300, 1024), (32768, 65536),
    ],
)  # fmt: skip
def test_what_aws_refused_is_not_offered(cpu: int, memory: int) -> None:
    words = check_fargate_size(cpu, memory)
    assert words.startswith(f"No Fargate configuration exists for given values: {cpu} CPU, {memory} memory.")


@given(st.integers(1, 200_000), st.integers(64, 300_000))
def test_every_other_size_is_not_offered(cpu: int, memory: int) -> None:
    assert (check_fargate_size(cpu, memory) == "") == ((cpu, memory) in OFFERED)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("1024", 1024),
        ("1 vCPU", 1024),
        ("1 vcpu", 1024),
        (".25 vCPU", 256),
        ("0.5vCPU", 512),
        (" 256 ", 256),
        ("1", 1),
    ],
)
def test_cpu_spellings(text: str, units: int) -> None:
    assert parse_cpu_units(text) == units


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1.5", "one", "1 GB", "vCPU", "196609", "9" * 40, "٣", "1e3", "nan vcpu", "0 vCPU"],
)
def test_what_is_no_cpu_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="Invalid 'cpu' setting for task") as refused:
        parse_cpu_units(text)
    assert refused.value.code == "ClientException"


@pytest.mark.parametrize(
    ("text", "mib"),
    [("2048", 2048), ("2GB", 2048), ("2 GB", 2048), ("0.5 gb", 512), (".5GB", 512), ("64", 64)],
)
def test_memory_spellings(text: str, mib: int) -> None:
    assert parse_memory_mib(text) == mib


@pytest.mark.parametrize("text", ["", "63", "-1", "1.5", "2 TB", "2 vCPU", "17179869184", "9" * 40, "inf GB"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="Invalid 'memory' setting for task"):
        parse_memory_mib(text)


DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "name", "pull_name"),
    [
        ("nginx", "docker.io/library/nginx:latest", None),
        ("nginx:1.27", "docker.io/library/nginx:1.27", None),
        ("me/app", "docker.io/me/app:latest", None),
        ("docker.io/nginx", "docker.io/library/nginx:latest", None),
        ("localhost/web", "localhost/web:latest", None),
        ("localhost:5000/web:1", "localhost:5000/web:1", None),
        ("public.ecr.aws/a/b/c:t", "public.ecr.aws/a/b/c:t", None),
        ("[::1]:5000/x", "[::1]:5000/x:latest", None),
        (f"nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}", f"docker.io/library/nginx@{DIGEST}"),
        (f"nginx:1@{DIGEST}", "docker.io/library/nginx:1", f"docker.io/library/nginx@{DIGEST}"),
        ("a__b/c--d.e", "docker.io/a__b/c--d.e:latest", None),
        (
            "000000000000.dkr.ecr.us-east-1.amazonaws.com/r:v",
            "000000000000.dkr.ecr.us-east-1.amazonaws.com/r:v",
            None,
        ),
    ],
)
def test_image_references(text: str, name: str, pull_name: str | None) -> None:
    assert normalise_name(text) == name
    assert parse_reference(text).pull_name == (pull_name or name)
    assert normalise_name(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "", "Nginx", "nginx:", "nginx:a b", "nginx@", "nginx@sha256:abc", "nginx@md5:" + "a" * 32, "/nginx", "nginx/",
        "a//b", "a/../b", "..", "-a", "a-", "reg.io:99999999/x", "reg.io/", "-reg.io/x", "x" * 513, "nginx:" + "t" * 129,
        "nginx:-t", "nginx\n", "docker://nginx", "oci-archive:/etc/passwd", "dir:/etc", "a b", "nginx;reboot", "ngınx",
    ],
)  # fmt: skip
def test_what_is_no_image_reference_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_reference(text)


@given(st.text(max_size=40))
def test_no_text_breaks_the_parser_and_names_are_stable(text: str) -> None:
    try:
        name = normalise_name(text)
    except Invalid:
        return
    assert normalise_name(name) == name
    assert not name.startswith("-") and not any(c.isspace() or c in ";&|$`\\\"'" for c in name)


def tag(key: str, value: str = "v") -> dict[str, str]:
    return {"key": key, "value": value}


def test_tags_are_a_mapping() -> None:
    assert tags_from_list([tag("a", "1"), tag("Größe", "a b_.:/=+-@"), {"key": "empty"}]) == {
        "a": "1",
        "Größe": "a b_.:/=+-@",
        "empty": "",
    }
    assert len(tags_from_list(tag(str(n)) for n in range(50))) == 50


@pytest.mark.parametrize(
    "items",
    [
        [tag("")],
        [tag("k" * 129)],
        [tag("k", "v" * 257)],
        [tag("aws:x")],
        [tag("AWS:x")],
        [tag("k", "aws:x")],
        [tag("a"), tag("a")],
        [tag("a\n")],
        [tag("a{}")],
        [tag("a", "\x00")],
    ],
)
def test_tags_that_aws_refuses(items: list[dict[str, str]]) -> None:
    with pytest.raises(Invalid):
        tags_from_list(items)


def test_tags_are_merged_up_to_the_limit_and_awss_own_do_not_count() -> None:
    own = {"aws:ecs:clusterName": "c", "aws:ecs:serviceName": "s"}
    full = {str(n): "v" for n in range(50)}
    assert merged({**own, **full}, {"3": "new"})["3"] == "new"
    with pytest.raises(LimitExceeded):
        tags_from_list(tag(str(n)) for n in range(51))
    with pytest.raises(LimitExceeded):
        merged({**own, **full}, {"one more": "v"})


ARN = "arn:aws:ecs:us-east-1:000000000000:"


@pytest.mark.parametrize(
    ("arn", "kind", "parts"),
    [
        (f"{ARN}cluster/c", "cluster", ("c",)),
        (f"{ARN}task/c/0123", "task", ("c", "0123")),
        (f"{ARN}service/c/s", "service", ("c", "s")),
        (f"{ARN}task-definition/f:3", "task-definition", ("f:3",)),
        (f"{ARN}container-instance/c/i", "container-instance", ("c", "i")),
        ("arn:aws-cn:ecs:cn-north-1:1:cluster/c", "cluster", ("c",)),
    ],
)
def test_arns(arn: str, kind: str, parts: tuple[str, ...]) -> None:
    assert parse_resource(arn) == (kind, parts)
    assert short_name(arn) == parts[-1]


@pytest.mark.parametrize(
    "arn",
    [
        "arn:",
        "arn:aws:ecs",
        "arn:aws:s3:::b",
        f"{ARN}cluster/",
        f"{ARN}cluster/a b",
        f"{ARN}cluster/c\n",
        f"{ARN}/c",
    ],
)
def test_what_is_no_ecs_arn_is_refused(arn: str) -> None:
    with pytest.raises(Invalid, match="Invalid ARN") as refused:
        parse_resource(arn)
    assert refused.value.code == "InvalidParameterException"
    with pytest.raises(Invalid):
        short_name(arn)


def test_a_plain_name_is_its_own_short_name() -> None:
    assert short_name("default") == "default" and short_name("") == ""
