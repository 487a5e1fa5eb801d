//! The task's containers: each start is a bundle, a detached crun, and a process that we (as its reaper) see end.

use std::fs;
use std::os::unix::io::{FromRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{json, Value};

use crate::audit::login_of;
use crate::console::Console;
use crate::logs::Backlog;
use crate::watch::Watch;
use crate::{seed, sys};

const CGROUPS: &str = "/sys/fs/cgroup";

/// How far one start of a container is.
pub enum Stage {
    /// crun works on it; the request to answer when it is done.
    Starting {
        request: u64,
        runtime_pid: i32,
    },
    Running,
    Exited,
}

/// One start of a container.
pub struct Container {
    pub name: String,
    pub number: u32,
    pub stage: Stage,
    pub pid: i32,
    pub exit_code: i32,
    pub signal: i32,
    pub oom: bool,
    pub started_ns: u64,
    pub finished_ns: u64,
    pub logs: Backlog,
    bundle: PathBuf,
    cgroup: String,
    /// The runtime hands the container's terminal over here.
    console: Option<Console>,
    /// The end of its standard input that nobody writes to: as long as it is open, the container waits for more.
    held_input: Option<RawFd>,
}

/// Starts a program whose pid is awaited by the event loop only. `outputs`: fds for stdout and stderr (taken over).
pub fn spawn(command: &mut Command, outputs: (RawFd, RawFd)) -> std::io::Result<i32> {
    spawn_with_input(command, None, outputs)
}

/// The same, with a descriptor for stdin (taken over too).
pub fn spawn_with_input(command: &mut Command, input: Option<RawFd>, outputs: (RawFd, RawFd)) -> std::io::Result<i32> {
    // SAFETY: the caller hands the descriptors over; they are closed when they are replaced below.
    let (out, err) = unsafe { (Stdio::from_raw_fd(outputs.0), Stdio::from_raw_fd(outputs.1)) };
    let input = input.map_or_else(Stdio::null, |fd| {
        // SAFETY: the descriptor is open, and nobody else's.
        unsafe { Stdio::from_raw_fd(fd) }
    });
    command.stdin(input).stdout(out).stderr(err);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    // SAFETY: between fork and exec only a system call without allocation is made.
    unsafe {
        command.pre_exec(|| {
            sys::unblock_signals();
            Ok(())
        })
    };
    let spawned = command.spawn().map(|child| child.id() as i32);
    // Ours are closed at once, not when the caller drops the command: the end of a pipe is seen by its other end.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    spawned
}

impl Container {
    /// Makes the bundle and sets crun to work. The outcome comes when the runtime ends. `pid_of`: the first process of a
    /// container that runs, by name. `watch`: what looks at its processes.
    pub fn start(
        runtime: &Path,
        state: &Path,
        request: u64,
        given: &Value,
        pid_of: &dyn Fn(&str) -> Option<i32>,
        watch: &mut Option<Watch>,
    ) -> Result<Container, String> {
        let name = text(given, "name")?;
        let number = given["number"].as_u64().filter(|n| *n <= u64::from(u32::MAX)).ok_or("number is missing")? as u32;
        let bundle = state.join("containers").join(number.to_string());
        let root = bundle.join("rootfs");
        fs::create_dir_all(&root).map_err(|e| format!("{}: {}", root.display(), e))?;
        seed::seed_volumes(given)?;
        prepare_files(given)?;
        if let Some(image) = given["image"].as_str() {
            mount_root(image, &text(given, "scratch")?, &root)?;
        }
        let mut config = given["config"].clone();
        if !config.is_object() {
            return Err("config is missing".to_string());
        }
        config["root"]["path"] = json!(root);
        join_namespaces(&mut config, pid_of)?;
        let cgroup = config["linux"]["cgroupsPath"].as_str().unwrap_or_default().to_string();
        fs::write(bundle.join("config.json"), config.to_string()).map_err(|e| format!("config.json: {}", e))?;
        let pipes = [pipe()?, pipe()?];
        let (input, held_input) = input(given)?;
        let console = match config["process"]["terminal"].as_bool() {
            Some(true) => Some(Console::listen(&bundle).map_err(|e| format!("console: {}", e))?),
            _ => None,
        };
        let mut command = Command::new(runtime);
        command
            .arg("--cgroup-manager=cgroupfs")
            .arg("--log")
            .arg(bundle.join("runtime.log"))
            .args(["run", "--detach", "--pid-file"])
            .arg(bundle.join("pid"))
            .arg("--bundle")
            .arg(&bundle);
        if let Some(console) = &console {
            command.arg("--console-socket").arg(console.path());
        }
        command.arg(format!("c{}", number));
        if let Some(watch) = watch {
            let upper = given["scratch"].as_str().map_or_else(String::new, |s| format!("{}/upper", s));
            watch.enter(number, &name, &root.to_string_lossy(), &upper)?;
            sys::set_login(&mut command, login_of(number, false));
        }
        let runtime_pid =
            spawn_with_input(&mut command, input, (pipes[0].1, pipes[1].1)).map_err(|e| format!("crun: {}", e))?;
        if let Some(watch) = watch {
            watch.ran(runtime_pid);
        }
        Ok(Container {
            name,
            number,
            stage: Stage::Starting { request, runtime_pid },
            pid: 0,
            exit_code: 0,
            signal: 0,
            oom: false,
            started_ns: 0,
            finished_ns: 0,
            logs: Backlog::new(number, vec![(1, pipes[0].0), (2, pipes[1].0)]),
            bundle,
            cgroup,
            console,
            held_input,
        })
    }

    /// The runtime has ended: the container runs, or it can't (kind and message).
    pub fn runtime_ended(&mut self, code: i32) -> Result<i32, (String, String)> {
        self.started_ns = sys::clock_ns(libc::CLOCK_REALTIME);
        let pid = fs::read_to_string(self.bundle.join("pid")).ok().and_then(|t| t.trim().parse().ok());
        match pid {
            Some(pid) if code == 0 => {
                self.pid = pid;
                self.stage = Stage::Running;
                // A container without the terminal that it was to have runs on; its output is lost, which is said.
                match self.console.take().map(Console::take) {
                    Some(Ok(master)) => self.logs.add(1, master),
                    Some(Err(error)) => sys::console(&format!("hutch-agent: terminal of {}: {}\n", self.name, error)),
                    None => {}
                }
                Ok(pid)
            }
            _ => {
                self.stage = Stage::Exited;
                let log = fs::read_to_string(self.bundle.join("runtime.log")).unwrap_or_default();
                let message = last_error(&log).unwrap_or_else(|| format!("crun ended with exit code {}", code));
                Err((error_kind(&message).to_string(), message))
            }
        }
    }

    /// The container's first process has ended; the event that tells the host.
    pub fn ended(&mut self, exit_code: i32, signal: i32) -> Value {
        self.stage = Stage::Exited;
        self.finished_ns = sys::clock_ns(libc::CLOCK_REALTIME);
        self.exit_code = exit_code;
        self.signal = signal;
        self.oom = self.oom_kills() > 0;
        let mut event = json!({
            "event": "container_exited", "name": self.name, "number": self.number, "exit_code": exit_code,
            "signal": signal, "oom": self.oom, "time_ns": self.finished_ns,
        });
        if self.oom {
            if let Some((process, rss)) = oom_victim() {
                event["oom_process"] = json!(process);
                event["oom_rss_bytes"] = json!(rss);
            }
        }
        event
    }

    fn oom_kills(&self) -> u64 {
        let path = format!("{}/{}/memory.events", CGROUPS, self.cgroup.trim_start_matches('/'));
        let events = fs::read_to_string(path).unwrap_or_default();
        let count = events.lines().find_map(|l| l.strip_prefix("oom_kill "));
        count.and_then(|c| c.parse().ok()).unwrap_or(0)
    }

    /// Ends whatever the container left running and removes its cgroup and mounts; its files stay.
    pub fn clean_up(&mut self, runtime: &Path) {
        if let Some(fd) = self.held_input.take() {
            sys::close(fd);
        }
        let group = format!("{}/{}", CGROUPS, self.cgroup.trim_start_matches('/'));
        drop(fs::write(format!("{}/cgroup.kill", group), "1"));
        if let (Ok(out), Ok(err)) = (null_fd(), null_fd()) {
            let mut command = Command::new(runtime);
            command.args(["delete", "--force"]).arg(format!("c{}", self.number));
            drop(spawn(&mut command, (out, err)));
        }
        drop(sys::unmount(&self.bundle.join("rootfs").to_string_lossy()));
    }

    /// What the host is told of it.
    pub fn describe(&self) -> Value {
        let status = match self.stage {
            Stage::Starting { .. } => "starting",
            Stage::Running => "running",
            Stage::Exited => "exited",
        };
        json!({
            "name": self.name, "number": self.number, "status": status, "pid": self.pid,
            "exit_code": self.exit_code, "signal": self.signal, "oom": self.oom, "started_ns": self.started_ns,
            "finished_ns": self.finished_ns, "log_seq": self.logs.last_seq(),
            "log_acked": self.logs.acknowledged_seq(),
        })
    }

    /// What it uses now.
    pub fn stats(&self) -> Value {
        let group = format!("{}/{}", CGROUPS, self.cgroup.trim_start_matches('/'));
        let read = |file: &str| fs::read_to_string(format!("{}/{}", group, file)).unwrap_or_default();
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let usage = read("cpu.stat").lines().find_map(|l| l.strip_prefix("usage_usec ").map(str::to_string));
        json!({
            "cpu_ns": number(usage.unwrap_or_default()) * 1000,
            "memory_bytes": number(read("memory.current")),
            "pids": number(read("pids.current")),
        })
    }
}

/// A text member of a document.
pub fn text(given: &Value, name: &str) -> Result<String, String> {
    given[name].as_str().map(str::to_string).ok_or_else(|| format!("{} is missing", name))
}

fn pipe() -> Result<(RawFd, RawFd), String> {
    sys::pipe().map_err(|e| format!("pipe: {}", e))
}

/// A container's standard input: nothing, or (`interactive`) a pipe whose other end stays open.
fn input(given: &Value) -> Result<(Option<RawFd>, Option<RawFd>), String> {
    if given["interactive"] != json!(true) {
        return Ok((None, None));
    }
    let (read, write) = pipe()?;
    Ok((Some(read), Some(write)))
}

/// Namespaces whose path is `container:<name>` become those of that container's first process.
fn join_namespaces(config: &mut Value, pid_of: &dyn Fn(&str) -> Option<i32>) -> Result<(), String> {
    let namespaces = match config["linux"]["namespaces"].as_array_mut() {
        Some(namespaces) => namespaces,
        None => return Ok(()),
    };
    for namespace in namespaces {
        let name = match namespace["path"].as_str().and_then(|p| p.strip_prefix("container:")) {
            Some(name) => name.to_string(),
            None => continue,
        };
        let pid = pid_of(&name).ok_or(format!("container {} does not run", name))?;
        let kind = text(namespace, "type")?;
        namespace["path"] = json!(format!("/proc/{}/ns/{}", pid, kind));
    }
    Ok(())
}

/// A descriptor that swallows what is written to it.
pub fn null_fd() -> std::io::Result<RawFd> {
    use std::os::unix::io::IntoRawFd;
    Ok(fs::OpenOptions::new().write(true).open("/dev/null")?.into_raw_fd())
}

/// Makes the directories and writes the files that a request names.
pub fn prepare_files(given: &Value) -> Result<(), String> {
    for directory in given["directories"].as_array().into_iter().flatten() {
        let path = directory.as_str().ok_or("directories must be texts")?;
        fs::create_dir_all(path).map_err(|e| format!("{}: {}", path, e))?;
    }
    for (path, content) in given["files"].as_object().into_iter().flatten() {
        let content = content.as_str().ok_or("files must be texts")?;
        if let Some(parent) = Path::new(path).parent() {
            fs::create_dir_all(parent).map_err(|e| format!("{}: {}", path, e))?;
        }
        fs::write(path, content).map_err(|e| format!("{}: {}", path, e))?;
    }
    Ok(())
}

fn mount_root(image: &str, scratch: &str, root: &Path) -> Result<(), String> {
    let (upper, work) = (format!("{}/upper", scratch), format!("{}/work", scratch));
    for path in [&upper, &work] {
        fs::create_dir_all(path).map_err(|e| format!("{}: {}", path, e))?;
    }
    let options = format!("lowerdir={},upperdir={},workdir={}", image, upper, work);
    sys::mount("overlay", &root.to_string_lossy(), "overlay", 0, &options).map_err(|e| format!("overlay: {}", e))
}

/// The last error in crun's log (text lines, or JSON ones with a `msg`).
pub fn last_error(log: &str) -> Option<String> {
    let line = log.lines().rev().find(|l| !l.trim().is_empty())?;
    let message = serde_json::from_str::<Value>(line).ok().and_then(|v| v["msg"].as_str().map(str::to_string));
    Some(message.unwrap_or_else(|| line.trim().to_string()))
}

/// What kept a process from being run, as a word for the host's cause chain.
pub fn error_kind(message: &str) -> &'static str {
    if message.contains("executable file") || message.contains("No such file or directory") {
        "ExecNotFound"
    } else if message.contains("ermission denied") {
        "ExecNotExecutable"
    } else if message.contains("user") && message.contains("passwd") {
        "UserNotFound"
    } else {
        "RuntimeError"
    }
}

