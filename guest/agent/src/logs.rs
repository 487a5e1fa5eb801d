//! What a container wrote, until the host has it on its disk. Bounded: a full backlog stops the reading of the pipe.

use std::collections::VecDeque;
use std::os::unix::io::RawFd;

use hutch_proto::{Frame, LOG};

use crate::channel::Channel;
use crate::sys;

const MAX_BACKLOG: usize = 1024 * 1024;
const CHUNK: usize = 32 * 1024;

struct Entry {
    seq: u64,
    time_ns: u64,
    stream: u8,
    data: Vec<u8>,
}

/// The output of one start of a container.
pub struct Backlog {
    number: u32,
    pipes: Vec<(u8, RawFd)>,
    entries: VecDeque<Entry>,
    bytes: usize,
    next_seq: u64,
    sent_seq: u64,
    acknowledged_seq: u64,
}

impl Backlog {
    /// Takes over the reading ends of a container's stdout (1) and stderr (2).
    pub fn new(number: u32, pipes: Vec<(u8, RawFd)>) -> Backlog {
        for (_, fd) in &pipes {
            sys::set_non_blocking(*fd, false);
        }
        Backlog { number, pipes, entries: VecDeque::new(), bytes: 0, next_seq: 1, sent_seq: 0, acknowledged_seq: 0 }
    }

    /// Takes over one more descriptor to read from.
    pub fn add(&mut self, stream: u8, fd: RawFd) {
        sys::set_non_blocking(fd, false);
        self.pipes.push((stream, fd));
    }

    /// The pipes to be polled now: none while the backlog is full.
    pub fn poll_fds(&self) -> Vec<RawFd> {
        if self.bytes >= MAX_BACKLOG {
            return Vec::new();
        }
        self.pipes.iter().map(|(_, fd)| *fd).collect()
    }

    /// The last sequence number given out.
    pub fn last_seq(&self) -> u64 {
        self.next_seq - 1
    }

    /// The last sequence number that the host has on its disk.
    pub fn acknowledged_seq(&self) -> u64 {
        self.acknowledged_seq
    }

    /// Whether nothing more will come, and the host has all that came.
    pub fn is_delivered(&self) -> bool {
        self.pipes.is_empty() && self.entries.is_empty()
    }

    /// Reads a pipe that is ready.
    pub fn read(&mut self, fd: RawFd) {
        let stream = match self.pipes.iter().find(|(_, f)| *f == fd) {
            Some((stream, _)) => *stream,
            None => return,
        };
        let mut buffer = vec![0; CHUNK];
        match sys::read_some(fd, &mut buffer) {
            Ok(None) => {}
            Ok(Some(count)) if count > 0 => {
                buffer.truncate(count);
                self.bytes += count;
                let time_ns = sys::clock_ns(libc::CLOCK_REALTIME);
                self.entries.push_back(Entry { seq: self.next_seq, time_ns, stream, data: buffer });
                self.next_seq += 1;
            }
            _ => self.close(fd),
        }
    }

    fn close(&mut self, fd: RawFd) {
        self.pipes.retain(|(_, f)| *f != fd);
        sys::close(fd);
    }

    /// Stops reading: something outside of the container still holds the pipe.
    pub fn abandon(&mut self) {
        for (_, fd) in std::mem::take(&mut self.pipes) {
            sys::close(fd);
        }
    }

    /// Sends what has not been sent on this connection.
    pub fn send(&mut self, channel: &mut Channel) {
        let sent_seq = self.sent_seq;
        for entry in self.entries.iter().filter(|e| e.seq > sent_seq) {
            if !channel.has_room() {
                return;
            }
            let mut payload = Vec::with_capacity(17 + entry.data.len());
            payload.extend_from_slice(&entry.seq.to_be_bytes());
            payload.extend_from_slice(&entry.time_ns.to_be_bytes());
            payload.push(entry.stream);
            payload.extend_from_slice(&entry.data);
            channel.send(&Frame { kind: LOG, channel: self.number, payload });
            self.sent_seq = entry.seq;
        }
    }

    /// A new connection: everything that is kept is to be sent again.
    pub fn resend(&mut self) {
        self.sent_seq = 0;
    }

    /// The host has all up to `seq`.
    pub fn acknowledge(&mut self, seq: u64) {
        self.acknowledged_seq = self.acknowledged_seq.max(seq.min(self.last_seq()));
        while self.entries.front().map_or(false, |e| e.seq <= seq) {
            if let Some(entry) = self.entries.pop_front() {
                self.bytes -= entry.data.len();
            }
        }
    }
}
