"""Signals: what images say of their stop signal, and what people are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.rules.signals import signal_name, stop_signal


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("", 15),
        ("SIGQUIT", 3),
        ("quit", 3),
        ("9", 9),
        ("64", 64),
        ("65", 15),
        ("0", 15),
        ("SIGWINCH", 28),
        ("SIGRTMIN", 34),
        ("RTMIN+3", 37),
        ("SIGRTMIN+31", 15),
        ("SIGRTMIN+x", 15),
        ("SIGNONSENSE", 15),
        ("9" * 5000, 15),
        ("SIGRTMIN+" + "9" * 5000, 15),
    ],
)
def test_a_stop_signal_is_a_name_or_a_number(said: str, number: int) -> None:
    assert stop_signal(said) == number


@given(st.text(max_size=20))
def test_whatever_an_image_says_gives_a_signal(said: str) -> None:
    assert 1 <= stop_signal(said) <= 64


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    assert (signal_name(9), signal_name(40)) == ("SIGKILL", "signal 40")
