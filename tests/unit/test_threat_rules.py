"""Threat rules: Falco's language as far as it is served, files that anybody may have written, and what comes of facts."""

import string
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hutch.apps.threats import default_rules_text
from hutch.base.errors import Invalid
from hutch.rules.threats.condition import parse_condition
from hutch.rules.threats.document import MAX_FILE_BYTES, ThreatRules, parse_rules
from hutch.rules.threats.fields import FIELDS, KINDS, shown
from hutch.rules.threats.findings import BURST, DROPPED, SAME_AGAIN_S, SUPPRESSED, Finding, Judge
from hutch.wire.guest_facts import RuntimeFact

DEFAULT = parse_rules(default_rules_text())


def subject(kind: str = "exec", **members: Any) -> dict[str, Any]:
    fact = RuntimeFact(kind=kind, container="web", **members)  # type: ignore[arg-type]
    added = {"container_id": "c1", "image": "registry:5000/team/web:1.2@sha256:ab", "privileged": False}
    return {**msgspec.structs.asdict(fact), **added, "task": "t1", "family": "web"}


def holds(condition: str, of: dict[str, Any]) -> bool:
    return parse_condition(condition, {}, {"shells": ("sh", "bash")}).holds(of)


def found(of: dict[str, Any]) -> set[str]:
    return {f.rule for f in Judge(DEFAULT).take([of], 0, 100.0)}


