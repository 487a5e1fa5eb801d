"""Builds the program that starts VM monitors in their jail, static, for this host.

    python3 jail/build.py --out build/host

The result is `hutch-jail`. A second run with the same sources does nothing.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCES = Path(__file__).resolve().parent


def sources_key() -> str:
    """What the program depends on."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*"), *SOURCES.glob("src/*")]):
        if path.is_file():
            digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def compile_program(target: Path) -> Path:
    """The program that cargo made below a directory; ends this one with cargo's words if it can't."""
    triple = f"{os.uname().machine}-unknown-linux-gnu"
    environment = {
        **os.environ,
        "RUSTFLAGS": "-C target-feature=+crt-static",
        "CARGO_TARGET_DIR": str(target),
    }
    cargo = "/usr/bin/cargo" if Path("/usr/bin/cargo").exists() else "cargo"
    if cargo == "/usr/bin/cargo":
        # Debian 12's cargo knows the registry's sparse index only as something unstable; and a rustc from elsewhere on
        # PATH must not be mixed with it.
        environment |= {
            "RUSTC": "/usr/bin/rustc",
            "RUSTC_BOOTSTRAP": "1",
            "CARGO_UNSTABLE_SPARSE_REGISTRY": "true",
        }
    argv = [cargo, "build", "--release", "--locked", "--target", triple]
    done = subprocess.run(argv, cwd=SOURCES, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"jail: {' '.join(argv)} failed:\n{done.stderr[-4000:]}")
    return target / triple / "release" / "hutch-jail"


def main() -> None:
    """Builds it unless it is there already."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    stamp, key = out / "hutch-jail.key", sources_key()
    if (out / "hutch-jail").exists() and stamp.exists() and stamp.read_text() == key:
        return
    print("jail: compiling", file=sys.stderr)
    draft = out / "hutch-jail.new"
    shutil.copy(compile_program(out / "cargo"), draft)
    os.replace(draft, out / "hutch-jail")
    stamp.write_text(key)


if __name__ == "__main__":
    main()
