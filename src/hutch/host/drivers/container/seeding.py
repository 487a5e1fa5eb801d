"""Content of an image below a volume's path, copied into a volume that nobody uses yet. Blocking; in a thread.

The image's directory is the image store's and does not change. Its links are its own: they are followed inside of it only.
"""

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

_MAX_LINKS = 40


def seed(volume: Path, candidates: Iterable[tuple[Path, str]]) -> None:
    """Fill an empty directory from the first (image root, path in it) that is a directory. Raises `OSError`."""
    for root, path in candidates:
        found = resolve(root, path)
        if found is not None and found.is_dir():
            _copy_directory(found, volume)
            return


def resolve(root: Path, path: str) -> Path | None:
    """Where a path leads to inside of a root, by its own links; None if nothing is there."""
    rest, links = _steps(path), 0
    inside: list[str] = []
    while rest:
        step = rest.pop()
        if step == "..":
            inside = inside[:-1]
            continue
        here = root.joinpath(*inside, step)
        try:
            mode = here.lstat().st_mode
        except OSError:
            return None
        if not stat.S_ISLNK(mode):
            inside.append(step)
            continue
        links += 1
        if links > _MAX_LINKS:
            return None
        target = os.readlink(here)
        if target.startswith("/"):
            inside = []
        rest += _steps(target)
    return root.joinpath(*inside)


def _steps(path: str) -> list[str]:
    """The steps of a path, the last one first."""
    return [s for s in reversed(path.split("/")) if s not in ("", ".")]


def _copy_directory(source: Path, target: Path) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            made = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                made.mkdir(exist_ok=True)
                _copy_directory(Path(entry.path), made)
            else:
                _copy_other(Path(entry.path), made)
    _copy_owner(source, target)


def _copy_other(source: Path, target: Path) -> None:
    like = source.lstat()
    if stat.S_ISLNK(like.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISREG(like.st_mode):
        shutil.copyfile(source, target, follow_symlinks=False)
    elif stat.S_ISSOCK(like.st_mode):
        return
    else:
        os.mknod(target, like.st_mode, like.st_rdev)
    _copy_owner(source, target)


def _copy_owner(source: Path, target: Path) -> None:
    """Owner first: its change takes set-id bits away. Then mode, times and extended attributes."""
    like = source.lstat()
    os.chown(target, like.st_uid, like.st_gid, follow_symlinks=False)
    shutil.copystat(source, target, follow_symlinks=False)
