"""Threat detection of a whole platform: what an intruder does in a microVM becomes events, and rules of events match them."""

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.busybox_archive import NAME, make_busybox_archive
from tests.support.looking import LIMIT_S, look_until
from tests.support.platform import BIN, Platform

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")

INTRUSION = """
mkdir -p /tmp/www/cgi-bin
printf '#!/bin/sh\\necho; sh -c "id; exit 0"\\n' > /tmp/www/cgi-bin/page
chmod 755 /tmp/www/cgi-bin/page
httpd -p 8000 -h /tmp/www
until wget -q -O - http://127.0.0.1:8000/cgi-bin/page; do usleep 100000; done
echo evil > /usr/bin/evil
cp /bin/busybox /tmp/tool
chmod 4755 /tmp/tool
su app -c '/tmp/tool id'
nc -w 1 192.0.2.1 3333
echo done
trap 'exit 0' TERM
sleep 600 & wait
"""
WANTED = {
    "Shell spawned by a server",
    "Write to a system directory",
    "Setuid or setgid bit set",
    "Root gained",
    "Program that is not of the image",
    "Connection to a mining port",
}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path, drivers="microvm", threat_detection="true")
    made.start()
    try:
        archive = make_busybox_archive(tmp_path, "httpd", "wget", "nc", "su", "chmod", "printf", "mkdir")
        made.hutch("image", "import", str(archive), NAME)
        yield made
    finally:
        made.stop()
    assert made.leftovers() == []


def run(platform: Platform) -> str:
    ecs = platform.client("ecs")
    container = {"name": "web", "image": NAME, "command": ["sh", "-c", INTRUSION]}
    ecs.register_task_definition(
        family="victim", networkMode="awsvpc", requiresCompatibilities=["FARGATE"], cpu="256", memory="256",
        containerDefinitions=[container],
    )  # fmt: skip
    arn: str = ecs.run_task(taskDefinition="victim", launchType="FARGATE")["tasks"][0]["taskArn"]
    return arn.rpartition("/")[2]


def findings(platform: Platform, task: str) -> dict[str, dict[str, Any]]:
    """The events of a task's findings by rule, until the last one that an intruder causes."""
    argv = [str(BIN / "hutch"), "events", "-f", "--json", "--task", task]
    found: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(argv, env=platform.environment, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        limit = threading.Timer(LIMIT_S, following.kill)
        limit.start()
        for line in following.stdout:
            event = json.loads(line)
            if event["source"] == "hutch.threats":
                found[event["detail"]["rule"]] = event
            if set(found) >= WANTED:
                break
        limit.cancel()
        following.kill()
    return found


def alarms(logs: Any, count: int) -> set[str]:
    """What was delivered to the log group: it comes a moment after the event, and nobody tells when."""

    def told() -> list[Any] | None:
        events = list(logs.filter_log_events(logGroupName="/alarms")["events"])
        return events if len(events) >= count else None

    return {json.loads(e["message"])["detail"]["rule"] for e in look_until(told) or ()}


def test_an_intrusion_becomes_events(platform: Platform) -> None:
    events, logs = platform.client("events"), platform.client("logs")
    logs.create_log_group(logGroupName="/alarms")
    pattern = {"source": ["hutch.threats"], "detail": {"severity": [{"numeric": [">=", 8]}]}}
    events.put_rule(Name="alarm", EventPattern=json.dumps(pattern))
    target = "arn:aws:logs:us-east-1:000000000000:log-group:/alarms"
    events.put_targets(Rule="alarm", Targets=[{"Id": "1", "Arn": target}])

    task = run(platform)
    found = findings(platform, task)
    assert set(found) == WANTED, "and nothing else"
    shell = found["Shell spawned by a server"]
    assert shell["detail-type"] == "Runtime finding"
    assert shell["resources"] == [shell["detail"]["taskArn"]] and shell["resources"][0].endswith(task)
    assert shell["detail"]["containerName"] == "web"
    assert shell["detail"]["process"]["command_line"] == "sh -c id; exit 0"
    assert shell["detail"]["process"]["ancestors"][:2] == ["page", "httpd"]
    assert found["Write to a system directory"]["detail"]["process"]["path"] == "/usr/bin/evil"
    pool = found["Connection to a mining port"]["detail"]
    assert (pool["process"]["address"], pool["process"]["port"], pool["severity"]) == ("192.0.2.1", 3333, 8.0)
    root = found["Root gained"]["detail"]["process"]
    assert (root["exe"], root["uid"], root["euid"], root["gained_root"]) == ("/tmp/tool", 1000, 0, True)

    why = json.loads(platform.hutch("why", task, "--json").stdout)
    assert {f["rule"] for f in why["findings"]} == WANTED
    assert "CRITICAL" in platform.hutch("why", task).stdout
    assert alarms(logs, 2) == {"Root gained", "Connection to a mining port"}
    forged = events.put_events(Entries=[{"Source": "hutch.threats", "DetailType": "x", "Detail": "{}"}])
    assert forged["FailedEntryCount"] == 1


def test_rules_that_are_wrong_are_told_to_who_starts_it(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("- rule: mine\n  desc: d\n  condition: proc.nam = sh\n  output: o\n  priority: ERROR\n")
    platform = Platform(tmp_path, drivers="fake", threat_detection="true", threat_rules=str(rules))
    answer = platform.hutch("up", "--detach", check=False)
    assert answer.returncode == 1
    assert "item 1 (rule 'mine'): the field 'proc.nam' is not known here" in answer.stderr
