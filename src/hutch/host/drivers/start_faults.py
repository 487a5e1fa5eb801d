"""An OCI runtime's words on a container that it can't start: which of the things that users get wrong it is."""

import re

from hutch.wire.taskspec import ContainerSpec

_FIXES = {
    "ExecNotFound": "check command and entryPoint against what the image holds",
    "ExecNotExecutable": "make the program executable in the image, or run it through its interpreter",
    "UserNotFound": "use a user of the image, or a numeric uid",
}
_CHDIR = re.compile(r"(?:chdir(?: to cwd)?|mkdir) ?[`(\"]?(/[^`\"):]*)[`\")]*.*: (.+)")
_MOUNT = re.compile(
    r"mount(?:ing)? [`\"](?:[^`\"]*/)?([^`\"/]+)[`\"] to (?:rootfs at )?[`\"]/?([^`\"]+)[`\"].*: (.+)"
)
_NOT_FOUND = re.compile(r"executable file .*not found|exec.*no such file|not found in \$path", re.IGNORECASE)
_NOT_EXECUTABLE = re.compile(r"exec.*(permission denied|exec format error|is a directory)", re.IGNORECASE)
_LOGGED = re.compile(r'msg="((?:[^"\\]|\\.)*)"')
_STAGES = ("runc create failed: ", "unable to start container process: ", "error during container init: ")


def runtime_words(output: str) -> str:
    """What a runtime says itself: of a structured log line its message, without the stages it came through."""
    if found := _LOGGED.findall(output):
        output = re.sub(r"\\(.)", r"\1", found[-1])
    for stage in _STAGES:
        output = output.removeprefix(stage)
    return output.strip()


def kind_of(words: str) -> str:
    """What a runtime's words are about: a kind that `start_fault` takes."""
    if _NOT_FOUND.search(words):
        return "ExecNotFound"
    return "ExecNotExecutable" if _NOT_EXECUTABLE.search(words) else "RuntimeError"


def start_fault(container: ContainerSpec, kind: str, words: str) -> tuple[str, str, str]:
    """(kind, text, fix). `kind` is what the runtime's answer was taken for; "RuntimeError" for anything else."""
    if kind == "ExecNotExecutable":
        return kind, f"{_program(container)} may not be executed: {words}", _FIXES[kind]
    if kind != "RuntimeError":
        return kind, words, _FIXES.get(kind, "")
    if found := _CHDIR.search(words):
        text = f"its working directory {found[1]} can't be entered: {found[2]}"
        return "WorkingDirectoryInvalid", text, "set workingDirectory to a directory of the image"
    if (found := _MOUNT.search(words)) and any(m.volume == found[1] for m in container.mounts):
        text = f'volume "{found[1]}" can\'t be mounted at /{found[2]}: {found[3]}'
        return "MountFailed", text, "mount it at a directory, or where the image has nothing"
    return (
        kind,
        words,
        "this is the OCI runtime's own error; check the container definition for what it names",
    )


def _program(container: ContainerSpec) -> str:
    command = (*(container.entry_point or ()), *(container.command or ()))
    return f'"{command[0][:200]}"' if command else "the image's command"
