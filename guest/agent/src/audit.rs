//! The kernel's audit facility: the socket, the rules, and the registration that makes its records come to us.
//!
//! Only a process of the machine's own PID namespace may speak to it, whatever its capabilities: no container can, so none
//! can take a rule away or read along.

use std::io;
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::sys;

/// What a process of a container has as its login uid, which its children inherit and none can change: the container's
/// number above this. No image has such users.
pub const STARTED: u32 = 0x7000_0000;
/// The same, of a process that was run in a container by the host (health checks, exec).
pub const BY_EXEC: u32 = 0x6000_0000;
const NUMBER_MASK: u32 = 0x0FFF_FFFF;

const SET: u16 = 1001;
const GET: u16 = 1000;
const ADD_RULE: u16 = 1011;
const DELETE_RULE: u16 = 1012;
const SET_FEATURE: u16 = 1018;
const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;
const MAX_RECORD: usize = 16 * 1024;
const ANSWER_LIMIT_MS: i32 = 5000;
/// Records that the kernel keeps for us before it drops (and counts): an exec makes six.
const BACKLOG: u32 = 4096;
const RECORDS_PER_SECOND: u32 = 12_000;
const LOST_WORD: usize = 6;
/// Records that say nothing that we use.
const UNUSED_RECORDS: [u32; 7] = [1006, 1305, 1325, 1326, 1327, 1334, 1701];

const FILTER_USER: u32 = 0;
const FILTER_EXIT: u32 = 4;
const FILTER_EXCLUDE: u32 = 5;
const NEVER: u32 = 0;
const ALWAYS: u32 = 2;
pub const EQUAL: u32 = 0x4000_0000;
pub const AT_LEAST: u32 = 0x6000_0000;
pub const HAS_BITS: u32 = 0x4800_0000;
const MSGTYPE: u32 = 12;
pub const LOGINUID_SET: u32 = 24;
pub const ARCH: u32 = 11;
pub const SUCCESS: u32 = 104;
const PERM: u32 = 106;
const DIR: u32 = 107;
pub const SADDR_FAMILY: u32 = 113;
pub const ARG1: u32 = 201;
pub const ARG2: u32 = 202;
const FILTERKEY: u32 = 210;
const PERM_WRITE_OR_ATTRIBUTES: u32 = 2 | 8;
pub const ARCH_64: u32 = 0xC000_003E;
pub const ARCH_32: u32 = 0x4000_0003;

/// System calls by which a file comes to be, or to be another, on either architecture. What of these numbers is another
/// call on the other one, the kernel's own classes of calls sort out.
const WRITING: [u32; 42] = [
    2, 85, 257, 437, 76, 82, 264, 316, 86, 265, 88, 266, 87, 263, 83, 258, 133, 259, 90, 91, 268, 92, 93, 94, 260, 5,
    8, 295, 38, 302, 353, 9, 303, 304, 10, 301, 39, 296, 14, 297, 15, 306,
];

/// A rule of the kernel's filter: the record that says so is marked with `key`.
#[derive(Clone)]
pub struct Rule {
    pub syscalls: Vec<u32>,
    /// Field, operator, value.
    pub fields: Vec<(u32, u32, u32)>,
    /// A directory of ours, all below which is meant.
    pub directory: Option<String>,
    pub key: String,
}

impl Rule {
    /// Writes to all below a directory; `key` is what the container calls it.
    pub fn writes(directory: String, key: String) -> Rule {
        Rule {
            syscalls: WRITING.to_vec(),
            fields: vec![(PERM, EQUAL, PERM_WRITE_OR_ATTRIBUTES), (SUCCESS, EQUAL, 1)],
            directory: Some(directory),
            key,
        }
    }

    /// As the kernel's `struct audit_rule_data`.
    pub fn encode(&self) -> Vec<u8> {
        encode_rule(FILTER_EXIT, ALWAYS, &self.syscalls, &self.fields, self.directory.as_deref(), &self.key)
    }
}

