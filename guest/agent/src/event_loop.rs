//! The loop: host messages, container output, ended children. Everything that happens, happens here, one at a time.

use std::collections::HashMap;
use std::os::unix::io::RawFd;
use std::process::Command;

use hutch_proto::{Frame, CONTROL, STREAM_CREDIT, STREAM_DATA};
use serde_json::{json, Value};

use crate::audit::login_of;
use crate::channel::Channel;
use crate::containers::{prepare_files, spawn, text, Container, Stage};
use crate::kernel::{self, Kind};
use crate::streams::{Stream, MAX_STREAMS};
use crate::watch::Watch;
use crate::{commands, files, sys, Options};

/// While the host is away its return is announced by SIGIO; this only bounds the wait should one get lost.
const HOST_AWAY_MS: i32 = 1000;
const PROBE_OUTPUT: usize = 4096;
const MAX_CONTAINERS: usize = 4096;
/// What can wait is done so long after the first container runs: its start shall have the CPU for itself.
const SETTLE_NS: u64 = 2_000_000_000;

/// A health check's process.
struct Probe {
    request: u64,
    pid: i32,
    deadline_ns: u64,
    pipe: RawFd,
    output: Vec<u8>,
    ended: Option<i32>,
    timed_out: bool,
}

struct Agent<'a> {
    options: &'a Options,
    channel: Channel,
    containers: Vec<Container>,
    probes: Vec<Probe>,
    streams: Vec<Stream>,
    events: Vec<Value>,
    next_event: u64,
    next_probe: u64,
    /// Children that ended while a runtime was still at work: perhaps the container that it was starting.
    early: Vec<(i32, i32, i32)>,
    /// When what can wait is to be done; None: nothing waits.
    settle_at_ns: Option<u64>,
    has_settled: bool,
    /// Runtime threat detection; None: nothing of it is there.
    watch: Option<Watch>,
    done: bool,
}

type Answer = Result<Value, (String, String)>;

/// Runs until `shutdown` (or SIGTERM, in tests).
pub fn run(options: &Options) -> Result<(), String> {
    let channel = match (&options.socket, options.vsock_port) {
        (Some(path), _) => Channel::listen(path)?,
        (None, Some(port)) => Channel::listen_vsock(port)?,
        (None, None) => Channel::open_port()?,
    };
    let signals = sys::signal_fd().map_err(|e| format!("signalfd: {}", e))?;
    if !options.is_init {
        sys::become_subreaper();
    }
    let mut agent = Agent {
        options,
        channel,
        containers: Vec::new(),
        probes: Vec::new(),
        streams: Vec::new(),
        events: Vec::new(),
        next_event: 1,
        next_probe: 1,
        early: Vec::new(),
        settle_at_ns: None,
        has_settled: !options.is_init,
        watch: None,
        done: false,
    };
    while !agent.done {
        agent.turn(signals);
    }
    Ok(())
}

