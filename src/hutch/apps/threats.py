"""The rules of threat detection, as the settings choose them."""

from importlib import resources
from pathlib import Path

from hutch.base.errors import Invalid
from hutch.rules.threats.document import MAX_FILE_BYTES, ThreatRules, parse_rules
from hutch.settings import Settings


def load_threat_rules(settings: Settings) -> ThreatRules | None:
    """The rules; None if threat detection is off. Raises `Invalid`: what is wrong with the file, and where."""
    if not settings.threat_detection:
        return None
    if not settings.threat_rules:
        return parse_rules(default_rules_text())
    path = Path(settings.threat_rules)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1).decode()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise Invalid(f"--threat-rules: {path} can't be read: {reason}") from None
    try:
        return parse_rules(text)
    except Invalid as error:
        raise Invalid(f"--threat-rules: {path}: {error.message}") from None


def default_rules_text() -> str:
    """hutch's own rules."""
    return (resources.files("hutch.rules.threats") / "default_rules.yaml").read_text()
