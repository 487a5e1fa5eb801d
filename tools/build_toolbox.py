"""Builds the toolbox: a static busybox under all its names, as a root disk and as a directory beside it, for `hutch exec`
into stopped tasks whose images have no shell.

    python3 tools/build_toolbox.py --out build/guest/toolbox.erofs

The same busybox gives the same file; when it is there already nothing is done.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

BUSYBOX = Path("/usr/bin/busybox")
FORMAT = 2


def build(out: Path) -> None:
    """Make the disk, whole or not at all."""
    key = hashlib.sha256(b"%d" % FORMAT + BUSYBOX.read_bytes()).hexdigest()
    mark = out.with_suffix(".key")
    if out.exists() and mark.exists() and mark.read_text() == key:
        return
    mark.unlink(missing_ok=True)
    names = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".toolbox-") as work:
        tree, image = Path(work) / "root", Path(work) / "image"
        tree.mkdir(mode=0o755)
        shutil.copy(BUSYBOX, tree / "busybox")
        (tree / "busybox").chmod(0o755)
        for name in names:
            if name != "busybox" and "/" not in name:
                (tree / name).symlink_to("busybox")
        identity = str(uuid.UUID(key[:32]))
        argv = ["mkfs.erofs", "--all-root", "-T0", "-U", identity, "-zlz4", str(image), str(tree)]
        subprocess.run(argv, check=True, capture_output=True)
        os.replace(image, out)
        shutil.rmtree(out.with_suffix(""), ignore_errors=True)
        os.replace(tree, out.with_suffix(""))
    mark.write_text(key)
    print(f"toolbox: {len(names)} programs, {out.stat().st_size / 2**20:.1f} MiB", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    build(out)


if __name__ == "__main__":
    main()
