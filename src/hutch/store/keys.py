"""How keys (tuples of strings) become text that sorts element by element and can be scanned by prefix.

Each element is escaped (U+0001 becomes U+0001 U+0002, U+0000 becomes U+0001 U+0001) and ended by U+0000, so that no
element can pretend to be two, and `("a",)` is a prefix of `("a", "b")` but not of `("ab",)`. The last two code points
are escaped as well (U+10FFFE becomes U+10FFFE 1, U+10FFFF becomes U+10FFFE 2), so that there is a text after all keys.
"""

from hutch.store.contract import IndexKey

_LAST, _AFTER_ALL = "\U0010fffe", "\U0010ffff"


def encode_key(key: IndexKey) -> str:
    """The sortable text of a key; the text of a key's first elements is a prefix of it."""
    return "".join([(e if e.isascii() and e.isprintable() else _escape(e)) + "\x00" for e in key])


def decode_key(text: str) -> IndexKey:
    """The key again."""
    return tuple([e if e.isascii() and e.isprintable() else _unescape(e) for e in text.split("\x00")[:-1]])


def after_prefix(prefix: str) -> str:
    """The least text that sorts after every key that starts with `prefix`, the text of a key (or empty)."""
    return prefix[:-1] + "\x01" if prefix else _AFTER_ALL


def _escape(element: str) -> str:
    low = element.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01")
    return low.replace(_LAST, _LAST + "1").replace(_AFTER_ALL, _LAST + "2")


def _unescape(element: str) -> str:
    low = element.replace("\x01\x01", "\x00").replace("\x01\x02", "\x01")
    return low.replace(_LAST + "2", _AFTER_ALL).replace(_LAST + "1", _LAST)