/// The process that the kernel's OOM killer named last, and its resident memory in bytes.
fn oom_victim() -> Option<(String, u64)> {
    use std::os::unix::io::IntoRawFd;
    let fd = fs::File::open("/dev/kmsg").ok()?.into_raw_fd();
    sys::set_non_blocking(fd, false);
    let mut buffer = vec![0; 8192];
    let mut found = None;
    while let Ok(Some(count)) = sys::read_some(fd, &mut buffer) {
        if count == 0 {
            break;
        }
        let record = String::from_utf8_lossy(&buffer[..count]).into_owned();
        if let Some((_, rest)) = record.split_once("Killed process ") {
            let process = rest.split_once('(').and_then(|(_, r)| r.split_once(')')).map(|(n, _)| n.to_string());
            let rss = rest.split_once("anon-rss:").and_then(|(_, r)| r.split_once("kB")).map(|(n, _)| n.to_string());
            found = process.zip(rss.and_then(|n| n.parse::<u64>().ok())).map(|(p, r)| (p, r * 1024)).or(found);
        }
    }
    sys::close(fd);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_get_their_kind() {
        assert_eq!(error_kind("executable file `foo` not found in $PATH"), "ExecNotFound");
        assert_eq!(error_kind("open executable: Permission denied"), "ExecNotExecutable");
        assert_eq!(error_kind("something else"), "RuntimeError");
    }

    #[test]
    fn namespaces_of_a_container_are_found_by_its_name() {
        let mut config = json!({ "linux": { "namespaces": [
            { "type": "pid", "path": "container:first" }, { "type": "ipc" }, { "type": "network", "path": "/x" }] } });
        assert!(join_namespaces(&mut config.clone(), &|_| None).is_err());
        assert!(join_namespaces(&mut config, &|name| Some(7).filter(|_| name == "first")).is_ok());
        assert_eq!(config["linux"]["namespaces"][0]["path"], "/proc/7/ns/pid");
        assert_eq!(config["linux"]["namespaces"][2]["path"], "/x");
    }

    #[test]
    fn the_last_line_of_the_log_counts() {
        assert_eq!(last_error("a\nb\n\n").as_deref(), Some("b"));
        assert_eq!(last_error("{\"msg\":\"no\"}\n").as_deref(), Some("no"));
        assert_eq!(last_error(""), None);
    }
}
