"""The name servers of this host, for its tasks."""

from pathlib import Path

RESOLV_CONF = ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
MAX_SERVERS, MAX_SEARCH = 3, 6
"""As many as the resolver of the C library looks at."""


def host_resolvers(paths: tuple[str, ...] = RESOLV_CONF) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Name servers and search domains that a task can use.

    Servers on the host's loopback (a stub such as systemd-resolved's) can't be reached from a task, nor IPv6 ones; then
    the file with the stub's own servers is looked at. Nothing usable: empty.
    """
    for path in paths:
        try:
            lines = Path(path).read_text(errors="replace").splitlines()
        except OSError:
            continue
        words = [line.split() for line in lines if line.strip()]
        servers = [w[1] for w in words if w[0] == "nameserver" and len(w) > 1]
        usable = [s for s in servers if ":" not in s and not s.startswith("127.")]
        if usable:
            search = [w[1:] for w in words if w[0] in ("search", "domain")]
            domains = [d for d in (search[-1] if search else ()) if d != "."]
            return tuple(usable[:MAX_SERVERS]), tuple(domains[:MAX_SEARCH])
    return (), ()
