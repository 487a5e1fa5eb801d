//! Runtime threat detection, the guest's part: what processes of containers did, as bounded facts for the host to judge.
//!
//! Nothing here runs, and nothing is asked of the kernel, before the host says `watch`. Which container a process belongs to
//! is in its login uid (see `audit`), which it inherits and can't change; so a process that ended long ago has it too.

use std::collections::{HashMap, VecDeque};
use std::os::unix::io::RawFd;

use serde_json::{json, Value};

use crate::audit::{self, Audit, Rule};
use crate::audit_record::{cut, Assembler, Happening, MAX_TEXT};
use crate::channel::Channel;
use crate::load::Load;
use crate::processes::{self, Processes};
use crate::sys;

const MAX_ENDED: usize = 64;
const MAX_RUNTIMES: usize = 64;
const MAX_DIRECTORIES: usize = 64;
/// Facts of one container and kind: so many at once, and so many a second from then on.
const BURST: f64 = 400.0;
const PER_SECOND: f64 = 50.0;
const MAX_QUEUED: usize = 1024;
const MAX_BATCH: usize = 64;
const MAX_BATCH_BYTES: usize = 40 * 1024;
const MAX_UNACKNOWLEDGED: usize = 4;
/// Records taken in one turn of the loop, which has more to do.
const MAX_RECORDS: usize = 512;
const ASK_EVERY_NS: u64 = 2_000_000_000;

/// A container whose processes are watched.
pub struct Place {
    pub number: u32,
    pub name: String,
    /// Where what it changed of its image is.
    pub upper: String,
    rules: Vec<Rule>,
    has_ended: bool,
}

/// The token bucket of a container and kind.
struct Allowance {
    left: f64,
    at_ns: u64,
}

/// Everything of the detection; there is one once the host has asked for it.
pub struct Watch {
    audit: Audit,
    assembler: Assembler,
    sources: Vec<String>,
    directories: Vec<String>,
    places: Vec<Place>,
    processes: Processes,
    runtimes: VecDeque<i32>,
    load: Option<Load>,
    allowances: HashMap<(u32, &'static str), Allowance>,
    queue: VecDeque<Value>,
    unacknowledged: VecDeque<(u64, Value)>,
    next_batch: u64,
    dropped: u64,
    told_losses: u64,
    asked_at_ns: u64,
}

impl Watch {
    /// Turns it on. `given`: `sources` and `directories` as in the protocol.
    pub fn start(given: &Value) -> Result<Watch, String> {
        let texts = |name: &str| -> Vec<String> {
            given[name].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
        };
        let (sources, directories) = (texts("sources"), texts("directories"));
        if directories.len() > MAX_DIRECTORIES || directories.iter().any(|d| !d.starts_with('/') || d.contains("..")) {
            return Err("directories must be at most 64 absolute paths".to_string());
        }
        let mut audit = Audit::open().map_err(|e| format!("audit: {}", e))?;
        audit.enable().map_err(|e| format!("audit: {}", e))?;
        for rule in call_rules(&sources) {
            audit.add(&rule).map_err(|e| format!("audit rule {}: {}", rule.key, e))?;
        }
        let window_s = given["load_s"].as_u64().unwrap_or(60).clamp(6, 3600);
        let load = sources.iter().any(|s| s == "load").then(|| Load::new(window_s));
        Ok(Watch {
            audit,
            assembler: Assembler::default(),
            sources,
            directories,
            places: Vec::new(),
            processes: Processes::default(),
            runtimes: VecDeque::new(),
            load,
            allowances: HashMap::new(),
            queue: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            next_batch: 1,
            dropped: 0,
            told_losses: 0,
            asked_at_ns: 0,
        })
    }

    /// What to poll.
    pub fn fd(&self) -> RawFd {
        self.audit.fd()
    }

    /// When there is something to do although nothing has happened.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.load.as_ref().and_then(Load::deadline_ns)
    }

    /// A container is about to be started, its root file system below `root`. What can't be watched is said.
    pub fn enter(&mut self, number: u32, name: &str, root: &str, upper: &str) -> Result<(), String> {
        let mut place =
            Place { number, name: name.to_string(), upper: upper.to_string(), rules: Vec::new(), has_ended: false };
        if self.sources.iter().any(|s| s == "open") {
            for directory in &self.directories {
                let path = format!("{}{}", root, directory.trim_end_matches('/'));
                // What a link leads to may not be the container's at all.
                if !processes::is_real_directory(root, directory) {
                    continue;
                }
                let rule = Rule::writes(path, directory.clone());
                self.audit.add(&rule).map_err(|e| format!("writes to {} of {}: {}", directory, name, e))?;
                place.rules.push(rule);
            }
        }
        self.places.push(place);
        Ok(())
    }

    /// A container runtime was run by us.
    pub fn ran(&mut self, pid: i32) {
        self.runtimes.push_back(pid);
        if self.runtimes.len() > MAX_RUNTIMES {
            self.runtimes.pop_front();
        }
    }

