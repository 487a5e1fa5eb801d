//! What makes a booted kernel ready for a task: modules by phase, devices bound to drivers when they are wanted.

use std::io;
use std::path::{Path, PathBuf};

use crate::sys;

const MODULE_LIST: &str = "/etc/hutch/modules";
const VIRTIO_BUS: &str = "/sys/bus/virtio";

/// A kind of virtio device, by its number on the bus.
#[derive(Clone, Copy)]
pub enum Kind {
    Net = 1,
    Block = 2,
    Random = 4,
    FileSystem = 26,
}

impl Kind {
    fn driver(self) -> &'static str {
        match self {
            Kind::Net => "virtio_net",
            Kind::Block => "virtio_blk",
            Kind::Random => "virtio_rng",
            Kind::FileSystem => "virtiofs",
        }
    }
}

/// From now on a virtio device gets its driver only when `bind_next` says so.
pub fn leave_devices_unbound() -> io::Result<()> {
    std::fs::write(format!("{}/drivers_autoprobe", VIRTIO_BUS), "0")
}

/// Binds the first device of a kind that has no driver yet, and returns when it is probed. False if there is none.
pub fn bind_next(kind: Kind) -> Result<bool, String> {
    let entries = std::fs::read_dir(format!("{}/devices", VIRTIO_BUS)).map_err(|e| format!("virtio bus: {}", e))?;
    let mut unbound: Vec<(usize, String)> = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = std::fs::read_to_string(entry.path().join("device")).unwrap_or_default();
        if number.trim() == format!("0x{:04x}", kind as u32) && !entry.path().join("driver").exists() {
            unbound.push((name.len(), name));
        }
    }
    // By number: "virtio9" is before "virtio10".
    let name = match unbound.into_iter().min() {
        Some((_, name)) => name,
        None => return Ok(false),
    };
    std::fs::write(format!("{}/drivers/{}/bind", VIRTIO_BUS, kind.driver()), &name)
        .map_err(|e| format!("{}: {}", name, e))?;
    Ok(true)
}

/// Loads the modules of a phase ("boot", "vsock", "disk", "net", "random", "fs", "extra") in their order. Loading twice does no harm.
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

/// The device node of the virtio disk that has this serial. Disks are bound, one after the other, until it is found:
/// those that a task does not use are never touched.
pub fn disk_by_serial(serial: &str) -> Result<PathBuf, String> {
    loop {
        let entries = std::fs::read_dir("/sys/block").map_err(|e| format!("/sys/block: {}", e))?;
        for entry in entries.flatten() {
            let found = std::fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            if found.trim_end() == serial {
                return Ok(Path::new("/dev").join(entry.file_name()));
            }
        }
        if !bind_next(Kind::Block)? {
            return Err(format!("no disk has the serial {}", serial));
        }
    }
}

/// Binds all file systems that the host serves, which are then mounted by their tags.
pub fn bind_file_systems() -> Result<(), String> {
    load_modules("fs")?;
    while bind_next(Kind::FileSystem)? {}
    Ok(())
}

/// A network interface to be set up.
pub struct Interface<'a> {
    pub mac: &'a str,
    pub address: [u8; 4],
    pub prefix: u8,
    pub gateway: Option<[u8; 4]>,
    pub mtu: i32,
}

/// Ethernet interfaces that are backed by a device: (name, MAC).
fn ethernet() -> Result<Vec<(String, String)>, String> {
    let entries = std::fs::read_dir("/sys/class/net").map_err(|e| format!("/sys/class/net: {}", e))?;
    let backed = entries.flatten().filter(|e| e.path().join("device").exists());
    let mac = |p: PathBuf| std::fs::read_to_string(p.join("address")).unwrap_or_default().trim().to_string();
    Ok(backed.map(|e| (e.file_name().to_string_lossy().into_owned(), mac(e.path()))).collect())
}

/// The interface that has this MAC. If none has, the next device becomes it (a VM from a template has its template's), or
/// the only one there is (a VM that was copied has its original's).
fn name_by_mac(socket: &Socket, mac: &str) -> Result<String, String> {
    let known = ethernet()?;
    if let Some((name, _)) = known.iter().find(|(_, m)| m == mac) {
        return Ok(name.clone());
    }
    let found = if bind_next(Kind::Net)? {
        ethernet()?.into_iter().find(|(n, _)| known.iter().all(|(k, _)| k != n))
    } else {
        known.into_iter().next()
    };
    let (name, current) = found.ok_or_else(|| format!("there is no network device for the MAC {}", mac))?;
    if current != mac {
        set_mac(socket, &name, mac).map_err(|e| format!("MAC of {}: {}", name, e))?;
    }
    Ok(name)
}

fn set_mac(socket: &Socket, name: &str, mac: &str) -> io::Result<()> {
    let octets: Vec<u8> = mac.split(':').filter_map(|part| u8::from_str_radix(part, 16).ok()).collect();
    if octets.len() != 6 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a MAC"));
    }
    let mut request = if_req(name);
    request.data[..2].copy_from_slice(&libc::ARPHRD_ETHER.to_ne_bytes());
    request.data[2..8].copy_from_slice(&octets);
    socket.request(libc::SIOCSIFHWADDR as _, &request)
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
    let socket = Socket::open().map_err(|e| format!("socket: {}", e))?;
    let name = name_by_mac(&socket, interface.mac)?;
    let explain = |what: &str, e: io::Error| format!("{} of {}: {}", what, name, e);
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
    let flags = libc::RTF_UP | libc::RTF_GATEWAY;
    entry[56..58].copy_from_slice(&flags.to_ne_bytes());
    match socket.request(libc::SIOCADDRT as _, &entry) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}
