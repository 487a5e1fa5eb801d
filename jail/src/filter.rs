//! System calls that no VM monitor needs, refused by the kernel. QEMU has a filter of its own, which it puts in place
//! when it has parsed its command line; this one is there from its first instruction, and whatever QEMU's options are.
//!
//! What is refused: ways to a bigger kernel surface (user namespaces, BPF, io_uring, keys, foreign sockets), ways to
//! other processes, and what only root may do anyway.

use libc::sock_filter;
use std::io;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;

/// x86-64 has a second set of numbers for the same calls (x32).
const OTHER_NUMBERS: u32 = 0x4000_0000;

const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

// Offsets in `struct seccomp_data`; arguments are read by their lower half (both architectures are little-endian).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;

fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// A test that goes on with the next instruction if it is true, and jumps over `over` of them if not.
fn test(code: u16, k: u32, over: u8) -> sock_filter {
    sock_filter { code, jt: 0, jf: over, k }
}

/// The whole filter. The number of the call is in the accumulator, except between a test of it and the end of its case.
fn program() -> Vec<sock_filter> {
    let mut steps = vec![
        step(LOAD, ARCH),
        sock_filter { code: EQUAL, jt: 1, jf: 0, k: ARCHITECTURE },
        step(RETURN, KILL),
        step(LOAD, NUMBER),
        test(AT_LEAST, OTHER_NUMBERS, 1),
        step(RETURN, refuse(libc::ENOSYS)),
        // The C library falls back to clone, whose flags can be seen.
        test(EQUAL, libc::SYS_clone3 as u32, 1),
        step(RETURN, refuse(libc::ENOSYS)),
        test(EQUAL, libc::SYS_clone as u32, 4),
        step(LOAD, FIRST_ARGUMENT),
        test(ANY_BIT, NEW_NAMESPACES, 1),
        step(RETURN, refuse(libc::EPERM)),
        step(RETURN, ALLOW),
        // Sockets are given, not made; unix ones lead nowhere in here.
        test(EQUAL, libc::SYS_socket as u32, 4),
        step(LOAD, FIRST_ARGUMENT),
        test(EQUAL, libc::AF_UNIX as u32, 1),
        step(RETURN, ALLOW),
        step(RETURN, refuse(libc::EAFNOSUPPORT)),
    ];
    for number in REFUSED {
        steps.push(test(EQUAL, *number as u32, 1));
        steps.push(step(RETURN, refuse(libc::EPERM)));
    }
    steps.push(step(RETURN, ALLOW));
    steps
}

/// Puts the filter in place, for good, for this process and all that it becomes. Needs no-new-privileges.
pub fn install() -> io::Result<()> {
    let mut steps = program();
    let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the pointer is to a program that lives until the call returns; the kernel copies it.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter, 0, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer to a call: the filter's program, run.
    fn answer(arch: u32, number: libc::c_long, first: u32) -> u32 {
        let steps = program();
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let s = &steps[at];
            at += 1;
            let jump = match s.code {
                LOAD => {
                    accumulator = match s.k {
                        NUMBER => number as u32,
                        ARCH => arch,
                        _ => first,
                    };
                    continue;
                }
                RETURN => return s.k,
                EQUAL => accumulator == s.k,
                AT_LEAST => accumulator >= s.k,
                ANY_BIT => accumulator & s.k != 0,
                _ => unreachable!(),
            };
            at += usize::from(if jump { s.jt } else { s.jf });
        }
    }

    #[test]
    fn lets_a_monitor_work() {
        for number in [libc::SYS_read, libc::SYS_ioctl, libc::SYS_mmap, libc::SYS_execve, libc::SYS_futex] {
            assert_eq!(answer(ARCHITECTURE, number, 0), ALLOW);
        }
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_FILES) as u32;
        assert_eq!(answer(ARCHITECTURE, libc::SYS_clone, thread), ALLOW);
        assert_eq!(answer(ARCHITECTURE, libc::SYS_socket, libc::AF_UNIX as u32), ALLOW);
    }

    #[test]
    fn refuses_the_rest() {
        for number in REFUSED {
            assert_eq!(answer(ARCHITECTURE, *number, 0), refuse(libc::EPERM), "{}", number);
        }
        for family in [libc::AF_INET, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK, 0] {
            assert_eq!(answer(ARCHITECTURE, libc::SYS_socket, family as u32), refuse(libc::EAFNOSUPPORT));
        }
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWNS] {
            assert_eq!(answer(ARCHITECTURE, libc::SYS_clone, flag as u32), refuse(libc::EPERM));
        }
        assert_eq!(answer(ARCHITECTURE, libc::SYS_clone3, 0), refuse(libc::ENOSYS));
        let x32 = libc::c_long::from(OTHER_NUMBERS) | libc::SYS_read;
        assert_eq!(answer(ARCHITECTURE, x32, 0), refuse(libc::ENOSYS));
        assert_eq!(answer(0x4000_0003, libc::SYS_read, 0), KILL, "32-bit calls have other numbers");
    }
}
