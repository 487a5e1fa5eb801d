//! Processes of containers as their execs told of them, and what /proc adds while they live.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{json, Value};

use crate::audit::ARCH_32;
use crate::audit_record::{cut, Happening, MAX_TEXT};
use crate::watch::Place;

const MAX_PROCESSES: usize = 4096;
const MAX_ANCESTORS: usize = 8;
const MAX_PORTS: usize = 8;
/// How the kernel names the program of a container runtime: ours is a sealed file in memory.
pub const RUNTIME_EXE: &str = "/memfd:runtime (deleted)";

/// What is known of a process since its exec.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Process {
    pub number: u32,
    pub by_exec: bool,
    pub parent: i32,
    /// As it was at its exec: a process can give itself another later.
    pub name: String,
    pub exe: String,
    pub command_line: String,
    pub has_terminal: bool,
    pub uid: u32,
    pub euid: u32,
    pub suid: u32,
    /// Names of its parent and of that one's, at its exec.
    pub ancestors: Vec<String>,
    pub parent_exe: String,
    /// Ports that it connected to last.
    pub ports: Vec<u16>,
}

impl Process {
    fn is_without_root(&self) -> bool {
        self.uid != 0 && self.euid != 0 && self.suid != 0
    }
}

/// How a process came to be known, and what is known of its parent.
enum Origin {
    Exec(Option<Process>),
    Fork(Option<Process>),
}

/// All processes of which an exec was seen, the oldest forgotten when they are too many.
#[derive(Default)]
pub struct Processes {
    known: HashMap<i32, Process>,
    order: VecDeque<i32>,
}

impl Processes {
    pub fn get(&self, pid: i32) -> Option<&Process> {
        self.known.get(&pid)
    }

