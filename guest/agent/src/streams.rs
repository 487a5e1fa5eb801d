//! Further processes in running containers, with their streams: exec with a terminal or with pipes. And connections to
//! unix sockets of containers, which are streams without a process.
//!
//! Each stream has a number that the host gives it, and a window in each direction: nobody sends more than the other end
//! has given credit for. So a process that does not read, or a host that does not, holds up nothing but that stream.

use std::collections::VecDeque;
use std::os::unix::io::{IntoRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use hutch_proto::{Frame, STREAM_CREDIT, STREAM_DATA, STREAM_WINDOW};
use serde_json::{json, Value};

use crate::channel::Channel;
use crate::containers::{error_kind, last_error, null_fd, spawn_with_input};
use crate::sys;

/// How many there can be at a time in one VM.
pub const MAX_STREAMS: usize = 128;
const CHUNK: usize = 16 * 1024;
const INPUT: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// A process that was hung up on has so long to end by itself.
const GRACE_NS: u64 = 2_000_000_000;
/// The runtime tells the process's pid a moment after it began to run.
const PID_RETRY_NS: u64 = 10_000_000;

/// Where the process's terminal is on its way from the runtime to us.
enum Terminal {
    None,
    Listening(RawFd),
    Arriving(RawFd),
    Here(RawFd),
}

/// A process and its streams.
pub struct Stream {
    pub number: u32,
    pub request: u64,
    pub runtime_pid: i32,
    files: PathBuf,
    terminal: Terminal,
    size: (u16, u16),
    stdin: RawFd,
    outputs: Vec<(u8, RawFd)>,
    input: VecDeque<u8>,
    input_ended: bool,
    /// How many bytes the host still takes.
    credit: usize,
    ended: Option<i32>,
    closed: bool,
    kill_at_ns: Option<u64>,
    /// A signal for a process whose pid is not known yet.
    waiting_signal: Option<i32>,
    /// There is no process: it ends when either end hangs up.
    is_connection: bool,
}

impl Stream {
    /// Sets the runtime to work. `given`: the request's document; `container`: the runtime's name of the container.
    pub fn start(
        runtime: &Path,
        state: &Path,
        request: u64,
        given: &Value,
        (container, login): (&str, Option<u32>),
    ) -> Result<Stream, String> {
        let number = number_of(given)?;
        let files = state.join("streams").join(number.to_string());
        drop(std::fs::remove_dir_all(&files));
        std::fs::create_dir_all(&files).map_err(|e| format!("{}: {}", files.display(), e))?;
        let process = files.join("process.json");
        std::fs::write(&process, given["process"].to_string()).map_err(|e| format!("process: {}", e))?;
        let mut command = Command::new(runtime);
        command.arg("--cgroup-manager=cgroupfs").arg("--log").arg(files.join("log")).args(["exec", "--process"]);
        command.arg(&process).arg("--pid-file").arg(files.join("pid"));
        if let Some(login) = login {
            sys::set_login(&mut command, login);
        }
        let mut stream = Stream::new(number, request, size_of(given), files);
        let with_input = given["stdin"] != json!(false);
        let spawned = if given["tty"] == json!(true) {
            stream.spawn_on_terminal(&mut command, container)
        } else {
            stream.spawn_on_pipes(&mut command, container, with_input)
        };
        if let Err(message) = spawned {
            stream.release();
            return Err(message);
        }
        Ok(stream)
    }

    /// Connects to a unix socket in a directory that a container can write to.
    pub fn connect(request: u64, given: &Value) -> Result<Stream, String> {
        let path = given["path"].as_str().ok_or("path is missing")?;
        let socket = sys::connect_unix(path).map_err(|e| format!("{}: {}", path, e))?;
        let mut stream = Stream::new(number_of(given)?, request, (0, 0), PathBuf::new());
        stream.is_connection = true;
        // As a terminal, it is one descriptor for both directions.
        stream.terminal = Terminal::Here(socket);
        stream.outputs = vec![(STDOUT, socket)];
        Ok(stream)
    }

    fn new(number: u32, request: u64, size: (u16, u16), files: PathBuf) -> Stream {
        Stream {
            number,
            request,
            runtime_pid: 0,
            terminal: Terminal::None,
            size,
            stdin: -1,
            outputs: Vec::new(),
            input: VecDeque::new(),
            input_ended: false,
            credit: STREAM_WINDOW,
            ended: None,
            closed: false,
            kill_at_ns: None,
            waiting_signal: None,
            is_connection: false,
            files,
        }
    }

    fn spawn_on_terminal(&mut self, command: &mut Command, container: &str) -> Result<(), String> {
        let path = self.files.join("console");
        let listener = UnixListener::bind(&path).map_err(|e| format!("console: {}", e))?.into_raw_fd();
        sys::set_non_blocking(listener, false);
        self.terminal = Terminal::Listening(listener);
        command.arg("--console-socket").arg(&path).arg(container);
        let nulls = (null_fd().map_err(text_of)?, null_fd().map_err(text_of)?);
        self.runtime_pid = spawn_with_input(command, None, nulls).map_err(|e| format!("crun: {}", e))?;
        Ok(())
    }

    fn spawn_on_pipes(&mut self, command: &mut Command, container: &str, with_input: bool) -> Result<(), String> {
        command.arg(container);
        let input = if with_input { Some(sys::pipe().map_err(text_of)?) } else { None };
        let (out, err) = (sys::pipe().map_err(text_of)?, sys::pipe().map_err(text_of)?);
        self.outputs = vec![(STDOUT, out.0), (STDERR, err.0)];
        if let Some((_, write)) = input {
            self.stdin = write;
        }
        self.runtime_pid = spawn_with_input(command, input.map(|(read, _)| read), (out.1, err.1))
            .map_err(|e| format!("crun: {}", e))?;
        for fd in self.outputs.iter().map(|(_, fd)| *fd).chain(Some(self.stdin)).filter(|fd| *fd >= 0) {
            sys::set_non_blocking(fd, false);
        }
        Ok(())
    }

    /// What to poll now. A descriptor that nothing is wanted from is left out: its hang-up would wake us for ever.
    pub fn poll_entries(&self, channel_has_room: bool) -> Vec<libc::pollfd> {
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let may_read = self.credit > 0 && channel_has_room;
        let mut entries = Vec::new();
        match self.terminal {
            Terminal::Listening(fd) | Terminal::Arriving(fd) => entries.push(entry(fd, libc::POLLIN)),
            Terminal::Here(fd) => {
                let events =
                    if may_read { libc::POLLIN } else { 0 } | if self.input.is_empty() { 0 } else { libc::POLLOUT };
                if events != 0 {
                    entries.push(entry(fd, events));
                }
            }
            Terminal::None => {}
        }
        if self.stdin >= 0 && !self.input.is_empty() {
            entries.push(entry(self.stdin, libc::POLLOUT));
        }
        if may_read {
            entries.extend(self.outputs.iter().map(|(_, fd)| entry(*fd, libc::POLLIN)));
        }
        entries
    }

    /// Whether a descriptor is this stream's.
    pub fn owns(&self, fd: RawFd) -> bool {
        let terminal = match self.terminal {
            Terminal::Listening(own) | Terminal::Arriving(own) | Terminal::Here(own) => own,
            Terminal::None => -1,
        };
        fd >= 0 && (fd == terminal || fd == self.stdin || self.outputs.iter().any(|(_, own)| *own == fd))
    }

    /// Does what can be done now without waiting.
    pub fn service(&mut self, channel: &mut Channel) {
        self.receive_terminal();
        self.feed(channel);
        self.send_output(channel);
    }

    fn receive_terminal(&mut self) {
        if let Terminal::Listening(listener) = self.terminal {
            if let Some(connection) = sys::accept(listener) {
                sys::close(listener);
                sys::set_non_blocking(connection, false);
                self.terminal = Terminal::Arriving(connection);
            }
        }
        if let Terminal::Arriving(connection) = self.terminal {
            match sys::receive_fd(connection) {
                Ok(Some(master)) => {
                    sys::close(connection);
                    sys::set_non_blocking(master, false);
                    self.terminal = Terminal::Here(master);
                    self.outputs = vec![(STDOUT, master)];
                    self.apply_size();
                }
                Ok(None) => {}
                Err(_) => {
                    sys::close(connection);
                    self.terminal = Terminal::None;
                }
            }
        }
    }

    fn apply_size(&self) {
        if let Terminal::Here(master) = self.terminal {
            sys::set_terminal_size(master, self.size.0, self.size.1);
        }
    }

    /// Sets the terminal's size.
    pub fn resize(&mut self, given: &Value) {
        self.size = size_of(given);
        self.apply_size();
    }

    /// Writes waiting input; what is written, or has nowhere to go, is credited to the host.
    fn feed(&mut self, channel: &mut Channel) {
        let mut taken = 0;
        let waits_for_terminal = matches!(self.terminal, Terminal::Listening(_) | Terminal::Arriving(_));
        while !self.input.is_empty() && !waits_for_terminal {
            let fd = match self.terminal {
                Terminal::Here(master) => master,
                _ => self.stdin,
            };
            if fd < 0 {
                taken += self.input.len();
                self.input.clear();
                break;
            }
            let (front, _) = self.input.as_slices();
            match sys::write_some(fd, front) {
                Ok(0) => break,
                Ok(count) => {
                    taken += count;
                    drop(self.input.drain(..count));
                }
                Err(_) if fd == self.stdin => self.close_stdin(),
                Err(_) if self.is_connection => return self.close(),
                Err(_) => {
                    taken += self.input.len();
                    self.input.clear();
                }
            }
        }
        if self.input.is_empty() && self.input_ended {
            self.close_stdin();
        }
        if taken > 0 {
            let payload = (taken as u32).to_be_bytes().to_vec();
            channel.send(&Frame { kind: STREAM_CREDIT, channel: self.number, payload });
        }
    }

    fn close_stdin(&mut self) {
        if self.stdin >= 0 {
            sys::close(std::mem::replace(&mut self.stdin, -1));
        }
    }

    /// Sends what the process wrote, as far as the host and the channel take it.
    fn send_output(&mut self, channel: &mut Channel) {
        let mut buffer = vec![0; CHUNK];
        let mut at = 0;
        while at < self.outputs.len() {
            if self.credit == 0 || !channel.has_room() {
                return;
            }
            let (stream, fd) = self.outputs[at];
            let room = self.credit.min(CHUNK);
            match sys::read_some(fd, &mut buffer[..room]) {
                Ok(Some(count)) if count > 0 => {
                    self.credit -= count;
                    let mut payload = Vec::with_capacity(count + 1);
                    payload.push(stream);
                    payload.extend_from_slice(&buffer[..count]);
                    channel.send(&Frame { kind: STREAM_DATA, channel: self.number, payload });
                }
                // What is still held open by something the process left running is not waited for.
                Ok(None) if self.ended.is_none() => at += 1,
                _ => self.close_output(fd),
            }
        }
    }

    fn close_output(&mut self, fd: RawFd) {
        self.outputs.retain(|(_, own)| *own != fd);
        sys::close(fd);
        if matches!(self.terminal, Terminal::Here(master) if master == fd) {
            self.terminal = Terminal::None;
        }
        if self.is_connection {
            self.close();
        }
    }

    /// Bytes from the host. Raises what it sends beyond its credit: the stream is closed then.
    pub fn receive(&mut self, payload: &[u8]) {
        match payload.split_first() {
            Some((&INPUT, data)) if self.closed || self.input_ended || data.is_empty() => {
                self.input_ended |= data.is_empty();
            }
            Some((&INPUT, data)) if self.input.len() + data.len() <= STREAM_WINDOW => self.input.extend(data),
            _ => self.close(),
        }
    }

    /// The host takes more.
    pub fn give_credit(&mut self, payload: &[u8]) {
        if let Ok(bytes) = <[u8; 4]>::try_from(payload) {
            self.credit = (self.credit + u32::from_be_bytes(bytes) as usize).min(STREAM_WINDOW);
        }
    }

    /// Sends the process a signal.
    pub fn signal(&mut self, number: i32) {
        self.waiting_signal = None;
        match self.process_pid() {
            _ if self.ended.is_some() || self.is_connection => {}
            Some(pid) => sys::kill(pid, number),
            None => self.waiting_signal = Some(number),
        }
    }

    fn process_pid(&self) -> Option<i32> {
        std::fs::read_to_string(self.files.join("pid")).ok()?.trim().parse().ok().filter(|pid| *pid > 1)
    }

    /// The host has let go: the process is hung up on, and killed if that does not end it.
    pub fn close(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        if self.is_connection {
            self.ended = Some(0);
        } else {
            self.end_process(libc::SIGHUP);
            self.kill_at_ns = Some(sys::clock_ns(libc::CLOCK_MONOTONIC) + GRACE_NS);
        }
        self.release();
    }

    fn end_process(&self, signal: i32) {
        if self.ended.is_some() {
            return;
        }
        if let Some(pid) = self.process_pid() {
            // It leads a session, and so a process group, of its own.
            sys::kill(-pid, signal);
            sys::kill(pid, signal);
        } else if signal == libc::SIGKILL {
            sys::kill(self.runtime_pid, signal);
        }
    }

    /// When `expire` wants to be called.
    pub fn deadline_ns(&self, now_ns: u64) -> Option<u64> {
        let retry = self.waiting_signal.map(|_| now_ns + PID_RETRY_NS);
        self.kill_at_ns.into_iter().chain(retry).min()
    }

    /// Kills a process that has had its time to end.
    pub fn expire(&mut self, now_ns: u64) {
        if let Some(number) = self.waiting_signal {
            self.signal(number);
        }
        if self.kill_at_ns.map_or(false, |at| at <= now_ns) {
            self.kill_at_ns = None;
            self.end_process(libc::SIGKILL);
        }
    }

    /// The runtime has ended, with the process's exit code.
    pub fn runtime_ended(&mut self, code: i32) {
        self.ended = Some(code);
        if matches!(self.terminal, Terminal::Listening(_) | Terminal::Arriving(_)) {
            self.receive_terminal();
        }
    }

    /// The answer to the request, once there is one: the process has ended and all it wrote is sent.
    pub fn outcome(&self) -> Option<Result<Value, (String, String)>> {
        let code = self.ended.filter(|_| self.outputs.is_empty())?;
        let log = std::fs::read_to_string(self.files.join("log")).unwrap_or_default();
        Some(match last_error(&log).filter(|_| code != 0) {
            Some(message) => Err((error_kind(&message).to_string(), message)),
            None => Ok(json!({ "exit_code": code })),
        })
    }

    /// Closes what is open.
    fn release(&mut self) {
        self.close_stdin();
        for (_, fd) in std::mem::take(&mut self.outputs) {
            if !matches!(self.terminal, Terminal::Here(master) if master == fd) {
                sys::close(fd);
            }
        }
        match std::mem::replace(&mut self.terminal, Terminal::None) {
            Terminal::Listening(fd) | Terminal::Arriving(fd) | Terminal::Here(fd) => sys::close(fd),
            Terminal::None => {}
        }
        self.input.clear();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.release();
        if !self.is_connection {
            drop(std::fs::remove_dir_all(&self.files));
        }
    }
}

fn number_of(given: &Value) -> Result<u32, String> {
    let number = given["stream"].as_u64().filter(|n| *n <= u64::from(u32::MAX));
    number.map(|n| n as u32).ok_or_else(|| "stream is missing".to_string())
}

fn text_of(error: std::io::Error) -> String {
    error.to_string()
}

/// Rows and columns.
fn size_of(given: &Value) -> (u16, u16) {
    let of = |name: &str, otherwise: u16| given[name].as_u64().map_or(otherwise, |n| n.min(10_000) as u16);
    (of("rows", 24), of("cols", 80))
}
