//! Thin, safe wrappers around the system calls that the agent needs.

use std::ffi::CString;
use std::io;
use std::os::unix::io::RawFd;
use std::path::Path;

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "text with a NUL byte"))
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Writes to the console, and nowhere if there is none.
pub fn console(text: &str) {
    use std::io::Write;
    match std::fs::OpenOptions::new().write(true).open("/dev/console") {
        Ok(mut f) => drop(f.write_all(text.as_bytes())),
        Err(_) => eprint!("{}", text),
    }
}

/// Mounts a file system, making the mount point first.
pub fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    if flags & (libc::MS_MOVE | libc::MS_REMOUNT) == 0 {
        std::fs::create_dir_all(target)?;
    }
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (kind, data) = (c_string(kind)?, c_string(data)?);
    // SAFETY: all pointers are NUL-terminated strings that live until the call returns.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(i64::from(result)).map(drop)
}

/// Detaches a mount; it goes when its last user does.
pub fn unmount(target: &str) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns.
    check(i64::from(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) })).map(drop)
}

/// Changes the root directory of this process.
pub fn chroot(path: &str) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns.
    check(i64::from(unsafe { libc::chroot(path.as_ptr()) })).map(drop)
}

/// Loads a kernel module from a file; one that is loaded already is fine.
pub fn load_module(path: &Path) -> io::Result<()> {
    use std::os::unix::io::AsRawFd;
    let file = std::fs::File::open(path)?;
    let no_parameters = c_string("")?;
    // SAFETY: the fd is open and the pointer a NUL-terminated string, both until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), no_parameters.as_ptr(), 0) };
    match check(result) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// A sealed copy of a program in memory, as a path that can be executed by us and our children.
///
/// A container runtime copies itself like this on every start, so that a container can't overwrite it through
/// /proc/self/exe; one that is sealed already runs on at once.
pub fn sealed_program(path: &Path) -> io::Result<std::path::PathBuf> {
    use std::os::unix::io::FromRawFd;
    let name = c_string("runtime")?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns.
    let fd = check(i64::from(unsafe { libc::memfd_create(name.as_ptr(), flags) }))? as RawFd;
    // SAFETY: `fd` was just made and is ours; it is never closed, since the path leads through it.
    let mut copy = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(fd) });
    io::copy(&mut std::fs::File::open(path)?, &mut *copy)?;
    let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
    // SAFETY: takes no pointers.
    check(i64::from(unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) }))?;
    Ok(format!("/proc/self/fd/{}", fd).into())
}

/// Ends the machine. Never returns as PID 1. `by_restart`: this machine can't power off, and ends when it restarts.
pub fn power_off(by_restart: bool) {
    // SAFETY: none of the calls takes pointers.
    unsafe {
        libc::sync();
        if !by_restart {
            libc::reboot(libc::RB_POWER_OFF);
        }
        // Without a way to power off, a restart ends the VM too (QEMU runs with -no-reboot).
        libc::reboot(libc::RB_AUTOBOOT);
    }
}

/// Sets the host name.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are of the same, living string.
    check(i64::from(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })).map(drop)
}

/// Sets the host name in the UTS namespace of a process. Only for a program of one thread.
pub fn set_hostname_of(pid: i32, name: &str) -> io::Result<()> {
    use std::os::unix::io::AsRawFd;
    let own = std::fs::File::open("/proc/self/ns/uts")?;
    let theirs = std::fs::File::open(format!("/proc/{}/ns/uts", pid))?;
    // SAFETY: takes no pointers; both descriptors are open until the end of this function.
    check(i64::from(unsafe { libc::setns(theirs.as_raw_fd(), libc::CLONE_NEWUTS) }))?;
    let outcome = set_hostname(name);
    // SAFETY: as above.
    check(i64::from(unsafe { libc::setns(own.as_raw_fd(), libc::CLONE_NEWUTS) }))?;
    outcome
}

/// Freezes a control group and waits until all processes in it stand still. On a failure it is thawed again.
pub fn freeze_cgroup(directory: &str, limit_ms: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::io::AsRawFd;
    let switch = format!("{}/cgroup.freeze", directory);
    let mut events = std::fs::File::open(format!("{}/cgroup.events", directory))?;
    std::fs::write(&switch, "1")?;
    let deadline_ns = clock_ns(libc::CLOCK_MONOTONIC) + limit_ms * 1_000_000;
    loop {
        let mut told = String::new();
        events.seek(SeekFrom::Start(0))?;
        events.read_to_string(&mut told)?;
        if told.lines().any(|l| l == "frozen 1") {
            return Ok(());
        }
        let now = clock_ns(libc::CLOCK_MONOTONIC);
        if now >= deadline_ns {
            std::fs::write(&switch, "0")?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a process can't be interrupted"));
        }
        let mut changed = [libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLPRI, revents: 0 }];
        poll(&mut changed, ((deadline_ns - now) / 1_000_000 + 1) as i32);
    }
}