    pub fn pids(&self) -> impl Iterator<Item = i32> + '_ {
        self.known.keys().copied()
    }

    /// Remembers that a process connected to a port.
    pub fn connected(&mut self, pid: i32, port: u16) {
        if let Some(process) = self.known.get_mut(&pid) {
            process.ports.retain(|p| *p != port);
            process.ports.push(port);
            if process.ports.len() > MAX_PORTS {
                process.ports.remove(0);
            }
        }
    }

    /// Takes in what a process did; whether it became root by that without having been root before.
    pub fn note(&mut self, happening: &Happening, number: u32, by_exec: bool, kind: &str) -> bool {
        let is_new = kind == "exec" || !self.known.contains_key(&happening.pid);
        // Asked once: each answer is several files of /proc.
        let parent = if is_new { self.parent(happening.parent) } else { None };
        let before = self.known.get(&happening.pid).or(parent.as_ref());
        let had_no_root = before.map_or(false, Process::is_without_root);
        let gained = happening.euid == 0 && (happening.uid != 0 && kind == "exec" || had_no_root);
        if is_new {
            self.remember(
                happening,
                number,
                by_exec,
                if kind == "exec" { Origin::Exec(parent) } else { Origin::Fork(parent) },
            );
        }
        if let Some(process) = self.known.get_mut(&happening.pid) {
            process.uid = happening.uid;
            process.euid = happening.euid;
            process.suid = happening.suid;
        }
        gained
    }

    fn remember(&mut self, happening: &Happening, number: u32, by_exec: bool, origin: Origin) {
        if self.known.len() >= MAX_PROCESSES {
            self.forget_ended();
        }
        let (parent, is_exec) = match origin {
            Origin::Exec(parent) => (parent, true),
            Origin::Fork(parent) => (parent, false),
        };
        // A process that was forked and went on with the same program has the name that this one was run with.
        let program = parent.as_ref().filter(|p| !is_exec && p.exe == happening.exe).cloned();
        let ancestors = match &parent {
            Some(parent) => {
                std::iter::once(&parent.name).chain(&parent.ancestors).take(MAX_ANCESTORS).cloned().collect()
            }
            None => Vec::new(),
        };
        let process = Process {
            number,
            by_exec,
            parent: happening.parent,
            name: program.as_ref().map_or_else(|| name_of(happening), |p| p.name.clone()),
            exe: happening.exe.clone(),
            command_line: program.map_or_else(|| happening.command_line.clone(), |p| p.command_line),
            has_terminal: happening.has_terminal,
            uid: happening.uid,
            euid: happening.euid,
            suid: happening.suid,
            ancestors,
            parent_exe: parent.map_or_else(String::new, |p| p.exe),
            ports: Vec::new(),
        };
        if self.known.insert(happening.pid, process).is_none() {
            self.order.push_back(happening.pid);
        }
    }

    /// What is known of a parent: from its exec. If it was forked without one, it is called as it calls itself now, and
    /// what it was forked from comes before it: so a server's name is there although it gave itself another.
    fn parent(&self, pid: i32) -> Option<Process> {
        let exe = link(pid);
        let own = self.known.get(&pid).filter(|p| exe.is_empty() || exe == p.exe);
        let ids = ids(pid);
        if let Some(own) = own {
            let mut own = own.clone();
            if let Some([uid, euid, suid]) = ids {
                own.uid = uid;
                own.euid = euid;
                own.suid = suid;
            }
            return Some(own);
        }
        // The machine's own: the runtime, the agent. One without a program has ended already.
        if exe.is_empty() || exe.starts_with(RUNTIME_EXE) || pid <= 1 {
            return None;
        }
        let name = fs::read_to_string(format!("/proc/{}/comm", pid)).ok()?.trim_end().to_string();
        let [uid, euid, suid] = ids?;
        let before = self.forked_from(pid).filter(|p| p.exe == exe);
        let mut found = Process { name: cut(name, 64), exe, uid, euid, suid, ..Process::default() };
        if let Some(before) = before {
            found.command_line = before.command_line.clone();
            found.parent_exe = before.parent_exe.clone();
            found.ancestors = if found.name == before.name { Vec::new() } else { vec![before.name.clone()] };
            found.ancestors.extend(before.ancestors.iter().cloned());
        }
        Some(found)
    }

    /// Whether an exec of it, or of what it comes from, was seen.
    pub fn has_known_origin(&self, pid: i32, parent: i32) -> bool {
        let is_known = |p: &i32| self.known.contains_key(p);
        is_known(&pid) || is_known(&parent) || self.forked_from(pid).is_some() || self.forked_from(parent).is_some()
    }

    /// Another program has this pid now.
    pub fn forget(&mut self, pid: i32) {
        if self.known.remove(&pid).is_some() {
            self.order.retain(|p| *p != pid);
        }
    }

    /// The nearest process above one of which an exec was seen.
    fn forked_from(&self, pid: i32) -> Option<&Process> {
        let mut at = pid;
        for _ in 0..MAX_ANCESTORS {
            at = parent_of(at)?;
            if let Some(found) = self.known.get(&at) {
                return Some(found);
            }
        }
        None
    }

    /// Forgets those that are gone, and the oldest if there are still too many.
    pub fn forget_ended(&mut self) {
        let known = &mut self.known;
        self.order.retain(|pid| {
            let lives = Path::new(&format!("/proc/{}", pid)).exists();
            if !lives {
                known.remove(pid);
            }
            lives
        });
        while self.known.len() >= MAX_PROCESSES {
            match self.order.pop_front() {
                Some(oldest) => drop(self.known.remove(&oldest)),
                None => break,
            }
        }
    }
}

/// What a process is called: as the kernel does, after the file that was run. One that was run by a link of /proc (as busybox
/// runs itself) is called as it was told to be.
fn name_of(happening: &Happening) -> String {
    let by_link = happening.paths.first().map_or(false, |p| p.name.starts_with("/proc/"));
    let told = happening.command_line.split(' ').next().unwrap_or_default();
    match Path::new(told).file_name() {
        Some(name) if by_link => cut(name.to_string_lossy().into_owned(), 64),
        _ => happening.name.clone(),
    }
}

/// What every fact says.
pub fn describe(kind: &str, place: &Place, pid: i32, process: &Process) -> Value {
    json!({
        "kind": kind, "container": place.name, "number": place.number, "pid": pid, "parent_pid": process.parent,
        "name": process.name, "exe": process.exe, "command_line": process.command_line,
        "ancestors": process.ancestors, "parent_exe": process.parent_exe, "uid": process.uid, "euid": process.euid,
        "has_terminal": process.has_terminal, "by_exec": process.by_exec, "ports": process.ports,
        "is_new_file": is_new_file(&place.upper, &process.exe), "is_memory_file": process.exe.starts_with("/memfd:"),
    })
}