fn encode_rule(
    list: u32,
    action: u32,
    syscalls: &[u32],
    fields: &[(u32, u32, u32)],
    directory: Option<&str>,
    key: &str,
) -> Vec<u8> {
    let mut fields = fields.to_vec();
    let mut texts = Vec::new();
    if let Some(directory) = directory {
        // First, so that it is what a call is asked about last: fields are looked at in their order.
        fields.push((DIR, EQUAL, directory.len() as u32));
        texts.extend_from_slice(directory.as_bytes());
    }
    if !key.is_empty() {
        fields.push((FILTERKEY, EQUAL, key.len() as u32));
        texts.extend_from_slice(key.as_bytes());
    }
    let mut mask = [0u32; 64];
    for number in syscalls {
        mask[(number / 32) as usize % 64] |= 1 << (number % 32);
    }
    let mut words = vec![list, action, fields.len() as u32];
    words.extend_from_slice(&mask);
    let column =
        |of: &dyn Fn(&(u32, u32, u32)) -> u32| -> Vec<u32> { (0..64).map(|i| fields.get(i).map_or(0, of)).collect() };
    words.extend(column(&|f| f.0));
    words.extend(column(&|f| f.2));
    words.extend(column(&|f| f.1));
    words.push(texts.len() as u32);
    let mut out: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    out.extend_from_slice(&texts);
    out
}

/// The login uid of a container's processes.
pub fn login_of(number: u32, by_exec: bool) -> u32 {
    (if by_exec { BY_EXEC } else { STARTED }) | (number & NUMBER_MASK)
}

/// The container's number, and whether the host ran the process; None for a login uid that is not ours.
pub fn number_of(login: u32) -> Option<(u32, bool)> {
    match login & !NUMBER_MASK {
        STARTED => Some((login & NUMBER_MASK, false)),
        BY_EXEC => Some((login & NUMBER_MASK, true)),
        _ => None,
    }
}

/// The conversation with the kernel. Dropped, no records are made any more.
pub struct Audit {
    socket: OwnedFd,
    sequence: u32,
    /// Records that came while an answer was awaited.
    early: Vec<(u16, Vec<u8>)>,
    /// What the kernel had to drop since it was started, and the receiving end of the socket besides.
    pub lost: u64,
    overruns: u64,
}

impl Audit {
    /// Opens it; nothing is on yet.
    pub fn open() -> io::Result<Audit> {
        let socket = sys::netlink_socket(9)?;
        // SAFETY: the descriptor is new and ours alone.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        Ok(Audit { socket, sequence: 0, early: Vec::new(), lost: 0, overruns: 0 })
    }

    /// Makes records come here. Containers never wait for us: what is too much is dropped and counted.
    pub fn enable(&mut self) -> io::Result<()> {
        // Whoever may write to the log (CAP_AUDIT_WRITE) shall not fill it.
        self.request(ADD_RULE, &encode_rule(FILTER_USER, NEVER, &[], &[(MSGTYPE, AT_LEAST, 0)], None, ""))?;
        for kind in UNUSED_RECORDS {
            self.request(ADD_RULE, &encode_rule(FILTER_EXCLUDE, ALWAYS, &[], &[(MSGTYPE, EQUAL, kind)], None, ""))?;
        }
        // A login uid that is set can't be set again, and that can't be changed any more.
        self.request(SET_FEATURE, &words(&[1, 3, 3, 3]))?;
        let all = 1 | 2 | 4 | 8 | 16 | 32;
        self.request(SET, &words(&[all, 1, 0, std::process::id(), RECORDS_PER_SECOND, BACKLOG, 0, 0, 0, 0]))
    }

    /// Has the kernel make records of what a rule says.
    pub fn add(&mut self, rule: &Rule) -> io::Result<()> {
        self.request(ADD_RULE, &rule.encode())
    }

