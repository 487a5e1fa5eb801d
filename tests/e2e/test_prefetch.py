"""Images are made ready when a task definition is registered, and what came of it is an event; the driver only pretends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.event_stream import EventStream
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path, drivers="fake", prefetch_images="true")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def events(platform: Platform) -> Iterator[EventStream]:
    with EventStream(platform) as stream:
        yield stream


def test_what_came_of_it_is_told_and_the_registration_never_fails(
    platform: Platform, events: EventStream
) -> None:
    ecs = platform.client("ecs")

    def register(*images: str, **container: Any) -> str:
        named = [{"name": f"c{n}", "image": i, **container} for n, i in enumerate(images)]
        answer = ecs.register_task_definition(family="f", containerDefinitions=named, memory="64")
        return str(answer["taskDefinition"]["taskDefinitionArn"])

    first = register("good:1", "repo/not-found:1", "good:1")
    told = events.next("Image Prefetch")
    assert told["taskDefinitionArn"] == first and told["hostId"].startswith("i-")
    assert told["result"] == "FAILED"
    ready, failed = told["images"]
    assert ready["image"] == "good:1" and ready["digest"].startswith("sha256:")
    assert (failed["image"], failed["kind"], failed["fix"]) == (
        "repo/not-found:1", "ImageNotFound", "use another image",
    )  # fmt: skip
    second = register("good:2")
    told = events.next("Image Prefetch")
    assert (told["taskDefinitionArn"], told["result"]) == (second, "SUCCEEDED")
    no_login = {"repositoryCredentials": {"credentialsParameter": "no-such-secret"}}
    register("private:1", **no_login)
    told = events.next("Image Prefetch")
    assert told["images"][0]["kind"] == "SecretNotFound" and told["images"][0]["fix"]
