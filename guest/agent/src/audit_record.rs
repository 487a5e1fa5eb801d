//! Records of the kernel's audit facility, as text, put together again to what happened. Pure: bytes in, values out.
//!
//! Names in the records are chosen by whoever is watched: the kernel quotes them or writes them in hex, and here each is
//! cut to a bound.

use std::collections::{HashMap, VecDeque};

const SYSCALL: u16 = 1300;
const PATH: u16 = 1302;
const SOCKADDR: u16 = 1306;
const CWD: u16 = 1307;
const EXECVE: u16 = 1309;
const END: u16 = 1320;
const BPRM_FCAPS: u16 = 1321;

/// Happenings of which not all records are here yet.
const MAX_OPEN: usize = 64;
pub const MAX_TEXT: usize = 512;
const MAX_ARGUMENTS: usize = 1024;
const MAX_PATHS: usize = 8;

/// One system call with all that the kernel told of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Happening {
    pub time_ns: u64,
    pub arch: u32,
    pub syscall: u32,
    pub success: bool,
    pub exit: i64,
    pub arguments: [u64; 4],
    pub pid: i32,
    pub parent: i32,
    pub login: u32,
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    pub has_terminal: bool,
    pub name: String,
    pub exe: String,
    pub key: String,
    pub command_line: String,
    pub directory: String,
    pub paths: Vec<PathItem>,
    /// Address and port of a connect.
    pub peer: Option<(String, u16)>,
    /// Capabilities that an exec brought.
    pub gained_capabilities: u64,
}

/// A file that a call was about.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct PathItem {
    pub name: String,
    pub mode: u32,
    /// CREATE, DELETE, NORMAL, PARENT.
    pub role: String,
}

/// Puts records together. Bounded: what is not ended by the kernel goes when newer comes.
#[derive(Default)]
pub struct Assembler {
    open: VecDeque<(u64, Happening)>,
    /// Happenings that were given up.
    pub dropped: u64,
}

impl Assembler {
    /// Takes a record; what it completes.
    pub fn take(&mut self, kind: u16, text: &[u8]) -> Option<Happening> {
        let text = String::from_utf8_lossy(text);
        let (time_ns, serial, rest) = stamp(&text)?;
        let position = self.open.iter().position(|(s, _)| *s == serial);
        if kind == END {
            return position.and_then(|at| self.open.remove(at)).map(|(_, h)| h).filter(|h| h.pid != 0);
        }
        let at = match position {
            Some(at) => at,
            None => {
                if self.open.len() >= MAX_OPEN {
                    self.open.pop_front();
                    self.dropped += 1;
                }
                self.open.push_back((serial, Happening { time_ns, ..Happening::default() }));
                self.open.len() - 1
            }
        };
        if let Some((_, happening)) = self.open.get_mut(at) {
            add(happening, kind, &members(rest));
        }
        None
    }
}

/// `audit(SECONDS.MILLISECONDS:SERIAL): REST`.
fn stamp(text: &str) -> Option<(u64, u64, &str)> {
    let (head, rest) = text.strip_prefix("audit(")?.split_once("):")?;
    let (time, serial) = head.split_once(':')?;
    let (seconds, milliseconds) = time.split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let milliseconds: u64 = milliseconds.parse().ok()?;
    let ns = seconds.checked_mul(1_000_000_000)?.checked_add(milliseconds.checked_mul(1_000_000)?)?;
    Some((ns, serial.parse().ok()?, rest.trim_start()))
}

/// `name=value name="quoted"`: a record's members. No value has a space in it: such a one is in hex.
fn members(text: &str) -> HashMap<&str, &str> {
    text.split([' ', '\n', '\0']).filter_map(|word| word.split_once('=')).collect()
}

/// A text that was chosen by a process: quoted, or in hex.
fn untrusted(value: &str, limit: usize) -> String {
    let text = match value.strip_prefix('"') {
        Some(quoted) => quoted.trim_end_matches('"').to_string(),
        None if value == "(null)" || value == "(none)" => String::new(),
        None => match unhex(value) {
            Some(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            None => value.to_string(),
        },
    };
    cut(text, limit)
}

/// The beginning of a text, in bytes, and no half character.
pub fn cut(mut text: String, limit: usize) -> String {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || text.len() % 2 != 0 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).ok()).collect()
}

