//! The operations that set the machine up: `hello`, `configure`, `disks`, `stats`.

use serde_json::{json, Value};

use crate::containers::text;
use crate::{kernel, sys};

const CONTAINERS_CGROUP: &str = "/sys/fs/cgroup/hutch";
/// A process that waits for something that can't be interrupted is not frozen before that is over.
const FREEZE_LIMIT_MS: u64 = 5000;

fn hex(text: &str) -> Option<Vec<u8>> {
    if text.len() % 2 != 0 || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

fn address(text: &str) -> Result<[u8; 4], String> {
    text.parse::<std::net::Ipv4Addr>().map(|a| a.octets()).map_err(|_| format!("{} is not an IPv4 address", text))
}

/// Sets the clock and seeds the kernel's generator before anything of the task can run.
pub fn hello(given: &Value, is_init: bool) -> Result<Value, String> {
    if given["version"] != json!(1) {
        return Err("only version 1 is spoken here".to_string());
    }
    if is_init {
        let seed = hex(&text(given, "entropy")?).filter(|s| s.len() >= 32).ok_or("entropy is too short")?;
        sys::add_entropy(&seed).map_err(|e| format!("entropy: {}", e))?;
        let time_ns = given["time_ns"].as_u64().ok_or("time_ns is missing")?;
        sys::set_clock(time_ns).map_err(|e| format!("clock: {}", e))?;
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(json!({
        "version": 1, "agent": env!("CARGO_PKG_VERSION"), "kernel": kernel.trim(),
        "boot_ns": sys::clock_ns(libc::CLOCK_BOOTTIME),
    }))
}

/// Host name, machine id, memory limit, network.
pub fn configure(given: &Value) -> Result<Value, String> {
    if let Some(hostname) = given["hostname"].as_str() {
        sys::set_hostname(hostname).map_err(|e| format!("hostname: {}", e))?;
    }
    if let Some(id) = given["machine_id"].as_str() {
        std::fs::write("/etc/machine-id", format!("{}\n", id)).map_err(|e| format!("machine-id: {}", e))?;
    }
    if let Some(limit) = given["memory_bytes"].as_u64() {
        std::fs::write("/sys/fs/cgroup/hutch/memory.max", limit.to_string())
            .map_err(|e| format!("memory.max: {}", e))?;
    }
    let interfaces = given["interfaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    for item in interfaces {
        kernel::configure_interface(&kernel::Interface {
            mac: &text(item, "mac")?,
            address: address(&text(item, "address")?)?,
            prefix: item["prefix"].as_u64().filter(|p| *p <= 32).ok_or("prefix is missing")? as u8,
            gateway: item["gateway"].as_str().map(address).transpose()?,
            mtu: item["mtu"].as_i64().unwrap_or(1500) as i32,
        })?;
    }
    // Packets between a container's own bridges (docker in the VM) and the outside.
    drop(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"));
    if given["extra_modules"] == json!(true) {
        kernel::load_modules("extra")?;
    }
    Ok(json!({}))
}

/// Stops every process of every container where it is; returns when all of them stand still.
pub fn freeze() -> Result<Value, String> {
    sys::freeze_cgroup(CONTAINERS_CGROUP, FREEZE_LIMIT_MS).map_err(|e| format!("freeze: {}", e))?;
    Ok(json!({}))
}

/// Lets the containers go on; no error if they were not frozen.
pub fn thaw() -> Result<Value, String> {
    std::fs::write(format!("{}/cgroup.freeze", CONTAINERS_CGROUP), "0").map_err(|e| format!("thaw: {}", e))?;
    Ok(json!({}))
}

/// Finds disks by serial, and the host's file systems by tag, and mounts them.
pub fn disks(given: &Value) -> Result<Value, String> {
    for item in given["mounts"].as_array().map(Vec::as_slice).unwrap_or_default() {
        if item["fs"] == json!("virtiofs") {
            let (tag, path) = (text(item, "tag")?, text(item, "path")?);
            kernel::bind_file_systems()?;
            sys::mount(&tag, &path, "virtiofs", libc::MS_NOSUID | libc::MS_NODEV, "")
                .map_err(|e| format!("mount file system {} at {}: {}", tag, path, e))?;
            continue;
        }
        let device = kernel::disk_by_serial(&text(item, "serial")?)?;
        let (path, kind) = (text(item, "path")?, text(item, "fs")?);
        if kind == "xfs" {
            kernel::load_modules("xfs")?;
        }
        let flags = if item["read_only"] == json!(true) { libc::MS_RDONLY } else { 0 };
        sys::mount(&device.to_string_lossy(), &path, &kind, flags, "")
            .map_err(|e| format!("mount {} at {}: {}", device.display(), path, e))?;
    }
    Ok(json!({}))
}

/// Memory, CPU and disk of the whole machine.
pub fn stats() -> Value {
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| {
        let line = memory.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    let total = kib("MemTotal:");
    json!({ "memory_total_bytes": total, "memory_used_bytes": total.saturating_sub(kib("MemAvailable:")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_strict() {
        assert_eq!(hex("00ff"), Some(vec![0, 255]));
        assert_eq!(hex("0"), None);
        assert_eq!(hex("zz"), None);
        assert_eq!(hex("é1"), None);
    }

    #[test]
    fn hello_wants_version_1() {
        assert!(hello(&json!({"version": 2}), false).is_err());
        assert!(hello(&json!({"version": 1}), false).is_ok());
    }
}
