//! From a fresh initramfs to a machine that can take a task: mounts, a root that can be pivoted, boot modules.
//!
//! All drivers are loaded here, but only the agent's channel is bound to its device. Disks, interfaces and the source of
//! randomness are bound when the host asks (`disks`, `configure`), so that a VM restored from a template probes its own.

use crate::{kernel, sys};

const SHARED: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Brings the machine up, with vsock if that is where the agent's channel is. On an error there is nothing to be saved: the
/// caller powers off.
pub fn bring_up(with_vsock: bool) -> Result<(), String> {
    leave_rootfs().map_err(|e| format!("root: {}", e))?;
    let mounts: [(&str, &str, &str, libc::c_ulong, &str); 7] = [
        ("proc", "/proc", "proc", SHARED, ""),
        ("sysfs", "/sys", "sysfs", SHARED, ""),
        ("devtmpfs", "/dev", "devtmpfs", libc::MS_NOSUID, "mode=755"),
        ("devpts", "/dev/pts", "devpts", libc::MS_NOSUID | libc::MS_NOEXEC, "mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777"),
        ("tmpfs", "/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2", SHARED, ""),
    ];
    for (source, target, kind, flags, data) in mounts {
        sys::mount(source, target, kind, flags, data).map_err(|e| format!("mount {}: {}", target, e))?;
    }
    kernel::load_modules("boot")?;
    if with_vsock {
        kernel::load_modules("vsock")?;
    }
    kernel::leave_devices_unbound().map_err(|e| format!("virtio bus: {}", e))?;
    for phase in ["disk", "net", "random"] {
        kernel::load_modules(phase)?;
    }
    kernel::loopback_up().map_err(|e| format!("lo: {}", e))?;
    enable_controllers("/sys/fs/cgroup");
    std::fs::create_dir_all("/sys/fs/cgroup/hutch").map_err(|e| format!("cgroup: {}", e))?;
    enable_controllers("/sys/fs/cgroup/hutch");
    Ok(())
}

/// The initramfs itself can't be pivoted away from; a bind mount of it on top of it can.
fn leave_rootfs() -> std::io::Result<()> {
    sys::mount("/", "/newroot", "", libc::MS_BIND, "")?;
    std::env::set_current_dir("/newroot")?;
    sys::mount("/newroot", "/", "", libc::MS_MOVE, "")?;
    sys::chroot(".")?;
    std::env::set_current_dir("/")
}

fn enable_controllers(directory: &str) {
    let available = std::fs::read_to_string(format!("{}/cgroup.controllers", directory)).unwrap_or_default();
    for controller in available.split_whitespace() {
        // A controller that can't be enabled is missed by the limit that needs it, which then says so.
        drop(std::fs::write(format!("{}/cgroup.subtree_control", directory), format!("+{}", controller)));
    }
}