/// Whether a program came into the container after it was started: it is not as the image has it.
fn is_new_file(upper: &str, exe: &str) -> bool {
    !upper.is_empty()
        && exe.starts_with('/')
        && fs::symlink_metadata(format!("{}{}", upper, exe)).map_or(false, |m| m.is_file())
}

/// The file that a call was about, as the container names it. `key`: the watched directory that it is in.
pub fn target(happening: &Happening, is_below_key: bool) -> String {
    // A stacked file system tells of its own doings too, without names.
    let named = || happening.paths.iter().filter(|p| p.role != "PARENT" && !p.name.is_empty());
    let wanted =
        named().find(|p| p.role == "CREATE").or_else(|| named().next_back()).or_else(|| happening.paths.first());
    let name = wanted.map_or("", |p| p.name.as_str());
    let base = if happening.syscall == 257 { descriptor(happening) } else { None };
    let whole = normal(&Path::new(base.as_deref().unwrap_or(&happening.directory)).join(name));
    let key = happening.key.trim_end_matches('/');
    if !is_below_key || whole == key || whole.starts_with(&format!("{}/", key)) {
        return whole;
    }
    // The name leads there by a link or by an open directory; that it is there the kernel says.
    format!("{}/{}", key, Path::new(name).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()))
}

/// The directory that an `openat` starts from, while its process lives; None: the current one.
fn descriptor(happening: &Happening) -> Option<String> {
    let number = happening.arguments[0] as u32 as i32;
    if number < 0 {
        return None;
    }
    let path = fs::read_link(format!("/proc/{}/fd/{}", happening.pid, number)).ok()?;
    Some(path.to_string_lossy().into_owned())
}

/// Without `.` and `..`, by words alone.
fn normal(path: &Path) -> String {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out.to_string_lossy().into_owned()
}

/// The mode that a file gets by `chmod`, `fchmod`, `fchmodat`.
pub fn new_mode(happening: &Happening) -> u64 {
    let at = match (happening.arch, happening.syscall) {
        (ARCH_32, 306) => 2,
        (ARCH_32, 15 | 94) => 1,
        (ARCH_32, _) => return 0,
        (_, 268) => 2,
        (_, 90 | 91) => 1,
        _ => return 0,
    };
    happening.arguments[at] & 0o7777
}

/// The calls' names, of those that there are rules for.
pub fn syscall_name(arch: u32, number: u32) -> &'static str {
    if arch == ARCH_32 {
        return match number {
            5 => "open",
            8 => "creat",
            295 => "openat",
            437 => "openat2",
            38 | 302 | 353 => "rename",
            9 | 303 => "link",
            83 | 304 => "symlink",
            10 | 301 => "unlink",
            39 | 296 => "mkdir",
            15 | 94 | 306 => "chmod",
            23 | 213 => "setuid",
            70 | 203 => "setreuid",
            164 | 208 => "setresuid",
            _ => "write",
        };
    }
    match number {
        2 => "open",
        85 => "creat",
        257 => "openat",
        437 => "openat2",
        82 | 264 | 316 => "rename",
        86 | 265 => "link",
        88 | 266 => "symlink",
        87 | 263 => "unlink",
        83 | 258 => "mkdir",
        90 | 91 | 268 => "chmod",
        92 | 93 | 94 | 260 => "chown",
        133 | 259 => "mknod",
        76 => "truncate",
        105 => "setuid",
        113 => "setreuid",
        117 => "setresuid",
        _ => "write",
    }
}

/// Whether a path below a root is a directory, and no part of it a link.
pub fn is_real_directory(root: &str, path: &str) -> bool {
    let mut at = PathBuf::from(root);
    for part in Path::new(path).components() {
        if let Component::Normal(name) = part {
            at.push(name);
            if !fs::symlink_metadata(&at).map_or(false, |m| m.is_dir()) {
                return false;
            }
        }
    }
    true
}

/// User and system time of a process, in hundredths of a second; None if it is gone.
pub fn cpu_ticks(pid: i32) -> Option<u64> {
    let (_, rest) = status_words(pid)?;
    Some(rest.get(11)?.parse::<u64>().ok()? + rest.get(12)?.parse::<u64>().ok()?)
}

