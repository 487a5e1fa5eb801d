"""The service models as hutch reads them: names, patterns that can't run for ever, memory."""

import subprocess
import sys
import time

import pytest

from hutch.api.gateway.directory import WIRE_NAMES
from hutch.api.gateway.patterns import MAX_PATTERN_INPUT, compile_pattern
from hutch.api.gateway.service_model import load_model


@pytest.mark.parametrize("name", sorted(WIRE_NAMES))
def test_wire_names_are_the_models(name: str) -> None:
    model = load_model(name)
    target = model.metadata.targetPrefix if model.protocol == "json" else ""
    assert WIRE_NAMES[name] == (model.signing_name, target)


@pytest.mark.parametrize("name", sorted(WIRE_NAMES))
def test_no_pattern_of_a_model_can_run_for_long(name: str) -> None:
    model = load_model(name)
    sources = {model.shape(s).pattern for s in tuple(model._shapes)} - {None}
    pieces = ["a", "-", "A", "0", ".", "/", ":", "_", " ", "="]
    for source in sources:
        pattern = compile_pattern(source)
        if pattern is None:
            continue
        for first in pieces:
            for second in pieces:
                for head in ("", "arn:aws:"):
                    value = (head + (first + second) * MAX_PATTERN_INPUT)[: MAX_PATTERN_INPUT - 1] + "\x01"
                    began = time.process_time()
                    pattern.fullmatch(value)
                    assert time.process_time() - began < 0.5, (source, first, second)


@pytest.mark.parametrize(
    "source",
    [
        "(a+)+b",
        "(a*)*",
        "(a|a)*b",
        "(a|b+)*c",
        "([a-z]+)*",
        "(.*)(.*)(.*)x",
        "a*a*a*b",
        r"(\w+\s?)*$",
        "(a?){30}a{30}",
        "(a{1,8}){8}b",
    ],
)
def test_patterns_that_are_not_run(source: str) -> None:
    assert compile_pattern(source) is None


@pytest.mark.parametrize(
    ("source", "good", "bad"),
    [
        (r"[\.\-_/#A-Za-z0-9]+", "a/b_c#", "a b"),
        (
            r"^arn:aws[-a-z]*:ecs:[a-z0-9-]*:[0-9]{12}:.*$",
            "arn:aws:ecs:r:000000000000:x",
            "arn:aws:ecs:r:0:x",
        ),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "Ключ 1@é\u2003", "a&b"),
        (r"^[a-zA-Z0-9]+$", "abc", "abc\n"),
        (r"(ab)?c{1,63}", "abc", "abd"),
    ],
)
def test_patterns_that_are(source: str, good: str, bad: str) -> None:
    pattern = compile_pattern(source)
    assert pattern is not None and pattern.fullmatch(good) and not pattern.fullmatch(bad)


def test_a_trimmed_model_keeps_what_its_operations_need() -> None:
    model = load_model("ecs")
    model.keep_only({"RunTask"})
    run = model.operation("RunTask")
    assert run and run.input and model.shape(run.input.shape).members["overrides"]
    assert model.operation("ListClusters") is None and "ListClusters" in model.operation_names
    assert model.exception("ServerException") and model.exception("ServerException").fault
    with pytest.raises(KeyError):
        model.shape("ListClustersRequest")


def test_botocore_is_data_only() -> None:
    code = (
        "import hutch.api.gateway.app, hutch.api.aws.sts.service, sys;"
        "from hutch.api.gateway.service_model import load_model; load_model('ec2');"
        "print(*sorted(m for m in sys.modules if m.split('.')[0] in ('botocore', 'boto3', 'starlette')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