    /// Takes a rule back.
    pub fn remove(&mut self, rule: &Rule) -> io::Result<()> {
        self.request(DELETE_RULE, &rule.encode())
    }

    /// What to poll.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The next record that is there: its type and text. The kernel's account of what it dropped is taken in besides.
    pub fn next(&mut self) -> Option<(u16, Vec<u8>)> {
        if !self.early.is_empty() {
            return Some(self.early.remove(0));
        }
        loop {
            let (kind, _, payload) = self.receive()?;
            match kind {
                GET => self.note_status(&payload),
                1100..=2999 => return Some((kind, payload)),
                _ => {}
            }
        }
    }

    /// Asks how much was dropped; the answer comes among the records.
    pub fn ask_for_losses(&mut self) {
        drop(self.send(GET, 1, &[]));
    }

    fn note_status(&mut self, payload: &[u8]) {
        if let Some(word) = payload.get(LOST_WORD * 4..LOST_WORD * 4 + 4) {
            let lost = u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
            self.lost = self.lost.max(lost + self.overruns);
        }
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence += 1;
        let mut message = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(payload);
        sys::write_some(self.fd(), &message).map(drop)
    }

    fn request(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, 1 | 4, payload)?;
        let end = sys::clock_ns(libc::CLOCK_MONOTONIC) + ANSWER_LIMIT_MS as u64 * 1_000_000;
        while sys::clock_ns(libc::CLOCK_MONOTONIC) < end {
            match self.receive() {
                None => {
                    let mut news = [libc::pollfd { fd: self.fd(), events: libc::POLLIN, revents: 0 }];
                    sys::poll(&mut news, ANSWER_LIMIT_MS);
                }
                Some((NLMSG_ERROR, sequence, payload)) if sequence == self.sequence && payload.len() >= 4 => {
                    let code = i32::from_ne_bytes([payload[0], payload[1], payload[2], payload[3]]);
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                Some((kind @ 1100..=2999, _, payload)) => self.early.push((kind, payload)),
                Some(_) => {}
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut))
    }

    /// A message: type, sequence number, payload. The length in an audit record's header is not to be relied on.
    fn receive(&mut self) -> Option<(u16, u32, Vec<u8>)> {
        let mut buffer = vec![0; MAX_RECORD];
        loop {
            match sys::read_some(self.fd(), &mut buffer) {
                Ok(Some(count)) if count >= HEADER => {
                    let kind = u16::from_ne_bytes([buffer[4], buffer[5]]);
                    let sequence = u32::from_ne_bytes([buffer[8], buffer[9], buffer[10], buffer[11]]);
                    return Some((kind, sequence, buffer[HEADER..count].to_vec()));
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.overruns += 1;
                    self.lost += 1;
                }
                _ => return None,
            }
        }
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_uid_says_whose_process_it_is() {
        assert_eq!(number_of(login_of(7, false)), Some((7, false)));
        assert_eq!(number_of(login_of(7, true)), Some((7, true)));
        assert_eq!(number_of(u32::MAX), None);
        assert_eq!(number_of(1000), None);
    }

    #[test]
    fn a_rule_is_laid_out_as_the_kernel_reads_it() {
        let rule =
            Rule { syscalls: vec![59, 322], fields: vec![(1, EQUAL, 0)], directory: None, key: "exec".to_string() };
        let data = rule.encode();
        let word = |i: usize| u32::from_ne_bytes([data[i * 4], data[i * 4 + 1], data[i * 4 + 2], data[i * 4 + 3]]);
        assert_eq!((word(0), word(1), word(2)), (4, 2, 2));
        assert_eq!((word(3 + 1), word(3 + 10)), (1 << 27, 1 << 2));
        assert_eq!((word(67), word(68)), (1, 210));
        assert_eq!((word(131), word(132)), (0, 4));
        assert_eq!((word(195), word(196)), (EQUAL, EQUAL));
        assert_eq!(word(259), 4);
        assert_eq!(&data[260 * 4..], b"exec");
    }
}