fn parent_of(pid: i32) -> Option<i32> {
    status_words(pid)?.1.get(1)?.parse().ok().filter(|p| *p > 1)
}

/// `/proc/PID/stat` behind the name, which may have any characters.
fn status_words(pid: i32) -> Option<(i32, Vec<String>)> {
    let text = fs::read_to_string(format!("/proc/{}/stat", pid)).ok()?;
    Some((pid, text.rsplit_once(')')?.1.split_whitespace().map(str::to_string).collect()))
}

fn link(pid: i32) -> String {
    let path = fs::read_link(format!("/proc/{}/exe", pid)).unwrap_or_default();
    cut(path.to_string_lossy().into_owned(), MAX_TEXT)
}

/// Real, effective and saved user id.
fn ids(pid: i32) -> Option<[u32; 3]> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid)).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("Uid:"))?;
    let mut numbers = line.split_whitespace().map(|n| n.parse::<u32>().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit_record::PathItem;

    fn exec(pid: i32, parent: i32, name: &str, uid: u32, euid: u32) -> Happening {
        let (name, exe) = (name.to_string(), "/bin/busybox".to_string());
        Happening { pid, parent, name, exe, uid, euid, suid: euid, ..Happening::default() }
    }

    // Pids above the kernel's limit: nothing in /proc is theirs.
    const FIRST: i32 = 50_000_000;

    #[test]
    fn ancestors_keep_the_names_of_their_execs() {
        let mut all = Processes::default();
        all.note(&exec(FIRST, 1, "httpd", 33, 33), 1, false, "exec");
        all.note(&exec(FIRST + 1, FIRST, "page.cgi", 33, 33), 1, false, "exec");
        all.note(&exec(FIRST + 2, FIRST + 1, "sh", 33, 33), 1, false, "exec");
        let shell = all.get(FIRST + 2).cloned().unwrap_or_default();
        assert_eq!(shell.ancestors, vec!["page.cgi".to_string(), "httpd".to_string()]);
    }

    #[test]
    fn root_that_was_not_there_before_is_noticed() {
        let mut all = Processes::default();
        assert!(!all.note(&exec(FIRST, 1, "server", 1000, 1000), 1, false, "exec"));
        assert!(all.note(&exec(FIRST + 1, FIRST, "su", 1000, 0), 1, false, "exec"), "by a setuid program");
        assert!(all.note(&exec(FIRST + 2, FIRST, "sh", 0, 0), 1, false, "exec"), "by nothing that is known");
        assert!(!all.note(&exec(FIRST + 3, FIRST + 2, "id", 0, 0), 1, false, "exec"), "it had it");
        assert!(all.note(&exec(FIRST, 1, "server", 0, 0), 1, false, "setuid"));
    }

    #[test]
    fn processes_are_bounded() {
        let mut all = Processes::default();
        for pid in 0..MAX_PROCESSES as i32 + 100 {
            all.note(&exec(FIRST + pid, 1, "x", 0, 0), 1, false, "exec");
        }
        assert!(all.known.len() <= MAX_PROCESSES && all.order.len() <= MAX_PROCESSES);
    }

    #[test]
    fn a_target_is_named_as_the_container_sees_it() {
        let item = |name: &str, role: &str| PathItem { name: name.to_string(), role: role.to_string(), mode: 0 };
        let mut happening =
            Happening { key: "/usr/bin".to_string(), directory: "/usr".to_string(), ..Happening::default() };
        happening.paths = vec![item("bin/", "PARENT"), item("bin/../bin/evil", "CREATE")];
        assert_eq!(target(&happening, true), "/usr/bin/evil");
        happening.paths = vec![item("/bin/evil", "NORMAL")];
        assert_eq!(target(&happening, true), "/usr/bin/evil");
        assert_eq!(target(&happening, false), "/bin/evil");
        happening.paths.clear();
        assert_eq!(target(&happening, true), "/usr/bin/");
    }

    #[test]
    fn links_are_not_followed() {
        assert!(is_real_directory("/", "/proc/sys"));
        assert!(!is_real_directory("/", "/proc/self/fd"));
        assert!(!is_real_directory("/", "/not/there"));
    }
}
