"""Which images go when there are too many bytes of them: the least recently used ones that nobody needs."""

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hutch.host.images.content import ContentStore


class Collection:
    """One collection, in three steps, so that the slow ones can be done in a thread while images come into use."""

    def __init__(self, roots: Path, temporary: Path, content: ContentStore) -> None:
        self._roots = roots
        self._temporary = temporary
        self._content = content
        self._sizes: dict[str, int] = {}
        self._order: list[str] = []
        self._gone: list[Path] = []

    def measure(self) -> None:
        """Slow: look at every file of every root."""
        digests = {c.digest for c in self._content.all()} | {
            f"sha256:{p.name}" for p in self._roots.iterdir()
        }
        self._sizes = {d: _size_of(self._root(d)) for d in digests}
        self._order = sorted(digests, key=self._last_used)

    def take_out(self, is_kept: Callable[[str], bool], *, keep_bytes: int) -> int:
        """Quick: let go of images until all the others have at most `keep_bytes`; bytes of their root file systems.
        Their blobs are left to the sweep."""
        users = Counter(b for c in self._content.all() for b in c.blobs)
        total = sum(self._sizes.values()) + self._content.size_of(users)
        freed = 0
        for digest in self._order:
            if total <= keep_bytes:
                break
            if is_kept(digest):
                continue
            image = self._content.get(digest)
            blobs = image.blobs if image is not None else ()
            users.subtract(blobs)
            total -= self._sizes[digest] + self._content.size_of(b for b in blobs if users[b] == 0)
            freed += self._sizes[digest]
            if self._root(digest).exists():
                self._gone.append(self._temporary / f"gone-{digest[7:]}")
                os.rename(self._root(digest), self._gone[-1])
            self._content.drop(digest)
        return freed

    def remove(self) -> None:
        """Slow: remove what was taken out. What a crash leaves of it goes at the next start."""
        for path in self._gone:
            shutil.rmtree(path, ignore_errors=True)

    def _root(self, digest: str) -> Path:
        return self._roots / digest.partition(":")[2]

    def _last_used(self, digest: str) -> float:
        try:
            return self._root(digest).stat().st_mtime
        except OSError:
            return 0.0


def _size_of(path: Path) -> int:
    """Bytes on disk of a directory's files; 0 if there is none."""
    return sum((Path(base) / f).lstat().st_blocks * 512 for base, _, files in os.walk(path) for f in files)