fn add(happening: &mut Happening, kind: u16, members: &HashMap<&str, &str>) {
    let text = |name: &str| members.get(name).copied().unwrap_or_default();
    match kind {
        SYSCALL => add_call(happening, members),
        EXECVE => happening.command_line = command_line(members),
        CWD => happening.directory = untrusted(text("cwd"), MAX_TEXT),
        PATH if happening.paths.len() < MAX_PATHS => happening.paths.push(PathItem {
            name: untrusted(text("name"), MAX_TEXT),
            mode: u32::from_str_radix(text("mode"), 8).unwrap_or(0),
            role: cut(text("nametype").to_string(), 16),
        }),
        SOCKADDR => happening.peer = unhex(text("saddr")).and_then(|raw| peer(&raw)),
        BPRM_FCAPS => {
            let set = |name: &str| u64::from_str_radix(text(name), 16).unwrap_or(0);
            happening.gained_capabilities = set("pe") & !set("old_pe");
        }
        _ => {}
    }
}

fn add_call(happening: &mut Happening, members: &HashMap<&str, &str>) {
    let text = |name: &str| members.get(name).copied().unwrap_or_default();
    let number = |name: &str| text(name).parse::<u32>().unwrap_or(u32::MAX);
    happening.arch = u32::from_str_radix(text("arch"), 16).unwrap_or(0);
    happening.syscall = number("syscall");
    happening.success = text("success") == "yes";
    happening.exit = text("exit").parse().unwrap_or(0);
    for (slot, name) in happening.arguments.iter_mut().zip(["a0", "a1", "a2", "a3"]) {
        *slot = u64::from_str_radix(text(name), 16).unwrap_or(0);
    }
    happening.pid = text("pid").parse().unwrap_or(0);
    happening.parent = text("ppid").parse().unwrap_or(0);
    happening.login = number("auid");
    happening.uid = number("uid");
    happening.euid = number("euid");
    happening.suid = number("suid");
    happening.has_terminal = text("tty") != "(none)";
    happening.name = untrusted(text("comm"), 64);
    happening.exe = untrusted(text("exe"), MAX_TEXT);
    happening.key = untrusted(text("key"), MAX_TEXT);
}

/// The arguments of an exec, with spaces between them. One that is long comes in pieces, of which the first is enough.
fn command_line(members: &HashMap<&str, &str>) -> String {
    let count = members.get("argc").and_then(|c| c.parse::<usize>().ok()).unwrap_or(0);
    let mut line = String::new();
    for index in 0..count {
        let whole = members.get(format!("a{}", index).as_str());
        let piece = members.get(format!("a{}[0]", index).as_str());
        let argument = match whole.or(piece) {
            Some(value) => untrusted(value, MAX_ARGUMENTS),
            None => break, // in a record of its own
        };
        if index > 0 {
            line.push(' ');
        }
        line.push_str(&argument);
        if line.len() >= MAX_ARGUMENTS {
            break;
        }
    }
    cut(line, MAX_ARGUMENTS)
}

