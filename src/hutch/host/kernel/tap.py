"""Opening a tap device by its name, to hand it to a VM monitor as a file descriptor."""

import fcntl
import os
import struct

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_MAX_NAME_BYTES = 15


def open_tap(name: str) -> int:
    """A file descriptor (close-on-exec) of the existing, persistent tap `name`; the caller closes it.

    Raises `OSError`: ENODEV if there is no such device, EBUSY if another VM holds it.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= _MAX_NAME_BYTES:
        raise OSError(22, f"{name!r} is not an interface name")
    # TUNSETIFF would make a new device under a name that does not exist.
    if not os.path.exists(f"/sys/class/net/{name}/tun_flags"):
        raise OSError(19, f"there is no tap device {name}")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", encoded, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    except OSError:
        os.close(fd)
        raise
    return fd
