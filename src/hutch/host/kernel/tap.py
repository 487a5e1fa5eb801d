"""Opening a tap device by its name, to hand it to a VM monitor as a file descriptor."""

import errno
import fcntl
import os
import struct

from pyroute2 import IPRoute, NetlinkError

from hutch.host.kernel.links import delete_link

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_MAX_NAME_BYTES = 15


def open_placeholder_tap(name: str) -> int:
    """A file descriptor (close-on-exec) of a new tap that leads nowhere, and goes when the descriptor and all its copies
    are closed. `move_tap` attaches them to another one."""
    return _open(name)


def move_tap(fd: int, placeholder: str, name: str) -> None:
    """Attach what is open as `placeholder` to the existing tap `name` instead, for all who hold a copy of `fd`. Nobody may
    have agreed on offloads with its user yet. Blocks for some 20 ms. Raises `OSError`."""
    if not os.path.exists(f"/sys/class/net/{name}/tun_flags"):
        raise OSError(errno.ENODEV, f"there is no tap device {name}")
    # A descriptor can be attached once, but it is let go of when its link is removed.
    with IPRoute() as ip:
        try:
            delete_link(ip, placeholder)
        except NetlinkError as error:
            raise OSError(error.code, f"the link {placeholder} can't be removed") from None
    _attach(fd, name)


def _open(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _attach(fd, name)
    except OSError:
        os.close(fd)
        raise
    return fd


def _attach(fd: int, name: str) -> None:
    encoded = name.encode()
    if not 0 < len(encoded) <= _MAX_NAME_BYTES:
        raise OSError(errno.EINVAL, f"{name!r} is not an interface name")
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))


def open_tap(name: str) -> int:
    """A file descriptor (close-on-exec) of the existing, persistent tap `name`; the caller closes it.

    Raises `OSError`: ENODEV if there is no such device, EBUSY if another VM holds it.
    """
    # TUNSETIFF would make a new device under a name that does not exist.
    if not os.path.exists(f"/sys/class/net/{name}/tun_flags"):
        raise OSError(errno.ENODEV, f"there is no tap device {name}")
    return _open(name)


def own_tap(name: str, user_id: int) -> None:
    """From now on the existing tap `name` can be opened by this user, and by no other one but root. Raises as `open_tap`."""
    fd = open_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETOWNER, user_id)
    finally:
        os.close(fd)


def make_tap(name: str, user_id: int) -> None:
    """A new tap that leads nowhere and stays until `remove_tap`, for this user. Raises `OSError`."""
    fd = open_placeholder_tap(name)
    try:
        fcntl.ioctl(fd, _TUNSETOWNER, user_id)
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    finally:
        os.close(fd)


def remove_tap(name: str) -> None:
    """Remove a tap that `make_tap` made. Idempotent. Raises `OSError`."""
    if not os.path.exists(f"/sys/class/net/{name}"):
        return
    with IPRoute() as ip:
        try:
            delete_link(ip, name)
        except NetlinkError as error:
            raise OSError(error.code, f"the link {name} can't be removed") from None