    /// Lets go of the starts that are over. Records of their last moments may still be on their way, so for a while they
    /// stay known.
    pub fn leave_all_but(&mut self, running: &[u32]) {
        for place in self.places.iter_mut().filter(|p| !p.has_ended && !running.contains(&p.number)) {
            place.has_ended = true;
            for rule in std::mem::take(&mut place.rules) {
                // The kernel drops a rule by itself when its directory is gone.
                drop(self.audit.remove(&rule));
            }
        }
        while self.places.iter().filter(|p| p.has_ended).count() > MAX_ENDED {
            if let Some(at) = self.places.iter().position(|p| p.has_ended) {
                let number = self.places.remove(at).number;
                self.allowances.retain(|(n, _), _| *n != number);
            }
        }
    }

    /// Takes in what the kernel has told.
    pub fn take(&mut self) {
        for _ in 0..MAX_RECORDS {
            let (kind, text) = match self.audit.next() {
                Some(record) => record,
                None => break,
            };
            if let Some(happening) = self.assembler.take(kind, &text) {
                self.happened(&happening);
            }
        }
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        if let Some(load) = &mut self.load {
            for busy in load.sample(now, &mut self.processes) {
                if let Some(process) = self.processes.get(busy.pid).cloned() {
                    if let Some(place) = self.places.iter().find(|p| p.number == process.number) {
                        let mut fact = processes::describe("load", place, busy.pid, &process);
                        fact["time_ns"] = json!(sys::clock_ns(libc::CLOCK_REALTIME));
                        fact["cpu_percent"] = json!(busy.percent);
                        fact["cpu_s"] = json!(busy.seconds);
                        self.keep(process.number, "load", fact);
                    }
                }
            }
        }
    }

    fn happened(&mut self, happening: &Happening) {
        let (number, by_exec) = match audit::number_of(happening.login) {
            Some(found) => found,
            None => return,
        };
        let kind = kind_of(&happening.key);
        // The runtime's own doing, until it becomes the container's process. A container's process that takes the runtime's
        // name is told of: we did not run it, and it comes from one whose exec was seen.
        if happening.exe.starts_with(processes::RUNTIME_EXE) {
            let is_ours = match kind {
                "exec" => self.runtimes.contains(&happening.pid),
                _ => !self.processes.has_known_origin(happening.pid, happening.parent),
            };
            if is_ours {
                if kind == "exec" {
                    self.processes.forget(happening.pid);
                }
                return;
            }
        }
        let place = match self.places.iter().find(|p| p.number == number) {
            Some(place) => place,
            None => return,
        };
        let gained_root = self.processes.note(happening, number, by_exec, kind);
        if kind == "connect" {
            if let Some((_, port)) = &happening.peer {
                self.processes.connected(happening.pid, *port);
            }
        }
        let process = match self.processes.get(happening.pid).cloned() {
            Some(process) if self.sources.iter().any(|s| s == kind) => process,
            _ => return,
        };
        let mut fact = processes::describe(kind, place, happening.pid, &process);
        fact["time_ns"] = json!(happening.time_ns);
        fact["gained_root"] = json!(gained_root);
        match kind {
            "connect" => match &happening.peer {
                Some((address, port)) => {
                    fact["address"] = json!(address);
                    fact["port"] = json!(port);
                }
                None => return,
            },
            "open" | "chmod" => {
                fact["syscall"] = json!(processes::syscall_name(happening.arch, happening.syscall));
                fact["path"] = json!(cut(processes::target(happening, kind == "open"), MAX_TEXT));
                fact["mode"] = json!(processes::new_mode(happening));
            }
            "exec" => {
                fact["path"] = json!(happening.paths.first().map_or("", |p| &p.name));
                if happening.gained_capabilities != 0 {
                    fact["gained_capabilities"] = json!(format!("{:x}", happening.gained_capabilities));
                }
            }
            _ => fact["syscall"] = json!(processes::syscall_name(happening.arch, happening.syscall)),
        }
        self.keep(number, kind, fact);
    }

    /// Keeps a fact for the host, if its container has not told too many.
    fn keep(&mut self, number: u32, kind: &'static str, fact: Value) {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        let allowance = self.allowances.entry((number, kind)).or_insert(Allowance { left: BURST, at_ns: now });
        if !spend(allowance, now) || self.queue.len() >= MAX_QUEUED {
            self.dropped += 1;
            return;
        }
        self.queue.push_back(fact);
    }

    /// Sends what there is, as far as the host keeps up.
    pub fn send(&mut self, channel: &mut Channel) {
        let losses = self.losses();
        while (!self.queue.is_empty() || losses > self.told_losses)
            && self.unacknowledged.len() < MAX_UNACKNOWLEDGED
            && channel.has_room()
        {
            let batch = self.next_facts();
            let sequence = self.next_batch;
            self.next_batch += 1;
            self.told_losses = losses;
            let document = json!({ "event": "runtime_facts", "seq": sequence, "facts": batch, "dropped": losses });
            channel.send_control(&document);
            self.unacknowledged.push_back((sequence, document));
            self.ask_for_losses();
        }
    }

