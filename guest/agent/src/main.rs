//! PID 1 of a hutch microVM: brings the kernel up, runs the task's containers with crun, and tells the host.
//!
//! One event loop (`event_loop`), no threads. Run with `--socket PATH [--runtime PROGRAM] [--state DIR]` it is an
//! ordinary process that a test can drive; as PID 1 it also mounts, loads modules and powers off on every way out.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::undocumented_unsafe_blocks)]

mod audit;
mod audit_record;
mod boot;
mod channel;
mod commands;
mod console;
mod containers;
mod event_loop;
mod files;
mod kernel;
mod load;
mod logs;
mod processes;
mod seed;
mod streams;
mod sys;
mod watch;

use std::path::PathBuf;

/// How this process was started.
pub struct Options {
    /// A unix socket to listen on instead of the virtio port (tests).
    pub socket: Option<PathBuf>,
    /// A vsock port to listen on instead of the virtio port.
    pub vsock_port: Option<u32>,
    /// The OCI runtime.
    pub runtime: PathBuf,
    /// Where bundles and pid files are kept.
    pub state: PathBuf,
    /// Whether we are PID 1 of a VM.
    pub is_init: bool,
}

/// Words like `hutch_vsock=1024` on the kernel's command line come as init's environment. A VM monitor that has no virtio
/// port has such a word.
fn vsock_port() -> Result<Option<u32>, String> {
    match std::env::var("hutch_vsock") {
        Ok(port) => port.parse().map(Some).map_err(|_| format!("hutch_vsock={} is not a port", port)),
        Err(_) => Ok(None),
    }
}

fn parse_options() -> Result<Options, String> {
    let mut options = Options {
        socket: None,
        vsock_port: vsock_port()?,
        runtime: PathBuf::from("/usr/bin/crun"),
        state: PathBuf::from("/run/hutch"),
        is_init: std::process::id() == 1,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        // The kernel passes what it does not know on the command line to init: of no concern as PID 1.
        let slot = match name.as_str() {
            "--socket" => &mut options.socket,
            "--runtime" | "--state" => {
                let value = PathBuf::from(arguments.next().ok_or(format!("{} needs a value", name))?);
                if name == "--runtime" {
                    options.runtime = value;
                } else {
                    options.state = value;
                }
                continue;
            }
            _ if options.is_init => continue,
            _ => return Err(format!("unknown option {}", name)),
        };
        *slot = Some(PathBuf::from(arguments.next().ok_or(format!("{} needs a value", name))?));
    }
    Ok(options)
}

fn run() -> Result<(), String> {
    let mut options = parse_options()?;
    if options.is_init {
        boot::bring_up(options.vsock_port.is_some())?;
        options.runtime = sys::sealed_program(&options.runtime).map_err(|e| format!("crun: {}", e))?;
    }
    event_loop::run(&options)
}

fn main() {
    let is_init = std::process::id() == 1;
    // A panic must not end PID 1 silently: the kernel would panic without a reason on the console.
    let outcome = std::panic::catch_unwind(run).unwrap_or_else(|_| Err("internal error (panic)".to_string()));
    if let Err(reason) = &outcome {
        sys::console(&format!("hutch-agent: fatal: {}\n", reason));
    }
    if is_init {
        // A monitor without a virtio port (Firecracker) has no way to power off either.
        sys::power_off(std::env::var_os("hutch_vsock").is_some());
    }
    std::process::exit(i32::from(outcome.is_err()));
}