SHELL = {"name": "sh", "exe": "/bin/dash", "command_line": "sh -c id", "ancestors": ("page.cgi", "httpd")}


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("proc.name = sh", True),
        ("proc.name=sh", True),
        ("proc.name == 'sh'", True),
        ("proc.name != sh", False),
        ("proc.name in (ash, shells)", True),
        ("not proc.name in (shells)", False),
        ("proc.aname = httpd", True),
        ("proc.aname[2]=httpd and proc.pname=page.cgi", True),
        ("proc.aname[3]=httpd", False),
        ("proc.exepath startswith /bin/ and proc.exepath endswith ash", True),
        ('proc.cmdline contains "-c id"', True),
        ("proc.cmdline icontains 'C ID'", True),
        ("proc.args = '-c id'", True),
        ("evt.type in (execve, execveat) and evt.dir = <", True),
        ("evt.type=execve and evt.dir=<", True),
        ("evt.type = connect", False),
        ("user.uid = 0", True),
        ("user.uid > 0 or user.uid < 0", False),
        ("fd.name exists", False),
        ("fd.name != /etc/passwd", False),
        ("not fd.name = /etc/passwd", True),
        ("proc.is_exe_upper_layer = true", False),
        ("container.image.repository = registry:5000/team/web and container.image.tag = 1.2", True),
        ("(proc.name = x or (proc.name = sh and not (user.uid = 5)))", True),
    ],
)
def test_a_condition_is_read_as_falco_reads_it(condition: str, wanted: bool) -> None:
    assert holds(condition, subject(**SHELL)) is wanted


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("fd.sport = 3333", True),
        ("fd.rport in (1, 3333)", True),
        ("fd.sip = 10.1.2.3", True),
        ("fd.snet in (10.0.0.0/8, 192.168.0.0/16)", True),
        ("fd.snet = 127.0.0.0/8", False),
        ("fd.typechar = 4 and fd.type = ipv4", True),
        ("fd.name = '->10.1.2.3:3333'", True),
        ("fd.sport >= 3334", False),
    ],
)
def test_a_connection_has_its_fields(condition: str, wanted: bool) -> None:
    assert holds(condition, subject("connect", address="10.1.2.3", port=3333)) is wanted
    assert not holds("fd.sport = 3333", subject("open", path="/x", syscall="open"))


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("proc.nam = x", "not known here"),
        ("proc.name regex x", "not served"),
        ("proc.name glob *", "not served"),
        ("user.uid = root", "is a number"),
        ("user.uid contains 1", "does not fit"),
        ("fd.sip = nonsense", "neither one nor a network"),
        ("hutch.by_exec = maybe", "true or false"),
        ("evt.type = ptrace", "not told here"),
        ("evt.dir = >", "only the ends"),
        ("nothing_defined", "no macro"),
        ("proc.name in (a", "is missing"),
        ("proc.name = a and", "is missing"),
        ("proc.name = a b", "unexpected"),
        ("(" * 100 + "proc.name = a" + ")" * 100, "too deeply"),
        ("not " * 100 + "proc.name = a", "too deeply"),
        ("proc.name = 'a", "can't be read"),
        ("proc.name = a" + " or proc.name = a" * 1000, "at most"),
    ],
)
def test_what_is_not_served_is_refused_in_words(condition: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_condition(condition, {}, {})
    assert words in refused.value.message


def rule(condition: str, **more: str) -> str:
    members = {"desc": "d", "condition": condition, "output": "o %proc.name", "priority": "ERROR", **more}
    return "- rule: r\n" + "".join(f"  {k}: {v}\n" for k, v in members.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "list of items"),
        ("a: 1", "list of items"),
        ("- a\n- b", "list of items"),
        ("- thing: x", "must be a rule, macro or list"),
        ("- required_engine_version: 9", "must be a rule"),
        (rule("proc.name = a", exceptions="[]"), "'exceptions' is not served"),
        (rule("proc.name = a", append="true"), "'append' is not served"),
        (rule("proc.name = a", priority="LOUD"), "priority must be"),
        (rule("proc.name = a", source="k8s_audit"), "only source is syscall"),
        (rule("proc.name = a", output="'%proc.nope'"), "not known here"),
        (rule("evt.type = open"), "names no directory"),
        (rule("evt.type = execve and fd.sport = 3"), "can never hold"),
        (rule("proc.name = a") * 2, "of that name already"),
        ("- macro: m\n  condition: m", "no macro that is defined before"),
        ("- list: l\n  items: [[a]]", "texts and numbers"),
        ("- list: and\n  items: [a]", "a name has letters"),
        ("- &a [*a]", "aliases"),
        ("- &a {x: *a}", "aliases"),
        ("[" * 5000, "too deeply"),
        ("- rule: \x00", "not YAML"),
        ("- rule: [", "not YAML"),
        ("- !!python/object/apply:os.system [id]", "not YAML"),
        ("- rule: 2030-99-99", "not YAML"),
        ("x" * (MAX_FILE_BYTES + 1), "at most 256 KiB"),
        ("- list: l\n  items: [a]\n" * 501, "more than 500"),
    ],
)
def test_a_file_that_is_wrong_says_where(text: str, words: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_rules(text)
    assert words in refused.value.message


def test_macros_and_lists_do_not_grow_without_bound() -> None:
    lists = "- list: l0\n  items: [" + ",".join("abcdefghij") + "]\n"
    for n in range(1, 10):
        lists += f"- list: l{n}\n  items: [" + ",".join([f"l{n - 1}"] * 10) + "]\n"
    macros = "- macro: m0\n  condition: proc.name = a\n"
    for n in range(1, 60):
        macros += f"- macro: m{n}\n  condition: m{n - 1} or m{n - 1}\n"
    nots = "- macro: m0\n  condition: proc.name = a\n"
    nots += "".join(f"- macro: m{n}\n  condition: not m{n - 1}\n" for n in range(1, 400))
    for text in (lists, macros, nots):
        began = time.monotonic()
        with pytest.raises(Invalid):
            parse_rules(text)
        assert time.monotonic() - began < 2


def test_only_what_rules_ask_about_is_watched() -> None:
    rules = parse_rules(rule("evt.type = connect and fd.sport = 1"))
    assert (rules.sources, rules.directories) == (("connect",), ())
    rules = parse_rules(
        rule("evt.type in (open, openat) and fd.name startswith /srv/da and not fd.name startswith /x/")
    )
    assert (rules.sources, rules.directories) == (("open",), ("/srv",))
    rules = parse_rules(rule("evt.type = open and fd.directory in (/etc/, /etc/cron.d, /usr/bin)"))
    assert rules.directories == ("/etc", "/usr/bin")
    assert parse_rules(rule("proc.name = x", enabled="false")) == ThreatRules(
        rules=(), sources=(), directories=()
    )
    assert set(DEFAULT.sources) == set(KINDS)
    assert {"/bin", "/usr/bin", "/etc"} <= set(DEFAULT.directories)


def test_the_rules_of_hutch_find_what_they_are_for() -> None:
    assert found(subject(**SHELL)) == {"Shell spawned by a server"}
    assert not found(subject(**{**SHELL, "ancestors": ("entrypoint.sh",)}))
    assert not found(subject(**{**SHELL, "by_exec": True}))
    assert found(subject("open", path="/usr/bin/x", syscall="openat")) == {"Write to a system directory"}
    assert not found(subject("open", path="/etc/nginx/conf.d/default.conf", syscall="openat"))
    assert found(subject("open", path="/etc/passwd", syscall="rename")) == {
        "Accounts or start-up files changed"
    }
    assert found(subject("connect", address="10.0.0.5", port=3333)) == {"Connection to a mining port"}
    assert found(subject("connect", address="1.1.1.1", port=6667)) == {
        "Outbound connection to an unusual port"
    }
    assert not found(subject("connect", address="10.0.0.5", port=6667))
    assert not found(subject("connect", address="1.1.1.1", port=443))
    assert not found(subject("connect", address="127.0.0.1", port=3333))
    assert found(subject(name="su", gained_root=True, uid=1000)) == {"Root gained"}
    assert found(subject(name="ping", gained_capabilities="2000")) == {"Capabilities gained"}
    assert found(subject("chmod", path="/tmp/x", syscall="chmod", mode=0o4755)) == {
        "Setuid or setgid bit set"
    }
    assert found(subject(name="x", is_new_file=True)) == {"Program that is not of the image"}
    assert found(subject(name="x", is_memory_file=True)) == {"Program that is in no file"}
    assert found(subject("load", ports=(443, 3333), cpu_percent=100)) == {"Load as of a miner"}
    assert not found(subject("load", ports=(443,), cpu_percent=100)), "a program of the image may work"


def test_a_finding_says_who_and_what_on_one_line() -> None:
    judge = Judge(DEFAULT)
    of = subject(
        **{**SHELL, "command_line": "sh -c 'a\nb\x1b[31m'"}, pid=7, uid=33, euid=33, time_ns=5_000_000_000
    )
    (finding,) = judge.take([of], 0, 100.0)
    assert (finding.container, finding.event, finding.at, finding.count) == ("web", "execve", 5.0, 1)
    assert "container=web shell=sh parent=page.cgi ancestors=page.cgi,httpd" in finding.text
    assert finding.text.isprintable()
    assert finding.process["command_line"] == of["command_line"] and finding.process["pid"] == 7


def test_the_same_again_is_counted() -> None:
    judge = Judge(DEFAULT)
    assert len(judge.take([subject(**SHELL)] * 5, 0, 100.0)) == 1
    assert not judge.take([subject(**SHELL)], 0, 100.0 + SAME_AGAIN_S - 1)
    (again,) = judge.take([subject(**SHELL)], 0, 100.0 + SAME_AGAIN_S)
    assert again.count == 6


def test_too_many_findings_and_dropped_facts_are_told_in_numbers() -> None:
    judge = Judge(DEFAULT)
    many: list[Any] = [subject("open", path=f"/bin/{n}", syscall="open") for n in range(500)]
    told = judge.take(many, 0, 100.0)
    assert len(told) == BURST
    later = judge.take([], 7, 110.0)
    assert {(f.rule, f.count) for f in later} == {(SUPPRESSED, 450), (DROPPED, 7)}
    assert not judge.take([], 7, 200.0)
    assert [f.count for f in judge.take([], 9, 200.0)] == [2]


FACTS = st.builds(
    subject,
    st.sampled_from(KINDS),
    name=st.text(max_size=20),
    exe=st.text(max_size=20),
    command_line=st.text(max_size=60),
    ancestors=st.lists(st.text(max_size=8), max_size=8).map(tuple),
    path=st.text(max_size=40),
    address=st.sampled_from(("", "10.0.0.1", "::1", "::ffff:10.0.0.1", "x", "fe80::1%3")),
    port=st.integers(0, 65535),
    mode=st.integers(0, 0o7777),
    euid=st.integers(0, 2**32 - 1),
    syscall=st.sampled_from(("", "open", "openat", "rename", "chmod", "setuid", "zz")),
    gained_root=st.booleans(),
)


@given(st.lists(FACTS, max_size=5), st.integers(0, 10))
def test_whatever_a_guest_tells_is_judged(facts: list[Any], dropped: int) -> None:
    for finding in Judge(DEFAULT).take(facts, dropped, 1.0):
        assert isinstance(finding, Finding) and finding.text.isprintable() and len(finding.text) <= 2000
        msgspec.json.encode(finding)
    for fact in facts:
        for name in FIELDS:
            assert isinstance(shown(name, fact), str)


WORDS = ("proc.name", "fd.sport", "and", "or", "not", "(", ")", ",", "in", "=", "startswith", "sh", "1", "'x'", "evt.type",
         "execve", "fd.name", "/etc/x", "exists", "shells")  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join), FACTS)
@settings(max_examples=300)
def test_a_condition_is_refused_or_answers(text: str, of: dict[str, Any]) -> None:
    try:
        condition = parse_condition(text, {}, {"shells": ("sh",)})
    except Invalid:
        return
    assert condition.holds(of) in (True, False)
    if condition.holds(of):
        assert of["kind"] in condition.kinds, "a kind for which it holds is asked for"


@given(st.text(alphabet=string.printable + "éЖ\ud800", max_size=200))
def test_any_text_is_refused_or_rules(text: str) -> None:
    for candidate in (text, "- rule: " + text, rule("proc.name = a").replace("proc.name = a", text)):
        try:
            parse_rules(candidate)
        except Invalid as error:
            assert error.message