    fn next_facts(&mut self) -> Vec<Value> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while batch.len() < MAX_BATCH {
            let size = match self.queue.front() {
                Some(fact) => fact.to_string().len(),
                None => break,
            };
            if !batch.is_empty() && bytes + size > MAX_BATCH_BYTES {
                break;
            }
            bytes += size;
            batch.extend(self.queue.pop_front());
        }
        batch
    }

    /// All that was dropped since the start: by us, and by the kernel (records, of which a fact is made of several).
    fn losses(&self) -> u64 {
        self.dropped + self.assembler.dropped + self.audit.lost
    }

    fn ask_for_losses(&mut self) {
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        if now >= self.asked_at_ns + ASK_EVERY_NS {
            self.asked_at_ns = now;
            self.audit.ask_for_losses();
        }
    }

    /// The host has these, and all before them.
    pub fn acknowledge(&mut self, sequence: u64) {
        self.unacknowledged.retain(|(s, _)| *s > sequence);
    }

    /// A new conversation: what was not acknowledged is said again.
    pub fn resend(&self, channel: &mut Channel) {
        for (_, document) in &self.unacknowledged {
            channel.send_control(document);
        }
    }
}

fn spend(allowance: &mut Allowance, now_ns: u64) -> bool {
    let passed_s = now_ns.saturating_sub(allowance.at_ns) as f64 / 1e9;
    allowance.left = (allowance.left + passed_s * PER_SECOND).min(BURST);
    allowance.at_ns = now_ns;
    if allowance.left < 1.0 {
        return false;
    }
    allowance.left -= 1.0;
    true
}

/// The kind of fact that a rule's key stands for: those of directories are their paths.
fn kind_of(key: &str) -> &'static str {
    match key {
        "exec" => "exec",
        "connect" => "connect",
        "setuid" => "setuid",
        "chmod" => "chmod",
        _ => "open",
    }
}

/// The rules that no container has a part in. Only of processes that have a login uid: ours have none.
fn call_rules(sources: &[String]) -> Vec<Rule> {
    let of = |key: &str, arch: u32, syscalls: &[u32], more: &[(u32, u32, u32)]| {
        let mut fields = vec![(audit::ARCH, audit::EQUAL, arch), (audit::LOGINUID_SET, audit::EQUAL, 1)];
        fields.extend_from_slice(more);
        Rule { syscalls: syscalls.to_vec(), fields, directory: None, key: key.to_string() }
    };
    let (wide, narrow, done) = (audit::ARCH_64, audit::ARCH_32, (audit::SUCCESS, audit::EQUAL, 1));
    // A process is known by its exec: that is needed whatever else is asked for.
    let mut rules = vec![of("exec", wide, &[59, 322], &[done]), of("exec", narrow, &[11, 358], &[done])];
    let has = |name: &str| sources.iter().any(|s| s == name);
    if has("connect") || has("load") {
        for family in [libc::AF_INET, libc::AF_INET6] {
            let field = (audit::SADDR_FAMILY, audit::EQUAL, family as u32);
            rules.push(of("connect", wide, &[42], &[field]));
            rules.push(of("connect", narrow, &[362, 102], &[field]));
        }
    }
    rules.push(of("setuid", wide, &[105, 113, 117], &[done]));
    rules.push(of("setuid", narrow, &[23, 70, 164, 203, 208, 213], &[done]));
    if has("chmod") {
        for bit in [0o4000, 0o2000] {
            let (second, third) = ((audit::ARG1, audit::HAS_BITS, bit), (audit::ARG2, audit::HAS_BITS, bit));
            rules.push(of("chmod", wide, &[90, 91], &[second, done]));
            rules.push(of("chmod", wide, &[268], &[third, done]));
            rules.push(of("chmod", narrow, &[15, 94], &[second, done]));
            rules.push(of("chmod", narrow, &[306], &[third, done]));
        }
    }
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_tells_too_much_is_cut_short_and_comes_back() {
        let mut allowance = Allowance { left: BURST, at_ns: 0 };
        let kept = (0..1000).filter(|_| spend(&mut allowance, 0)).count();
        assert_eq!(kept, BURST as usize);
        assert!(!spend(&mut allowance, 1));
        assert!(spend(&mut allowance, 1_000_000_000));
        assert!(allowance.left <= PER_SECOND);
    }

    #[test]
    fn only_what_is_asked_for_is_asked_of_the_kernel() {
        let keys = |sources: &[&str]| -> Vec<String> {
            let sources: Vec<String> = sources.iter().map(|s| s.to_string()).collect();
            call_rules(&sources).into_iter().map(|r| r.key).collect()
        };
        assert!(keys(&[]).iter().all(|k| k == "exec" || k == "setuid"));
        assert!(keys(&["connect"]).contains(&"connect".to_string()));
        assert!(!keys(&["connect"]).contains(&"chmod".to_string()));
    }
}
