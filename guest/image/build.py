"""Builds the guest image: Debian's own cloud kernel, the modules that a task needs, crun, and the agent as PID 1.

    python3 guest/image/build.py --out build/guest

Nothing is installed on the host: packages are downloaded by apt and unpacked below the output directory. The result is
`vmlinuz`, `vmlinux` (the same kernel, uncompressed), `initrd.img` and `manifest.json`. A second run with the same inputs
does nothing.
"""

import argparse
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from vmlinux import NoKernel, write_vmlinux

GUEST = Path(__file__).resolve().parent.parent
KERNEL_META_PACKAGE = "linux-image-cloud-amd64"
TARGET = "x86_64-unknown-linux-gnu"

# In the order in which they are loaded. `boot` makes the agent's channel work, `vsock` where the VM monitor has no virtio
# port; the drivers of `disk`, `net` and `random` are loaded by then too, but bound to their devices later; `xfs` comes with
# a volume that has such a file system, `fs` with one that the host serves; `extra` is what privileged tasks (builds, nested
# containers) ask for. No balloon: in a VM restored from a template, pages that its guest gives back would be cut out of the
# template.
MODULES = {
    "boot": ["virtio_mmio", "virtio_console"],
    "vsock": ["vmw_vsock_virtio_transport"],
    "disk": ["virtio_blk", "erofs", "ext4", "overlay"],
    "net": ["virtio_net"],
    "random": ["virtio_rng"],
    "xfs": ["xfs"],
    "fs": ["virtiofs"],
    "extra": [
        "fuse", "loop", "tun", "veth", "bridge", "br_netfilter", "nf_tables", "nft_chain_nat", "nft_compat", "nft_ct",
        "nft_masq", "nf_nat", "xt_MASQUERADE", "xt_conntrack", "xt_addrtype", "iptable_nat", "iptable_filter",
    ],
}  # fmt: skip


# What the guest has of the host's: the container runtime, and the init that containers may ask for (static; it is also the
# process that holds namespaces which containers share).
PROGRAMS = (Path("/usr/bin/crun"), Path("/usr/bin/catatonit"))

# crun would talk to systemd through this; here it manages cgroups itself. Loading the real one, with the five libraries
# that it needs in turn, takes an emulated CPU 0.1 s at each start of a container.
UNUSED_LIBRARY = "libsystemd.so.0"


def progress(text: str) -> None:
    print(f"guest image: {text}", file=sys.stderr, flush=True)


