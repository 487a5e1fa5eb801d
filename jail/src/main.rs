//! Starts one program in a jail: namespaces of its own, a root with nothing else in it, a user without rights, no
//! capabilities, fewer system calls, limits. It runs on the host, as root, for some milliseconds; the caller is trusted.
//!
//!     hutch-jail [options] -- program arguments...
//!
//! The program becomes the *caller's* child, and process 1 of its PID namespace. On the status descriptor come `pid
//! <pid>`, as soon as there is a child to be reaped, and `error <text>` if something failed. Without an error its end
//! means that the program was executed. The exit code is 0 if the program was allowed to start.

mod filter;
mod options;
mod sys;

use options::Options;
use std::io;
use std::process::exit;

/// What failed, in words for an operator.
type Failure = String;

fn main() {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("hutch-jail: {}", problem);
            exit(2);
        }
    };
    if let Err(problem) = start(&options) {
        tell(&options, &format!("error {}\n", problem));
        exit(1);
    }
}

fn tell(options: &Options, line: &str) {
    // Nobody is there to be told if this fails: the caller is gone.
    let _ = sys::write_all(options.status_fd, line.as_bytes());
}

/// Makes the child, puts it into its control groups, and lets it go. Joining groups takes as long as the kernel's RCU
/// wants, some milliseconds: the child makes its root meanwhile, and with `early` the program begins meanwhile.
fn start(options: &Options) -> Result<(), Failure> {
    sys::close_on_exec(options.status_fd).map_err(|e| said("the status descriptor", e))?;
    let (wait_fd, go_fd) = sys::pipe().map_err(|e| said("a pipe", e))?;
    match sys::clone_into_new_namespaces(options.host_network).map_err(|e| said("making namespaces", e))? {
        0 => {
            drop(sys::close(go_fd));
            let failed = match become_prisoner(options, wait_fd) {
                Ok(never) => never,
                Err(problem) => problem,
            };
            tell(options, &format!("error {}\n", failed));
            exit(1);
        }
        pid => {
            // Whatever happens now, the caller knows whom to reap.
            tell(options, &format!("pid {}\n", pid));
            let joined = join(options, pid)
                .and_then(|()| sys::write_all(go_fd, b"g").map_err(|e| said("starting the program", e)));
            if joined.is_err() {
                sys::kill(pid);
            }
            joined
        }
    }
}

fn join(options: &Options, pid: i32) -> Result<(), Failure> {
    for file in &options.cgroup_files {
        std::fs::write(file, pid.to_string()).map_err(|e| said(&format!("joining {}", file), e))?;
    }
    Ok(())
}

/// Returns only if something failed.
fn become_prisoner(options: &Options, wait_fd: i32) -> Result<Failure, Failure> {
    enter_root(options)?;
    // Unless it may be early, not before the control groups hold this process: what it takes from then on is counted.
    if !sys::read_byte(wait_fd).map_err(|e| said("waiting for the control groups", e))? {
        return Err("the launcher ended before the program could start".to_string());
    }
    sys::close(wait_fd).map_err(|e| said("closing a pipe", e))?;
    sys::new_cgroup_namespace().map_err(|e| said("making a cgroup namespace", e))?;
    sys::new_session_keyring().map_err(|e| said("making a keyring", e))?;
    sys::set_hostname("jail").map_err(|e| said("setting the host name", e))?;
    for (resource, value) in &options.limits {
        sys::limit(*resource, *value).map_err(|e| said("setting a resource limit", e))?;
    }
    sys::drop_all_rights(options.user_id, &options.groups).map_err(|e| said("dropping rights", e))?;
    filter::install().map_err(|e| said("filtering system calls", e))?;
    Ok(said(&options.command[0], sys::execute(&options.command)))
}

fn enter_root(options: &Options) -> Result<(), Failure> {
    let root = options.root.as_str();
    // First of all: nothing that is mounted here may ever be seen outside.
    sys::make_mounts_private().map_err(|e| said("making mounts private", e))?;
    sys::bind(root, root).map_err(|e| said(&format!("binding {}", root), e))?;
    for device in &options.devices {
        let place = format!("{}{}", root, device);
        sys::bind(device, &place).map_err(|e| said(&format!("binding {}", device), e))?;
        sys::restrict(&place, true).map_err(|e| said(&format!("binding {}", device), e))?;
    }
    for (source, inside, writable) in &options.binds {
        let place = format!("{}{}", root, inside);
        sys::bind(source, &place).map_err(|e| said(&format!("binding {}", source), e))?;
        sys::restrict_files(&place, *writable).map_err(|e| said(&format!("binding {}", source), e))?;
    }
    let proc_place = format!("{}/proc", root);
    sys::mount_proc(&proc_place).map_err(|e| said("mounting /proc", e))?;
    sys::restrict(root, false).map_err(|e| said(&format!("making {} read-only", root), e))?;
    sys::change_root(root).map_err(|e| said(&format!("changing the root to {}", root), e))
}

fn said(what: &str, error: io::Error) -> Failure {
    format!("{}: {}", what, error)
}
