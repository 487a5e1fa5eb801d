//! What makes a booted kernel ready for a task: modules by phase, disks by serial, network interfaces by MAC.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys;

const MODULE_LIST: &str = "/etc/hutch/modules";

/// Loads the modules of a phase ("boot", "disk", "net", "extra") in their order. Loading twice does no harm.
pub fn load_modules(phase: &str) -> Result<(), String> {
    let list = std::fs::read_to_string(MODULE_LIST).map_err(|e| format!("{}: {}", MODULE_LIST, e))?;
    for line in list.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some(phase) {
            continue;
        }
        if let Some(path) = words.next() {
            sys::load_module(Path::new(path)).map_err(|e| format!("module {}: {}", path, e))?;
        }
    }
    Ok(())
}

/// The device node of the virtio disk that has this serial.
pub fn disk_by_serial(serial: &str) -> Result<PathBuf, String> {
    let entries = std::fs::read_dir("/sys/block").map_err(|e| format!("/sys/block: {}", e))?;
    for entry in entries.flatten() {
        let found = std::fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim_end() == serial {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(format!("no disk has the serial {}", serial))
}

/// A network interface to be set up.
pub struct Interface<'a> {
    pub mac: &'a str,
    pub address: [u8; 4],
    pub prefix: u8,
    pub gateway: Option<[u8; 4]>,
    pub mtu: i32,
}

fn name_by_mac(mac: &str) -> Result<String, String> {
    let entries = std::fs::read_dir("/sys/class/net").map_err(|e| format!("/sys/class/net: {}", e))?;
    for entry in entries.flatten() {
        let found = std::fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if found.trim() == mac {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Err(format!("no network interface has the MAC {}", mac))
}

#[repr(C)]
struct IfReq {
    name: [u8; 16],
    data: [u8; 24],
}

fn if_req(name: &str) -> IfReq {
    let mut request = IfReq { name: [0; 16], data: [0; 24] };
    for (slot, byte) in request.name.iter_mut().zip(name.bytes().take(15)) {
        *slot = byte;
    }
    request
}

fn socket_address(address: [u8; 4]) -> [u8; 16] {
    let mut raw = [0; 16];
    raw[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    raw[4..8].copy_from_slice(&address);
    raw
}

struct Socket(i32);

impl Socket {
    fn open() -> io::Result<Socket> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Socket(fd))
        }
    }

    fn request<T>(&self, number: libc::c_ulong, argument: &T) -> io::Result<()> {
        // SAFETY: the argument is a living structure of the size that the request number calls for.
        if unsafe { libc::ioctl(self.0, number as _, argument as *const T) } < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        sys::close(self.0);
    }
}

fn bring_up(socket: &Socket, name: &str) -> io::Result<()> {
    let mut request = if_req(name);
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as u16;
    request.data[..2].copy_from_slice(&flags.to_ne_bytes());
    socket.request(libc::SIOCSIFFLAGS as _, &request)
}

/// Brings the loopback interface up.
pub fn loopback_up() -> io::Result<()> {
    bring_up(&Socket::open()?, "lo")
}

/// Gives an interface its address and the machine its default route.
pub fn configure_interface(interface: &Interface<'_>) -> Result<(), String> {
    let name = name_by_mac(interface.mac)?;
    let explain = |what: &str, e: io::Error| format!("{} of {}: {}", what, name, e);
    let socket = Socket::open().map_err(|e| explain("socket", e))?;
    let mut request = if_req(&name);
    request.data[..4].copy_from_slice(&interface.mtu.to_ne_bytes());
    socket.request(libc::SIOCSIFMTU as _, &request).map_err(|e| explain("MTU", e))?;
    let mut request = if_req(&name);
    request.data[..16].copy_from_slice(&socket_address(interface.address));
    socket.request(libc::SIOCSIFADDR as _, &request).map_err(|e| explain("address", e))?;
    let mask = (!0u32).checked_shl(32 - u32::from(interface.prefix)).unwrap_or(0);
    let mut request = if_req(&name);
    request.data[..16].copy_from_slice(&socket_address(mask.to_be_bytes()));
    socket.request(libc::SIOCSIFNETMASK as _, &request).map_err(|e| explain("netmask", e))?;
    bring_up(&socket, &name).map_err(|e| explain("flags", e))?;
    if let Some(gateway) = interface.gateway {
        add_default_route(&socket, gateway).map_err(|e| explain("default route", e))?;
    }
    Ok(())
}

fn add_default_route(socket: &Socket, gateway: [u8; 4]) -> io::Result<()> {
    // struct rtentry: pad1 u64, dst, gateway, genmask (16 bytes each), flags u16, and what may stay zero.
    let mut entry = [0u8; 120];
    entry[8..24].copy_from_slice(&socket_address([0; 4]));
    entry[24..40].copy_from_slice(&socket_address(gateway));
    entry[40..56].copy_from_slice(&socket_address([0; 4]));
    let flags = (libc::RTF_UP | libc::RTF_GATEWAY) as u16;
    entry[56..58].copy_from_slice(&flags.to_ne_bytes());
    match socket.request(libc::SIOCADDRT as _, &entry) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
