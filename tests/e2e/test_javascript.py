"""The AWS SDK for JavaScript v3 against a platform whose driver only pretends. `tools/setup-tests` installs it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.support.platform import Platform

FLOW = Path(__file__).parent / "js" / "flow.mjs"


@pytest.mark.needs("root", "node", "js_sdk")
def test_the_ecs_flow_in_javascript(fake_platform: Platform, tmp_path: Path) -> None:
    # A module finds its packages beside itself, and those are in build/: nothing is installed into the sources.
    program = Path(__file__).resolve().parents[2] / "build" / "js" / f"flow-{tmp_path.name}.mjs"
    shutil.copy(FLOW, program)
    try:
        done = subprocess.run(
            ["node", str(program)],
            env=fake_platform.aws_environment(),
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
    finally:
        program.unlink()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"tasks": 2}
