"""What the tests of EventBridge and Scheduler share: a hook for events, and ways to ask and to wait."""

import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer, until_changed

from hutch.client.client import HutchClient

PREFIX = "arn:aws:{}:us-east-1:000000000000:{}"
CLUSTER = PREFIX.format("ecs", "cluster/default")
ROLE = "arn:aws:iam::000000000000:role/events"
NO_WINDOW = {"Mode": "OFF"}


class Hook:
    """A web server that keeps what it is sent, and answers with the statuses it is given, then with 200."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[str, dict[str, str], str]] = queue.Queue()
        self.answers: list[int] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                hook.calls.put((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(hook.answers.pop(0) if hook.answers else 200)
                self.send_header("location", "http://169.254.169.254/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self) -> tuple[str, dict[str, str], Any]:
        path, headers, body = self.calls.get(timeout=30)
        return path, headers, json.loads(body)


def native(aws: AwsServer) -> HutchClient:
    key = aws.http.key
    return HutchClient(aws.http.url, key.access_key_id, key.secret_key, "us-east-1")


def refusal(code: str) -> Any:
    return pytest.raises(ClientError, match=code)


def until(aws: AwsServer, what: Any) -> Any:
    """Ask, and again after each change in the store, until there is an answer."""
    while True:
        seq = aws.store.last_seq()
        if found := what():
            return found
        until_changed(aws, seq)


def put_rule(aws: AwsServer, name: str, pattern: dict[str, Any], *targets: dict[str, Any]) -> Any:
    events = aws.client("events")
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    answer = events.put_targets(Rule=name, Targets=[{"Id": str(n), **t} for n, t in enumerate(targets)])
    assert answer["FailedEntryCount"] == 0
    return events