/// Sets the wall clock, in nanoseconds since the epoch.
pub fn set_clock(time_ns: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: (time_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (time_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: the pointer is to a living timespec.
    check(i64::from(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) })).map(drop)
}

/// Nanoseconds of a clock.
pub fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a living timespec.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Adds entropy, credits it, and makes the kernel reseed its generator at once.
pub fn add_entropy(seed: &[u8]) -> io::Result<()> {
    use std::os::unix::io::AsRawFd;
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let device = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    let mut request = Vec::with_capacity(8 + seed.len());
    request.extend_from_slice(&((seed.len() * 8) as i32).to_ne_bytes());
    request.extend_from_slice(&(seed.len() as i32).to_ne_bytes());
    request.extend_from_slice(seed);
    // SAFETY: the buffer is a `struct rand_pool_info` of the length that its second word says.
    check(i64::from(unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY as _, request.as_ptr()) }))?;
    // SAFETY: this request takes no argument.
    check(i64::from(unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG as _) })).map(drop)
}

/// A signalfd for the signals that the loop handles; they are blocked for everything else.
pub fn signal_fd() -> io::Result<RawFd> {
    // SAFETY: the set is initialised by sigemptyset before use; all pointers live until the calls return.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in [libc::SIGCHLD, libc::SIGIO, libc::SIGTERM, libc::SIGPIPE] {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        check(i64::from(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))).map(|fd| fd as RawFd)
    }
}

/// Unblocks all signals: for a child between fork and exec.
pub fn unblock_signals() {
    // SAFETY: the set is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Adopts orphaned descendants, as PID 1 does by itself.
pub fn become_subreaper() {
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// The next child that ended: (pid, exit code (128+n for signal n), signal). The only place that waits for children.
pub fn reap() -> Option<(i32, i32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to a living integer.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        None
    } else if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        Some((pid, 128 + signal, signal))
    } else {
        Some((pid, libc::WEXITSTATUS(status), 0))
    }
}

/// Sends a signal; a process that is gone is no error.
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(pid, signal) };
}

/// Reads what is there; Ok(None) if there is nothing now.
pub fn read_some(fd: RawFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    // SAFETY: pointer and length are of the same, living buffer.
    match check(unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) } as i64) {
        Ok(count) => Ok(Some(count as usize)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what fits; Ok(0) if nothing does now.
pub fn write_some(fd: RawFd, data: &[u8]) -> io::Result<usize> {
    // SAFETY: pointer and length are of the same, living buffer.
    match check(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) } as i64) {
        Ok(count) => Ok(count as usize),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(error) => Err(error),
    }
}

/// Makes a file descriptor non-blocking, and if asked send SIGIO when its state changes.
pub fn set_non_blocking(fd: RawFd, with_sigio: bool) {
    // SAFETY: takes no pointers.
    unsafe {
        let mut flags = libc::fcntl(fd, libc::F_GETFL) | libc::O_NONBLOCK;
        if with_sigio {
            libc::fcntl(fd, libc::F_SETOWN, libc::getpid());
            flags |= libc::O_ASYNC;
        }
        libc::fcntl(fd, libc::F_SETFL, flags);
    }
}

/// The descriptor that is sent over a unix socket; Ok(None) if it is not there yet. An end without one is an error.
pub fn receive_fd(socket: RawFd) -> io::Result<Option<RawFd>> {
    let mut byte = [0u8; 256];
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: all zeros is a valid value of this plain structure; its pointers are set to living buffers of the lengths
    // that are given.
    let count = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = std::mem::size_of_val(&control) as _;
        match check(libc::recvmsg(socket, &mut message, libc::MSG_CMSG_CLOEXEC) as i64) {
            Ok(count) => {
                let header = libc::CMSG_FIRSTHDR(&message);
                if !header.is_null()
                    && (*header).cmsg_level == libc::SOL_SOCKET
                    && (*header).cmsg_type == libc::SCM_RIGHTS
                    && (*header).cmsg_len as usize >= libc::CMSG_LEN(4) as usize
                {
                    return Ok(Some(std::ptr::read_unaligned(libc::CMSG_DATA(header).cast::<RawFd>())));
                }
                count
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    };
    if count == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    Ok(None)
}

/// Sets the size of a terminal, in characters.
pub fn set_terminal_size(terminal: RawFd, rows: u16, cols: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a living structure of the kind that this request takes.
    unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &size) };
}

/// Waits until one of the descriptors is ready, or for `timeout_ms` (-1: for ever).
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) {
    // SAFETY: pointer and length are of the same, living slice.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
}

/// A pipe whose ends are closed on exec.
pub fn pipe() -> io::Result<(RawFd, RawFd)> {
    let mut fds = [0; 2];
    // SAFETY: the pointer is to two living integers.
    check(i64::from(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) }))?;
    Ok((fds[0], fds[1]))
}

/// The address of a vsock port.
fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = cid;
    address.svm_port = port;
    address
}

fn vsock() -> io::Result<RawFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(i64::from(fd)).map(|fd| fd as RawFd)
}

