//! Thin, safe wrappers around the system calls that the jail needs.

use std::ffi::CString;
use std::io;
use std::ptr;

const NONE: *const libc::c_char = ptr::null();

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

/// A pipe: its reading and its writing end, both closed on exec.
pub fn pipe() -> io::Result<(i32, i32)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    check(i64::from(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }))?;
    Ok((ends[0], ends[1]))
}

pub fn close(fd: i32) -> io::Result<()> {
    // SAFETY: no pointers; only descriptors that this program was given or made are closed, once.
    check(i64::from(unsafe { libc::close(fd) })).map(drop)
}

pub fn close_on_exec(fd: i32) -> io::Result<()> {
    // SAFETY: no pointers.
    check(i64::from(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })).map(drop)
}

/// Writes a few bytes, which a pipe takes at once and whole.
pub fn write_all(fd: i32, data: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `data`.
    check(unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) } as i64).map(drop)
}

/// Waits for a byte; false if the other end was closed instead.
pub fn read_byte(fd: i32) -> io::Result<bool> {
    let mut byte = 0u8;
    // SAFETY: the pointer is to one byte, which lives until the call returns.
    Ok(check(unsafe { libc::read(fd, ptr::addr_of_mut!(byte).cast(), 1) } as i64)? == 1)
}

/// Forks a child that is our parent's, not ours, in new namespaces: of the network too, unless it shall stay in ours. 0 in
/// the child, else its pid.
pub fn clone_into_new_namespaces(host_network: bool) -> io::Result<i32> {
    let network = if host_network { 0 } else { libc::CLONE_NEWNET };
    let flags = libc::CLONE_PARENT
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | network
        | libc::SIGCHLD;
    // SAFETY: without a stack and without CLONE_VM this is fork(2); there is only one thread, so the child may do
    // anything.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(pid as i32)
}

pub fn kill(pid: i32) {
    // SAFETY: no pointers; `pid` is a child that nobody has reaped yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

pub fn new_cgroup_namespace() -> io::Result<()> {
    // SAFETY: no pointers.
    check(i64::from(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })).map(drop)
}

/// Leaves the caller's keys behind: who holds a session keyring has rights to what is in it.
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for a new keyring without one.
    match check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, NONE) }) {
        // A kernel without keys has none to leave.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `name`.
    check(i64::from(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })).map(drop)
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (kind, data) = (c_string(kind)?, c_string(data)?);
    let kind_or_none = if kind.as_bytes().is_empty() { NONE } else { kind.as_ptr() };
    // SAFETY: all pointers are NUL-terminated strings that live until the call returns, or null where that is allowed.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind_or_none, flags, data.as_ptr().cast()) };
    check(i64::from(result)).map(drop)
}

pub fn make_mounts_private() -> io::Result<()> {
    mount("none", "/", "", libc::MS_REC | libc::MS_PRIVATE, "")
}

pub fn bind(source: &str, target: &str) -> io::Result<()> {
    mount(source, target, "", libc::MS_BIND, "")
}

/// Makes a bind mount of files harmless, and read-only if it shall not be writable.
pub fn restrict_files(target: &str, writable: bool) -> io::Result<()> {
    let read_only = if writable { 0 } else { libc::MS_RDONLY };
    let harmless = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    mount("none", target, "", libc::MS_REMOUNT | libc::MS_BIND | harmless | read_only, "")
}

/// Makes a bind mount read-only and harmless; one of a device node stays a device.
pub fn restrict(target: &str, device: bool) -> io::Result<()> {
    let kind = if device { libc::MS_NOEXEC } else { libc::MS_NODEV };
    let flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY | libc::MS_NOSUID | kind;
    mount("none", target, "", flags, "")
}

/// The namespace's own /proc, with its processes only where the kernel can do that (Linux 5.8).
pub fn mount_proc(target: &str) -> io::Result<()> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RDONLY;
    match mount("proc", target, "proc", flags, "subset=pid,hidepid=2") {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => mount("proc", target, "proc", flags, ""),
        other => other,
    }
}

/// Makes a directory, which must be a mount, the root, and lets go of all that was mounted before.
pub fn change_root(root: &str) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    let here = c_string(".")?;
    // SAFETY: the pointers are NUL-terminated strings that live until the calls return.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, here.as_ptr(), here.as_ptr()))?;
        // The old root now lies over the new one.
        check(i64::from(libc::umount2(here.as_ptr(), libc::MNT_DETACH)))?;
    }
    std::env::set_current_dir("/")
}

pub fn limit(resource: u32, value: u64) -> io::Result<()> {
    let mut wanted = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a pointer to a struct that lives until they return.
    unsafe {
        check(i64::from(libc::getrlimit(resource as _, &mut wanted)))?;
        // Never raised: a host that allows less stays the stricter one.
        let value = value.min(wanted.rlim_max);
        wanted = libc::rlimit { rlim_cur: value, rlim_max: value };
        check(i64::from(libc::setrlimit(resource as _, &wanted))).map(drop)
    }
}

/// Becomes a user without capabilities, who can never gain any again.
pub fn drop_all_rights(user_id: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: no pointers, except for the groups, whose length is given.
    unsafe {
        for capability in 0..64 {
            match check(i64::from(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                other => drop(other?),
            }
        }
        check(i64::from(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)))?;
        check(i64::from(libc::setgroups(groups.len(), groups.as_ptr())))?;
        check(i64::from(libc::setresgid(user_id, user_id, user_id)))?;
        check(i64::from(libc::setresuid(user_id, user_id, user_id)))?;
        check(i64::from(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)))?;
        libc::umask(0o077);
        // Rust's start-up had it ignored, which a program would inherit.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    Ok(())
}

/// Runs a program with an empty environment in place of this one. Returns only if that failed, and why.
pub fn execute(command: &[String]) -> io::Error {
    let arguments: io::Result<Vec<CString>> = command.iter().map(|a| c_string(a)).collect();
    let arguments = match arguments {
        Ok(arguments) => arguments,
        Err(error) => return error,
    };
    let mut pointers: Vec<*const libc::c_char> = arguments.iter().map(|a| a.as_ptr()).collect();
    pointers.push(ptr::null());
    let environment = [NONE];
    // SAFETY: both lists end with a null pointer, and what they point to lives until the call returns.
    unsafe { libc::execve(pointers[0], pointers.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}