impl Agent<'_> {
    fn turn(&mut self, signals: RawFd) {
        let mut fds = vec![libc::pollfd { fd: signals, events: libc::POLLIN, revents: 0 }, self.channel.poll_entry()];
        let pipes = self.containers.iter().flat_map(|c| c.logs.poll_fds());
        let probes = self.probes.iter().map(|p| p.pipe).filter(|fd| *fd >= 0);
        fds.extend(pipes.chain(probes).map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
        let has_room = self.channel.has_room();
        fds.extend(self.streams.iter().flat_map(|s| s.poll_entries(has_room)));
        fds.extend(self.watch.iter().map(|w| libc::pollfd { fd: w.fd(), events: libc::POLLIN, revents: 0 }));
        let timeout_ms = self.timeout_ms(&fds[1]);
        sys::poll(&mut fds, timeout_ms);
        if let Some(watch) = &mut self.watch {
            // Before children are reaped: what they did came first.
            watch.take();
        }
        if fds[0].revents != 0 {
            self.take_signals(signals);
        } else if fds[1].fd < 0 {
            self.channel.host_changed();
        }
        for ready in fds.iter().skip(2).filter(|p| p.revents != 0) {
            self.read_pipe(ready.fd);
        }
        if fds[1].revents != 0 {
            for frame in self.channel.service(fds[1].revents) {
                self.handle(&frame);
            }
        }
        self.expire_probes();
        self.answer_probes();
        self.serve_streams();
        self.settle();
        for container in &mut self.containers {
            container.logs.send(&mut self.channel);
        }
        self.forget_old_starts();
        self.tell_facts();
    }

    fn tell_facts(&mut self) {
        if let Some(watch) = &mut self.watch {
            let active = self.containers.iter().filter(|c| !matches!(c.stage, Stage::Exited));
            watch.leave_all_but(&active.map(|c| c.number).collect::<Vec<u32>>());
            watch.send(&mut self.channel);
        }
    }

    /// Turns threat detection on, for what is started from now on. Told twice, the first counts.
    fn start_watch(&mut self, given: &Value) -> Result<Value, String> {
        if !self.options.is_init {
            return Err("only the first process of a machine can watch the others".to_string());
        }
        if self.watch.is_none() {
            self.watch = Some(Watch::start(given)?);
        }
        Ok(json!({}))
    }

    /// A start that failed leaves nothing to be told about. One that exited stays known for `state` until the host has
    /// acknowledged exit and output, and the last one of each name for ever: so `state` stays short, however often a
    /// container is started again.
    fn forget_old_starts(&mut self) {
        let events = &self.events;
        let newest: HashMap<String, u32> = self.containers.iter().fold(HashMap::new(), |mut newest, c| {
            let number = newest.entry(c.name.clone()).or_insert(c.number);
            *number = c.number.max(*number);
            newest
        });
        self.containers.retain(|c| {
            if !matches!(c.stage, Stage::Exited) {
                return true;
            }
            let told = events.iter().all(|e| e["number"] != json!(c.number));
            c.pid != 0 && (newest.get(&c.name) == Some(&c.number) || !told || !c.logs.is_delivered())
        });
    }

    fn timeout_ms(&self, channel: &libc::pollfd) -> i32 {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        let waiting = self.probes.iter().filter(|p| !p.timed_out).map(|p| p.deadline_ns);
        let closing = self.streams.iter().filter_map(|s| s.deadline_ns(now));
        let next = waiting
            .chain(closing)
            .chain(self.settle_at_ns)
            .chain(self.watch.as_ref().and_then(Watch::deadline_ns))
            .min()
            .map(|d| (d.saturating_sub(now) / 1_000_000 + 1).min(60_000) as i32);
        match (next, channel.fd < 0) {
            (Some(ms), true) => ms.min(HOST_AWAY_MS),
            (Some(ms), false) => ms,
            (None, true) => HOST_AWAY_MS,
            (None, false) => -1,
        }
    }

    /// Gives the kernel the host's source of randomness for the time to come (it was seeded when the host greeted). Its
    /// first bytes come from the device, and the device is asked here and not earlier: in a template they would be in
    /// the memory that all VMs made from it start with.
    fn settle(&mut self) {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        if self.settle_at_ns.map_or(true, |at| at > now) {
            return;
        }
        self.settle_at_ns = None;
        if let Err(message) = kernel::bind_next(Kind::Random) {
            self.emit(json!({ "event": "agent_error", "message": message }));
        }
    }

    fn take_signals(&mut self, signals: RawFd) {
        let mut buffer = [0; 128];
        while let Ok(Some(count)) = sys::read_some(signals, &mut buffer) {
            if count < 4 {
                break;
            }
            let number = u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as i32;
            match number {
                libc::SIGIO => self.channel.host_changed(),
                libc::SIGTERM if !self.options.is_init => self.done = true,
                _ => {}
            }
        }
        while let Some((pid, code, signal)) = sys::reap() {
            self.child_ended(pid, code, signal);
        }
    }

    fn child_ended(&mut self, pid: i32, code: i32, signal: i32) {
        if let Some(probe) = self.probes.iter_mut().find(|p| p.pid == pid) {
            probe.ended = Some(code);
            return;
        }
        if let Some(stream) = self.streams.iter_mut().find(|s| s.runtime_pid == pid) {
            return stream.runtime_ended(code);
        }
        let runtime = self.options.runtime.clone();
        for index in 0..self.containers.len() {
            let container = &mut self.containers[index];
            match container.stage {
                Stage::Starting { request, runtime_pid } if runtime_pid == pid => {
                    let answer = container.runtime_ended(code).map(|pid| json!({ "pid": pid }));
                    if answer.is_err() {
                        container.logs.abandon();
                        container.clean_up(&runtime);
                        container.pid = 0;
                    }
                    self.answer(request, answer);
                    if !std::mem::replace(&mut self.has_settled, true) {
                        self.settle_at_ns = Some(sys::clock_ns(libc::CLOCK_MONOTONIC) + SETTLE_NS);
                    }
                    return self.take_early();
                }
                Stage::Running if container.pid == pid => {
                    let event = container.ended(code, signal);
                    container.clean_up(&runtime);
                    return self.emit(event);
                }
                _ => {}
            }
        }
        // A container so short that it ended before crun did: its exit is taken up when crun's is.
        self.orphan_ended(pid, code, signal);
    }

    fn orphan_ended(&mut self, pid: i32, code: i32, signal: i32) {
        if self.containers.iter().any(|c| matches!(c.stage, Stage::Starting { .. })) {
            self.early.push((pid, code, signal));
        }
    }

    /// A container now has its pid: perhaps that process has ended already.
    fn take_early(&mut self) {
        for (pid, code, signal) in std::mem::take(&mut self.early) {
            self.child_ended(pid, code, signal);
        }
    }

    fn emit(&mut self, mut event: Value) {
        event["seq"] = json!(self.next_event);
        self.next_event += 1;
        self.channel.send_control(&event);
        self.events.push(event);
    }

    fn answer(&mut self, request: u64, answer: Answer) {
        let document = match answer {
            Ok(ok) => json!({ "id": request, "ok": ok }),
            Err((kind, message)) => json!({ "id": request, "error": { "kind": kind, "message": message } }),
        };
        self.channel.send_control(&document);
    }

    fn read_pipe(&mut self, fd: RawFd) {
        if let Some(stream) = self.streams.iter_mut().find(|s| s.owns(fd)) {
            return stream.service(&mut self.channel);
        }
        if let Some(container) = self.containers.iter_mut().find(|c| c.logs.poll_fds().contains(&fd)) {
            return container.logs.read(fd);
        }
        if let Some(probe) = self.probes.iter_mut().find(|p| p.pipe == fd) {
            let mut buffer = [0; PROBE_OUTPUT];
            match sys::read_some(fd, &mut buffer) {
                Ok(Some(count)) if count > 0 => {
                    let room = PROBE_OUTPUT - probe.output.len();
                    probe.output.extend_from_slice(&buffer[..count.min(room)]);
                }
                Ok(None) => {}
                _ => {
                    sys::close(fd);
                    probe.pipe = -1;
                }
            }
        }
    }

    fn handle(&mut self, frame: &Frame) {
        if frame.kind == STREAM_DATA || frame.kind == STREAM_CREDIT {
            return self.stream_frame(frame);
        }
        if frame.kind != CONTROL {
            return;
        }
        let given = match parse_object(&frame.payload) {
            Some(given) => given,
            None => return,
        };
        let request = given["id"].as_u64().unwrap_or(0);
        let operation = match given["op"].as_str() {
            Some(operation) => operation,
            None => return,
        };
        let bad = |message: String| ("BadRequest".to_string(), message);
        let failed = |message: String| ("Failed".to_string(), message);
        let answer = match operation {
            "hello" => commands::hello(&given, self.options.is_init).map_err(bad).map(|ok| self.greeted(ok)),
            "configure" => commands::configure(&given).map_err(failed),
            "disks" => commands::disks(&given).map_err(failed),
            "files" => files::fill(&given).map_err(failed),
            "freeze" => commands::freeze().map_err(failed),
            "thaw" => commands::thaw().map_err(failed),
            "identify" => self.identify(&given).map_err(failed),
            "state" => Ok(json!({ "containers": self.describe() })),
            "stats" => Ok(self.stats()),
            "kill" => self.signal(&given).map_err(bad),
            "log_ack" => return self.log_ack(&given),
            "event_ack" => return self.event_ack(&given),
            "watch" => self.start_watch(&given).map_err(failed),
            "facts_ack" => {
                if let (Some(watch), Some(sequence)) = (&mut self.watch, given["seq"].as_u64()) {
                    watch.acknowledge(sequence);
                }
                return;
            }
            "start" => match self.start(request, &given) {
                Ok(()) => return,
                Err(message) => Err(failed(message)),
            },
            "exec" => match self.probe(request, &given) {
                Ok(()) => return,
                Err(message) => Err(failed(message)),
            },
            "exec_stream" => match self.open_stream(request, &given) {
                Ok(()) => return,
                Err(message) => Err(failed(message)),
            },
            "connect" => match self.connect(request, &given) {
                Ok(()) => return,
                Err(message) => Err(failed(message)),
            },
            "exec_resize" => return self.with_stream(&given, |s| s.resize(&given)),
            "exec_close" => return self.with_stream(&given, Stream::close),
            "exec_signal" => {
                let signal = given["signal"].as_i64().filter(|s| (1..=64).contains(s)).unwrap_or(0) as i32;
                return self.with_stream(&given, |s| s.signal(signal));
            }
            "shutdown" => {
                self.done = true;
                Ok(json!({}))
            }
            _ => Err(("UnknownOp".to_string(), format!("unknown operation {}", operation))),
        };
        self.answer(request, answer);
    }

    /// A new conversation: what an earlier one did not acknowledge is said again.
    fn greeted(&mut self, mut ok: Value) -> Value {
        self.channel.restart();
        // Whoever had these is gone.
        for stream in &mut self.streams {
            stream.close();
        }
        for container in &mut self.containers {
            container.logs.resend();
        }
        for event in &self.events {
            self.channel.send_control(event);
        }
        if let Some(watch) = &self.watch {
            watch.resend(&mut self.channel);
        }
        ok["containers"] = json!(self.describe());
        ok
    }

    /// A VM that was copied becomes another one: as `configure`, and for the containers that are in it already. To be
    /// said while they are frozen.
    fn identify(&self, given: &Value) -> Result<Value, String> {
        commands::configure(given)?;
        prepare_files(given)?;
        let names = given["hostnames"].as_object();
        for container in self.containers.iter().filter(|c| matches!(c.stage, Stage::Running)) {
            if let Some(name) = names.and_then(|n| n.get(&container.name)).and_then(Value::as_str) {
                sys::set_hostname_of(container.pid, name)
                    .map_err(|e| format!("host name of {}: {}", container.name, e))?;
            }
        }
        Ok(json!({}))
    }

    fn describe(&self) -> Vec<Value> {
        self.containers.iter().map(Container::describe).collect()
    }

    fn stats(&self) -> Value {
        let mut stats = commands::stats();
        let running = self.containers.iter().filter(|c| matches!(c.stage, Stage::Running));
        let each: serde_json::Map<String, Value> = running.map(|c| (c.name.clone(), c.stats())).collect();
        stats["containers"] = Value::Object(each);
        stats
    }

    fn start(&mut self, request: u64, given: &Value) -> Result<(), String> {
        if self.containers.len() >= MAX_CONTAINERS {
            return Err("too many starts in one VM".to_string());
        }
        let mut watch = self.watch.take();
        let pid_of = |name: &str| self.running(name).map(|c| c.pid);
        let started = Container::start(&self.options.runtime, &self.options.state, request, given, &pid_of, &mut watch);
        self.watch = watch;
        let container = started?;
        self.containers.push(container);
        Ok(())
    }

    fn running(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name && matches!(c.stage, Stage::Running))
    }

    fn signal(&mut self, given: &Value) -> Result<Value, String> {
        let signal = given["signal"].as_i64().filter(|s| (1..=64).contains(s)).ok_or("signal is missing")?;
        if let Some(container) = self.running(&text(given, "name")?) {
            sys::kill(container.pid, signal as i32);
        }
        Ok(json!({}))
    }

    fn log_ack(&mut self, given: &Value) {
        let number = given["number"].as_u64();
        for container in self.containers.iter_mut().filter(|c| Some(u64::from(c.number)) == number) {
            container.logs.acknowledge(given["seq"].as_u64().unwrap_or(0));
        }
    }

    fn event_ack(&mut self, given: &Value) {
        let seq = given["seq"].as_u64().unwrap_or(0);
        self.events.retain(|e| e["seq"].as_u64().unwrap_or(0) > seq);
    }

    fn probe(&mut self, request: u64, given: &Value) -> Result<(), String> {
        let name = text(given, "name")?;
        let number = self.running(&name).map(|c| c.number).ok_or(format!("{} is not running", name))?;
        let file = self.options.state.join(format!("process-{}.json", self.next_probe));
        self.next_probe += 1;
        std::fs::write(&file, given["process"].to_string()).map_err(|e| format!("process: {}", e))?;
        let (read, write) = sys::pipe().map_err(|e| format!("pipe: {}", e))?;
        // SAFETY: `write` was just made and is ours.
        let second = unsafe { libc::fcntl(write, libc::F_DUPFD_CLOEXEC, 0) };
        let mut command = Command::new(&self.options.runtime);
        command.arg("--cgroup-manager=cgroupfs").args(["exec", "--process"]).arg(&file).arg(format!("c{}", number));
        if self.watch.is_some() {
            sys::set_login(&mut command, login_of(number, true));
        }
        let pid = spawn(&mut command, (write, second)).map_err(|e| format!("crun: {}", e))?;
        if let Some(watch) = &mut self.watch {
            watch.ran(pid);
        }
        sys::set_non_blocking(read, false);
        let timeout_ms = given["timeout_ms"].as_u64().unwrap_or(60_000).min(3_600_000);
        let deadline_ns = sys::clock_ns(libc::CLOCK_MONOTONIC) + timeout_ms * 1_000_000;
        let output = Vec::new();
        self.probes.push(Probe { request, pid, deadline_ns, pipe: read, output, ended: None, timed_out: false });
        Ok(())
    }

    fn open_stream(&mut self, request: u64, given: &Value) -> Result<(), String> {
        let name = text(given, "name")?;
        let number = self.running(&name).map(|c| c.number).ok_or(format!("{} is not running", name))?;
        self.check_new_stream(given)?;
        let options = self.options;
        let login = self.watch.as_ref().map(|_| login_of(number, true));
        let container = (format!("c{}", number), login);
        let stream = Stream::start(&options.runtime, &options.state, request, given, (&container.0, container.1))?;
        if let Some(watch) = &mut self.watch {
            watch.ran(stream.runtime_pid);
        }
        self.streams.push(stream);
        Ok(())
    }

    fn check_new_stream(&self, given: &Value) -> Result<(), String> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(format!("there are {} exec'ed processes and connections already", MAX_STREAMS));
        }
        if self.streams.iter().any(|s| given["stream"] == json!(s.number)) {
            return Err("the stream is in use".to_string());
        }
        Ok(())
    }

    fn connect(&mut self, request: u64, given: &Value) -> Result<(), String> {
        self.check_new_stream(given)?;
        self.streams.push(Stream::connect(request, given)?);
        Ok(())
    }

    fn with_stream(&mut self, given: &Value, work: impl FnOnce(&mut Stream)) {
        if let Some(stream) = self.streams.iter_mut().find(|s| given["stream"] == json!(s.number)) {
            work(stream);
        }
    }

    fn stream_frame(&mut self, frame: &Frame) {
        if let Some(stream) = self.streams.iter_mut().find(|s| s.number == frame.channel) {
            if frame.kind == STREAM_DATA {
                stream.receive(&frame.payload);
            } else {
                stream.give_credit(&frame.payload);
            }
            stream.service(&mut self.channel);
        }
    }

    /// Lets streams go on whose window or channel has room again, and answers for those that have ended.
    fn serve_streams(&mut self) {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        for index in (0..self.streams.len()).rev() {
            let stream = &mut self.streams[index];
            stream.expire(now);
            stream.service(&mut self.channel);
            if let Some(outcome) = stream.outcome() {
                let request = self.streams.swap_remove(index).request;
                self.answer(request, outcome);
            }
        }
    }

    fn expire_probes(&mut self) {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        for probe in self.probes.iter_mut().filter(|p| !p.timed_out && p.ended.is_none() && p.deadline_ns <= now) {
            probe.timed_out = true;
            sys::kill(probe.pid, libc::SIGKILL);
        }
    }

    fn answer_probes(&mut self) {
        let (ended, waiting): (Vec<Probe>, Vec<Probe>) =
            std::mem::take(&mut self.probes).into_iter().partition(|p| p.ended.is_some());
        self.probes = waiting;
        for mut probe in ended {
            self.drain(&mut probe);
            let output = String::from_utf8_lossy(&probe.output).into_owned();
            let ok = json!({ "exit_code": probe.ended, "timed_out": probe.timed_out, "output": output });
            self.answer(probe.request, Ok(ok));
        }
    }

    /// What the process wrote just before it ended.
    fn drain(&mut self, probe: &mut Probe) {
        let mut buffer = [0; PROBE_OUTPUT];
        while probe.pipe >= 0 && probe.output.len() < PROBE_OUTPUT {
            match sys::read_some(probe.pipe, &mut buffer) {
                Ok(Some(count)) if count > 0 => {
                    let room = PROBE_OUTPUT - probe.output.len();
                    probe.output.extend_from_slice(&buffer[..count.min(room)]);
                }
                _ => break,
            }
        }
        if probe.pipe >= 0 {
            sys::close(probe.pipe);
        }
    }
}

fn parse_object(payload: &[u8]) -> Option<Value> {
    serde_json::from_slice::<Value>(payload).ok().filter(Value::is_object)
}