const VSOCK_ADDRESS_BYTES: libc::socklen_t = std::mem::size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// A socket that listens on a vsock port.
pub fn listen_vsock(port: u32) -> io::Result<RawFd> {
    let fd = vsock()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: the pointer is to a living structure of the length that is given.
    let bound = unsafe { libc::bind(fd, std::ptr::addr_of!(address).cast(), VSOCK_ADDRESS_BYTES) };
    let listening = check(i64::from(bound)).and_then(|_| {
        // SAFETY: takes no pointers.
        check(i64::from(unsafe { libc::listen(fd, 1) }))
    });
    match listening {
        Ok(_) => Ok(fd),
        Err(error) => {
            close(fd);
            Err(error)
        }
    }
}

/// Connects to a vsock port of the host and hangs up. Waits at most two seconds (the kernel's limit) for an answer.
pub fn call_host(port: u32) {
    if let Ok(fd) = vsock() {
        let address = vsock_address(libc::VMADDR_CID_HOST, port);
        // SAFETY: the pointer is to a living structure of the length that is given.
        unsafe { libc::connect(fd, std::ptr::addr_of!(address).cast(), VSOCK_ADDRESS_BYTES) };
        close(fd);
    }
}

/// The next connection of a listening socket; None if there is none now.
pub fn accept(listener: RawFd) -> Option<RawFd> {
    // SAFETY: null pointers say that the other end's address is not wanted.
    let fd = unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
    check(i64::from(fd)).ok().map(|fd| fd as RawFd)
}

/// A connection to a unix socket, non-blocking: to this very socket, never to where a link leads. A listener that has too
/// many waiting is an error, not waited for.
pub fn connect_unix(path: &str) -> io::Result<RawFd> {
    use std::os::unix::io::AsRawFd;
    let path = c_string(path)?;
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns; the descriptor is ours.
    let place = unsafe {
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let fd = check(i64::from(libc::open(path.as_ptr(), flags)))?;
        <std::fs::File as std::os::unix::io::FromRawFd>::from_raw_fd(fd as RawFd)
    };
    if !std::os::unix::fs::FileTypeExt::is_socket(&place.metadata()?.file_type()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a socket"));
    }
    let through = format!("/proc/self/fd/{}", place.as_raw_fd());
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: zeroes are a valid address, in which the text has room; pointer and size are of the same, living structure.
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        for (to, from) in address.sun_path.iter_mut().zip(through.bytes()) {
            *to = from as libc::c_char;
        }
        let socket = check(i64::from(libc::socket(libc::AF_UNIX, kind, 0)))? as RawFd;
        let size = std::mem::size_of_val(&address) as libc::socklen_t;
        match check(i64::from(libc::connect(socket, std::ptr::addr_of!(address).cast(), size))) {
            Ok(_) => Ok(socket),
            Err(error) => {
                close(socket);
                Err(error)
            }
        }
    }
}

/// Closes a descriptor that we own.
pub fn close(fd: RawFd) {
    // SAFETY: takes no pointers; the caller owns the descriptor.
    unsafe { libc::close(fd) };
}

/// A socket that becomes readable whenever the kernel tells of a device.
pub fn device_events() -> io::Result<std::os::unix::io::OwnedFd> {
    use std::os::unix::io::FromRawFd;
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers; the descriptor is new and ours alone.
    let socket = unsafe {
        let fd = check(i64::from(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT)))?;
        std::os::unix::io::OwnedFd::from_raw_fd(fd as RawFd)
    };
    // SAFETY: zeroes are a valid address; pointer and size are of the same, living structure.
    unsafe {
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = 1;
        let size = std::mem::size_of_val(&address) as libc::socklen_t;
        let fd = std::os::unix::io::AsRawFd::as_raw_fd(&socket);
        check(i64::from(libc::bind(fd, std::ptr::addr_of!(address).cast(), size)))?;
    }
    Ok(socket)
}

/// A netlink socket that does not block, of a family.
pub fn netlink_socket(family: i32) -> io::Result<RawFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, family) };
    let fd = check(i64::from(fd))? as RawFd;
    let room: libc::c_int = 4 * 1024 * 1024;
    // SAFETY: pointer and size are of the same, living integer. That it has no more room is no harm.
    unsafe {
        let size = std::mem::size_of_val(&room) as libc::socklen_t;
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, std::ptr::addr_of!(room).cast(), size);
    }
    Ok(fd)
}

/// Gives the process that a command will be a login uid, which is its for ever, and its children's.
pub fn set_login(command: &mut std::process::Command, login: u32) {
    use std::os::unix::process::CommandExt;
    let text = login.to_string();
    // SAFETY: between fork and exec only system calls without allocation are made; the text was made before.
    unsafe {
        command.pre_exec(move || {
            let path = b"/proc/self/loginuid\0";
            let fd = check(i64::from(libc::open(path.as_ptr().cast(), libc::O_WRONLY | libc::O_CLOEXEC)))? as RawFd;
            let written = check(libc::write(fd, text.as_ptr().cast(), text.len()) as i64);
            libc::close(fd);
            written.map(drop)
        });
    }
}
