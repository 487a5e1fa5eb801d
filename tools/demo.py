"""`make demo`: an image becomes an endpoint, through the API that everybody's tools speak.

Starts hutch if it does not run, builds a web image, runs it as a FARGATE task with the ECS API, prints its URL and what
its launch spent its time on, and fetches the page. Run again, it shows the task that runs.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import boto3

ROOT = Path(__file__).resolve().parent.parent
HUTCH = ROOT / ".venv/bin/hutch"
IMAGE = "localhost/web:latest"


def say(text: str) -> None:
    print(f"demo: {text}", flush=True)


def hutch(*arguments: str) -> str:
    done = subprocess.run([str(HUTCH), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"demo: hutch {' '.join(arguments)} failed:\n{done.stderr or done.stdout}")
    return done.stdout


def ensure_running() -> None:
    done = subprocess.run([str(HUTCH), "image", "ls", "--json"], capture_output=True, text=True)
    if done.returncode == 3:
        say(hutch("up", "--detach").strip())


def clients() -> tuple[Any, Any]:
    env = json.loads(hutch("env", "--json"))
    given = {
        "endpoint_url": env["AWS_ENDPOINT_URL"],
        "region_name": env["AWS_REGION"],
        "aws_access_key_id": env["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": env["AWS_SECRET_ACCESS_KEY"],
    }
    return boto3.client("ecs", **given), boto3.client("ec2", **given)


def ensure_image() -> None:
    archive = ROOT / "build/images/web.tar"
    subprocess.run([sys.executable, str(ROOT / "examples/web/build.py"), "--out", str(archive)], check=True)
    if not any(i["name"] == IMAGE for i in json.loads(hutch("image", "ls", "--json"))):
        say(f"importing {archive.name} as {IMAGE}")
        hutch("image", "import", str(archive), IMAGE)


def ensure_task(ecs: Any, ec2: Any) -> dict[str, Any]:
    """The running web task; one is started if there is none."""
    ecs.create_cluster(clusterName="demo")
    running = ecs.list_tasks(cluster="demo", family="web")["taskArns"]
    if running:
        say("the web task runs already")
        return ecs.describe_tasks(cluster="demo", tasks=running[:1])["tasks"][0]
    definition = json.loads((ROOT / "examples/web/task.json").read_bytes())
    (container,) = definition["containerDefinitions"]
    container["logConfiguration"]["options"]["awslogs-region"] = ecs.meta.region_name
    ecs.register_task_definition(**definition)
    subnets = [s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]]
    say("ecs run-task --launch-type FARGATE")
    answer = ecs.run_task(
        cluster="demo",
        taskDefinition="web",
        launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": {"subnets": subnets}},
        tags=[{"key": "hutch:publish", "value": "80"}, {"key": "hutch:endpoint", "value": "web"}],
    )
    arn = answer["tasks"][0]["taskArn"]
    while True:
        task = ecs.describe_tasks(cluster="demo", tasks=[arn])["tasks"][0]
        if task["lastStatus"] in ("RUNNING", "STOPPED"):
            return task
        time.sleep(0.1)


def details(task: dict[str, Any]) -> dict[str, str]:
    return {d["name"]: d["value"] for a in task["attachments"] for d in a["details"]}


def fetch(url: str) -> str:
    """The page; a server that has only just been started may need a moment to listen."""
    deadline = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main() -> None:
    ensure_running()
    ensure_image()
    ecs, ec2 = clients()
    task = ensure_task(ecs, ec2)
    task_id = task["taskArn"].rpartition("/")[2]
    if task["lastStatus"] != "RUNNING":
        sys.exit(f"demo: the task stopped: {task.get('stoppedReason')}\n{hutch('why', task_id)}")
    found = details(task)
    # Not every resolver knows *.localhost; every loopback does.
    page = fetch(f"http://127.0.0.1:{found['hostPort']}/")
    fetch(f"http://{found['privateIPv4Address']}/")
    print(hutch("why", task_id))
    say(f"inside:  http://{found['privateIPv4Address']}/")
    say(f"outside: {found['url']}")
    say(f"and it answers: {' '.join(page.split())[:100]}")
    say('go on: eval "$(.venv/bin/hutch env)"; aws ecs list-tasks --cluster demo; .venv/bin/hutch down')


if __name__ == "__main__":
    main()