/// A `struct sockaddr` as address and port.
fn peer(raw: &[u8]) -> Option<(String, u16)> {
    let port = u16::from_be_bytes([*raw.get(2)?, *raw.get(3)?]);
    match i32::from(u16::from_ne_bytes([*raw.first()?, *raw.get(1)?])) {
        libc::AF_INET => {
            let octets: [u8; 4] = [*raw.get(4)?, *raw.get(5)?, *raw.get(6)?, *raw.get(7)?];
            Some((std::net::Ipv4Addr::from(octets).to_string(), port))
        }
        libc::AF_INET6 => {
            let mut octets = [0u8; 16];
            octets.copy_from_slice(raw.get(8..24)?);
            Some((std::net::Ipv6Addr::from(octets).to_string(), port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec() -> Vec<(u16, &'static str)> {
        vec![
            (SYSCALL, "audit(1700000000.123:45): arch=c000003e syscall=59 success=yes exit=0 a0=55 a1=2 a2=3 a3=8 items=2 \
                ppid=70 pid=71 auid=1879048193 uid=1000 gid=0 euid=0 suid=0 fsuid=0 egid=0 sgid=0 fsgid=0 tty=(none) ses=3 \
                comm=\"sh\" exe=\"/bin/busybox\" subj=unconfined key=\"exec\""),
            (BPRM_FCAPS, "audit(1700000000.123:45): fver=2 fp=1 fi=0 fe=1 old_pp=0 old_pi=0 old_pe=0 old_pa=0 pp=2000 pi=0 \
                pe=2000 pa=0 frootid=0"),
            (EXECVE, "audit(1700000000.123:45): argc=3 a0=\"sh\" a1=\"-c\" a2=6964203E202F78"),
            (CWD, "audit(1700000000.123:45): cwd=\"/srv\""),
            (PATH, "audit(1700000000.123:45): item=0 name=\"/bin/sh\" inode=5 dev=00:1b mode=0104755 ouid=0 ogid=0 rdev=00:00 \
                nametype=NORMAL cap_fp=0"),
            (END, "audit(1700000000.123:45): "),
        ]
    }

    #[test]
    fn records_become_one_happening() {
        let mut assembler = Assembler::default();
        let mut found: Vec<Happening> = exec().iter().filter_map(|(k, t)| assembler.take(*k, t.as_bytes())).collect();
        let happening = found.remove(0);
        assert_eq!((happening.pid, happening.parent, happening.login), (71, 70, 0x7000_0001));
        assert_eq!((happening.uid, happening.euid), (1000, 0));
        assert_eq!((happening.name.as_str(), happening.exe.as_str()), ("sh", "/bin/busybox"));
        assert_eq!(happening.command_line, "sh -c id > /x");
        assert_eq!(happening.gained_capabilities, 0x2000);
        assert_eq!(happening.paths[0].mode & 0o4000, 0o4000);
        assert_eq!(happening.time_ns, 1_700_000_000_123_000_000);
        assert!(happening.success && !happening.has_terminal && found.is_empty());
    }

    #[test]
    fn a_connect_has_its_peer() {
        assert_eq!(peer(&[2, 0, 0x0D, 0x05, 10, 0, 0, 9, 0, 0]), Some(("10.0.0.9".to_string(), 3333)));
        let mut six = vec![10, 0, 0, 80, 0, 0, 0, 0];
        six.extend_from_slice(&std::net::Ipv6Addr::LOCALHOST.octets());
        assert_eq!(peer(&six), Some(("::1".to_string(), 80)));
        assert_eq!(peer(&[1, 0, 47]), None);
        assert_eq!(peer(&[2, 0, 0, 80, 10]), None);
    }

    #[test]
    fn what_a_process_chose_stays_what_it_is() {
        assert_eq!(untrusted("\"a\"", 9), "a");
        assert_eq!(untrusted("6162", 9), "ab");
        assert_eq!(untrusted("(null)", 9), "");
        assert_eq!(untrusted("C3A9C3A9", 3), "é");
        assert_eq!(untrusted("ÿé", 1), "");
    }

    #[test]
    fn half_a_happening_is_given_up_in_the_end() {
        let mut assembler = Assembler::default();
        for serial in 0..200 {
            assert!(assembler.take(CWD, format!("audit(1.0:{}): cwd=\"/\"", serial).as_bytes()).is_none());
        }
        assert_eq!(assembler.open.len(), MAX_OPEN);
        assert_eq!(assembler.dropped, 200 - MAX_OPEN as u64);
        assert!(assembler.take(END, b"audit(1.0:199): ").is_none(), "without its call it is none");
        assert!(assembler.take(SYSCALL, b"nonsense").is_none());
        assert!(assembler.take(SYSCALL, b"audit(99999999999999999999.0:1): x").is_none());
    }
}
