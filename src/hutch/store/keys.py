"""How keys (tuples of strings) become text that sorts element by element and can be scanned by prefix.

Each element is escaped (U+0001 becomes U+0001 U+0002, U+0000 becomes U+0001 U+0001) and ended by U+0000, so that no
element can pretend to be two, and `("a",)` is a prefix of `("a", "b")` but not of `("ab",)`.
"""

from hutch.store.contract import IndexKey


def encode_key(key: IndexKey) -> str:
    """The sortable text of a key; the text of a key's first elements is a prefix of it."""
    return "".join(e.replace("\x01", "\x01\x02").replace("\x00", "\x01\x01") + "\x00" for e in key)


def decode_key(text: str) -> IndexKey:
    """The key again."""
    return tuple(e.replace("\x01\x01", "\x00").replace("\x01\x02", "\x01") for e in text.split("\x00")[:-1])


def after_prefix(prefix: str) -> str:
    """A text that sorts after every text that starts with `prefix`."""
    return prefix + "\U0010ffff"