def run(*argv: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv, cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, text=True
    )
    if done.returncode != 0:
        sys.exit(f"guest image: {' '.join(argv)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def kernel_package() -> tuple[str, str]:
    """The package that the meta package stands for now, and its version."""
    for line in run("apt-cache", "depends", KERNEL_META_PACKAGE).splitlines():
        name = line.split()[-1]
        if line.strip().startswith("Depends:") and name.startswith("linux-image-"):
            shown = run("apt-cache", "policy", name)
            version = next(x.split()[1] for x in shown.splitlines() if x.strip().startswith("Candidate:"))
            return name, version
    sys.exit(f"guest image: apt knows no {KERNEL_META_PACKAGE}; run `apt-get update`")


def inputs_key(package: str, version: str) -> str:
    """What the image depends on; the same key means the same image."""
    digest = hashlib.sha256(f"{package}={version}".encode())
    for program in PROGRAMS:
        digest.update(program.read_bytes())
    for path in sorted(GUEST.rglob("*")):
        if path.is_file() and not {"target", "__pycache__"} & set(path.relative_to(GUEST).parts):
            digest.update(str(path.relative_to(GUEST)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def build_agent(target: Path) -> Path:
    progress("compiling the agent")
    cargo = "/usr/bin/cargo" if Path("/usr/bin/cargo").exists() else "cargo"
    environment = {"RUSTFLAGS": "-C target-feature=+crt-static", "CARGO_TARGET_DIR": str(target)}
    if cargo == "/usr/bin/cargo":
        # Debian 12's cargo is older than the sparse index protocol's stabilisation, but has it; and a rustc from
        # elsewhere on PATH must not be mixed with it.
        environment |= {
            "RUSTC": "/usr/bin/rustc",
            "RUSTC_BOOTSTRAP": "1",
            "CARGO_UNSTABLE_SPARSE_REGISTRY": "true",
        }
    run(cargo, "build", "--release", "--locked", "--target", TARGET, "-p", "hutch-agent", cwd=GUEST,
        environment=environment)  # fmt: skip
    return target / TARGET / "release" / "hutch-agent"


def download(package: str, work: Path) -> Path:
    """The unpacked package."""
    tree = work / package
    if not tree.exists():
        progress(f"downloading {package}")
        debs = work / "debs"
        debs.mkdir(parents=True, exist_ok=True)
        # apt drops its privileges to _apt for downloads, which must then be able to write here.
        run("apt-get", "-o", "APT::Sandbox::User=root", "download", package, cwd=debs)
        deb = max(debs.glob(f"{package}_*.deb"), key=lambda p: p.stat().st_mtime)
        run("dpkg-deb", "-x", str(deb), str(tree) + ".tmp")
        Path(str(tree) + ".tmp").rename(tree)
        deb.unlink()
    return tree


def module_closure(modules: Path, wanted: Iterable[str]) -> list[Path]:
    """Module files with all that they depend on, dependencies first."""
    by_name = {p.name.split(".ko")[0].replace("-", "_"): p for p in modules.rglob("*.ko*")}
    builtin = {Path(x).name.split(".ko")[0].replace("-", "_")
               for x in (modules / "modules.builtin").read_text().split()}  # fmt: skip
    ordered: list[Path] = []

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in builtin:
            return
        path = by_name.get(name)
        if path is None:
            sys.exit(f"guest image: the kernel has no module {name}")
        if path in ordered:
            return
        for field in ("depends", "softdep"):
            for line in run("/sbin/modinfo", "-F", field, str(path)).splitlines():
                for word in line.replace("pre:", " ").split("post:")[0].replace(",", " ").split():
                    if field == "depends" or word.replace("-", "_") in by_name:
                        add(word)
        ordered.append(path)

    for name in wanted:
        add(name)
    return ordered


def libraries(program: Path) -> list[Path]:
    """The shared libraries of a program, by the dynamic loader's own account."""
    found = []
    for line in run("ldd", str(program)).splitlines():
        words = [w for w in line.split() if w.startswith("/")]
        if words:
            found.append(Path(words[0]))
    return found


def imported(program: Path, library: str) -> dict[str, list[str]]:
    """The functions that a program takes from a library, by the version that it asks for."""
    versions: dict[str, list[str]] = {}
    for line in run("objdump", "-p", str(program)).partition(f"required from {library}:")[2].splitlines()[1:]:
        words = line.split()
        if not words or not words[0].startswith("0x"):
            break
        versions[words[3]] = []
    for line in run("objdump", "-T", str(program)).splitlines():
        words = line.split()
        if "*UND*" in words and (version := words[-2].strip("()")) in versions:
            versions[version].append(words[-1])
    return versions


def stand_in(library: str, functions: dict[str, list[str]], target: Path, work: Path) -> None:
    """A library of that name whose functions all answer -ENOSYS."""
    names = [name for each in functions.values() for name in each]
    source, script = work / f"{library}.s", work / f"{library}.map"
    source.write_text("".join(f".globl {n}\n.type {n},@function\n{n}: mov $-38, %rax\n ret\n" for n in names)
                      + ".section .note.GNU-stack,\"\",@progbits\n")  # fmt: skip
    script.write_text("".join(f"{v} {{ global: {'; '.join(n)}; }};\n" for v, n in functions.items()))
    run("cc", "-shared", "-nostdlib", "-s", f"-Wl,-soname,{library}", f"-Wl,--version-script={script}",
        "-o", str(target), str(source))  # fmt: skip


def fill_root(root: Path, kernel: Path, agent: Path) -> None:
    """The initramfs's content."""
    for name in (
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "newroot",
        "etc/hutch",
        "usr/bin",
        "usr/lib/modules",
        "disk",
    ):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(agent, root / "init")
    for program in PROGRAMS:
        shutil.copy(program, root / "usr/bin" / program.name)
    crun = PROGRAMS[0]
    needed = {
        n
        for line in run("objdump", "-p", str(crun)).splitlines()
        for n in line.split()[1:]
        if "NEEDED" in line
    }
    for library in libraries(crun):
        target = root / str(library).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if library.name == UNUSED_LIBRARY:
            stand_in(library.name, imported(crun, library.name), target, root.parent)
        elif library.name in needed or library.name.startswith("ld-linux"):
            shutil.copy(library.resolve(), target)
    (root / "etc/machine-id").write_text("")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/false\n")
    versions = [p for p in (kernel / "lib/modules").iterdir() if p.is_dir()]
    lines, placed = [], {}
    for phase, names in MODULES.items():
        for path in module_closure(versions[0], names):
            if path not in placed:
                target = root / "usr/lib/modules" / path.name.split(".ko")[0]
                target = target.with_suffix(".ko")
                data = path.read_bytes()
                if path.suffix == ".xz":
                    data = subprocess.run(["xz", "-dc", str(path)], capture_output=True, check=True).stdout
                target.write_bytes(data)
                placed[path] = f"/usr/lib/modules/{target.name}"
            lines.append(f"{phase} {placed[path]}")
    (root / "etc/hutch/modules").write_text("\n".join(lines) + "\n")


def write_cpio(root: Path, out: Path) -> None:
    """A newc archive in name order, with fixed owners and times: the same content gives the same bytes."""
    with out.open("wb") as f:
        for number, path in enumerate([root, *sorted(root.rglob("*"))], start=1):
            name = str(path.relative_to(root)) if path != root else "."
            status = path.lstat()
            data = b"" if stat.S_ISDIR(status.st_mode) else path.read_bytes()
            mode = stat.S_IFDIR | 0o755 if stat.S_ISDIR(status.st_mode) else stat.S_IFREG | 0o755
            _entry(f, name, number, mode, data)
        _entry(f, "TRAILER!!!", 0, 0, b"")


def _entry(f, name: str, number: int, mode: int, data: bytes) -> None:  # type: ignore[no-untyped-def]
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % v for v in fields) + encoded
    f.write(header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    package, version = kernel_package()
    key = inputs_key(package, version)
    manifest = out / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_text()).get("key") == key:
        progress("up to date")
        return
    agent = build_agent(out / "cargo")
    kernel = download(package, out / "packages")
    progress("making the initramfs")
    root = out / "root.tmp"
    shutil.rmtree(root, ignore_errors=True)
    fill_root(root, kernel, agent)
    write_cpio(root, out / "initrd.tmp")
    shutil.copy(next((kernel / "boot").glob("vmlinuz-*")), out / "vmlinuz.tmp")
    try:
        write_vmlinux(out / "vmlinuz.tmp", out / "vmlinux.tmp")
    except NoKernel as error:
        sys.exit(f"guest image: no vmlinux: {error}")
    os.replace(out / "initrd.tmp", out / "initrd.img")
    os.replace(out / "vmlinux.tmp", out / "vmlinux")
    os.replace(out / "vmlinuz.tmp", out / "vmlinuz")
    shutil.rmtree(root)
    size = (out / "initrd.img").stat().st_size
    document = {"key": key, "kernel_package": package, "kernel_version": version, "initrd_bytes": size}
    manifest.write_text(json.dumps(document, indent=1) + "\n")
    progress(f"done: {package} {version}, initramfs {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
