"""Rules of Parameter Store: names, values, labels and what a selector means (reference I)."""

import re

import msgspec

from hutch.base.errors import AccessDenied, Invalid, LimitExceeded

MAX_VERSIONS = 100
MAX_LABELS = 10
MAX_LEVELS = 15
STANDARD_CHARACTERS, ADVANCED_CHARACTERS = 4096, 8192
_NAME = re.compile(r"[A-Za-z0-9._/-]+")
_LABEL = re.compile(r"[A-Za-z0-9._-]{1,100}")


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """A parameter as a request names it: `name`, `name:3` or `name:label`. `selector` is ":3" or "" as shown back."""

    name: str
    number: int | None = None
    label: str = ""
    selector: str = ""
    from_arn: bool = False


def check_name(name: str) -> None:
    """Raises AWS's refusal of a name for a new parameter."""
    if not _NAME.fullmatch(name) or len(name) > 1011 or "//" in name or name.endswith("/"):
        raise Invalid(
            'Parameter name: can\'t be prefixed with "ssm" (case-insensitive). If formed as a path, it can consist of '
            "sub-paths divided by slash symbol; each sub-path can be formed as a mix of letters, numbers and the "
            "following 3 symbols .-_"
        )
    first = name.lstrip("/").split("/")[0].lower()
    if first.startswith("aws"):
        raise AccessDenied(f"No access to reserved parameter name: {name}.")
    if first.startswith("ssm"):
        raise Invalid('Parameter name: can\'t be prefixed with "ssm" (case-insensitive).')
    if "/" in name and not name.startswith("/"):
        raise Invalid("Parameter name must be a fully qualified name.")
    if name.count("/") > MAX_LEVELS:
        raise LimitExceeded(
            f"The parameter has more than {MAX_LEVELS} levels of hierarchy.",
            code="HierarchyLevelLimitExceededException",
        )


def tier_for(value: str, wanted: str, before: str | None) -> str:
    """Standard or Advanced, for this value. Raises `Invalid` for one that is too long or empty."""
    if not value:
        raise Invalid("Parameter value can't be empty.")
    if wanted == "Intelligent-Tiering":
        wanted = "Advanced" if len(value) > STANDARD_CHARACTERS or before == "Advanced" else "Standard"
    if wanted == "Standard" and before == "Advanced":
        raise Invalid(
            "This parameter uses the advanced-parameter tier. You can't downgrade a parameter from the "
            "advanced-parameter tier to the standard-parameter tier. If necessary, you can delete the advanced "
            "parameter and recreate it as a standard parameter."
        )
    tier = wanted or before or "Standard"
    if tier == "Standard" and len(value) > STANDARD_CHARACTERS:
        raise Invalid(
            f"Standard tier parameters support a maximum parameter value of {STANDARD_CHARACTERS} characters. To create "
            f"a larger parameter value, upgrade the parameter to use the advanced-parameter tier."
        )
    if len(value) > ADVANCED_CHARACTERS:
        raise Invalid(
            f"Advanced tier parameters support a maximum parameter value of {ADVANCED_CHARACTERS} characters."
        )
    return tier


def parse_selection(text: str, arn_prefix: str) -> Selection:
    """`arn_prefix` is `arn:aws:ssm:<region>:<account>:parameter`, after which a name's own slash follows. A name that
    means nothing here gives a selection that finds nothing."""
    rest, from_arn = text, text.startswith("arn:")
    if text.startswith(arn_prefix + "/"):
        rest = text[len(arn_prefix) :]
        # Hierarchies always start with a slash; "a" and "/a" have the same ARN.
        rest = rest if rest.count("/") > 1 else rest[1:]
    elif from_arn:
        return Selection(name="")
    name, colon, selector = rest.partition(":")
    if not colon:
        return Selection(name=name, from_arn=from_arn)
    number = int(selector) if selector.isascii() and selector.isdecimal() and len(selector) < 10 else None
    return Selection(
        name=name,
        number=number,
        label="" if number is not None else selector,
        selector=f":{selector}",
        from_arn=from_arn,
    )


def is_label(label: str) -> bool:
    """Whether it may be put on a version."""
    lower = label.lower()
    return bool(_LABEL.fullmatch(label)) and not (label[0].isdecimal() or lower.startswith(("aws", "ssm")))


def parameter_arn(arn_prefix: str, name: str) -> str:
    """The ARN of a parameter: a leading slash is not doubled."""
    return arn_prefix + (name if name.startswith("/") else f"/{name}")
