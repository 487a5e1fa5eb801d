//! The command line.

/// What the jail shall be.
#[derive(Debug, Default, PartialEq)]
pub struct Options {
    /// By which the process is found while it is not yet the program. Not used otherwise.
    pub name: String,
    pub status_fd: i32,
    /// The directory that becomes the program's root, read-only.
    pub root: String,
    pub user_id: u32,
    /// Supplementary groups. The group is the user's number.
    pub groups: Vec<u32>,
    /// `cgroup.procs` files.
    pub cgroup_files: Vec<String>,
    /// The program may begin while it is being put into its control groups. For one that does nothing for strangers
    /// until the caller, who knows when it has joined, tells it to.
    pub early: bool,
    /// Device nodes, which are bound over placeholders of the same path in the root.
    pub devices: Vec<String>,
    /// Files and directories that are bound over placeholders in the root: of the host, in the root, writable.
    pub binds: Vec<(String, String, bool)>,
    /// Stay in the caller's network namespace: for a program that opens its tap by name.
    pub host_network: bool,
    /// Resources (`RLIMIT_*`) and their limits, soft and hard.
    pub limits: Vec<(u32, u64)>,
    pub command: Vec<String>,
}

impl Options {
    /// Reads the arguments. All that is needed must be there, nothing unknown is passed over.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options { status_fd: -1, ..Options::default() };
        while let Some(flag) = arguments.next() {
            if flag == "--" {
                options.command = arguments.by_ref().collect();
                break;
            }
            if flag == "--early" {
                options.early = true;
                continue;
            }
            if flag == "--host-network" {
                options.host_network = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{} needs a value", flag))?;
            match flag.as_str() {
                "--name" => options.name = value,
                "--status-fd" => options.status_fd = number(&flag, &value)?,
                "--root" => options.root = absolute(&flag, value)?,
                "--user" => options.user_id = number(&flag, &value)?,
                "--group" => options.groups.push(number(&flag, &value)?),
                "--cgroup" => options.cgroup_files.push(absolute(&flag, value)?),
                "--device" => options.devices.push(absolute(&flag, value)?),
                "--bind" => options.binds.push(bind(&flag, &value)?),
                "--limit" => options.limits.push(limit(&value)?),
                _ => return Err(format!("unknown option {}", flag)),
            }
        }
        options.check()
    }

    fn check(self) -> Result<Options, String> {
        if self.root.is_empty() || self.root == "/" {
            return Err("--root must name a directory that is not /".to_string());
        }
        if self.user_id == 0 || self.groups.contains(&0) {
            return Err("--user and --group must not be root's".to_string());
        }
        if self.status_fd < 0 {
            return Err("--status-fd is missing".to_string());
        }
        match self.command.first() {
            Some(program) if program.starts_with('/') => Ok(self),
            _ => Err("after -- comes a program by its absolute path".to_string()),
        }
    }
}

fn number<T: std::str::FromStr>(flag: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("{}: {:?} is not a number in range", flag, value))
}

fn absolute(flag: &str, value: String) -> Result<String, String> {
    let plain = value.starts_with('/') && !value.split('/').any(|part| part == "..");
    plain.then_some(value).ok_or_else(|| format!("{} needs an absolute path without ..", flag))
}

fn bind(flag: &str, value: &str) -> Result<(String, String, bool), String> {
    let parts: Vec<&str> = value.split(':').collect();
    match parts[..] {
        [source, place, mode @ ("ro" | "rw")] => {
            Ok((absolute(flag, source.to_string())?, absolute(flag, place.to_string())?, mode == "rw"))
        }
        _ => Err("--bind needs SOURCE:PLACE:ro or SOURCE:PLACE:rw".to_string()),
    }
}

fn limit(value: &str) -> Result<(u32, u64), String> {
    let (name, amount) = value.split_once('=').ok_or("--limit needs NAME=NUMBER")?;
    let resource = match name {
        "core" => libc::RLIMIT_CORE,
        "fsize" => libc::RLIMIT_FSIZE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        _ => return Err(format!("--limit: unknown resource {}", name)),
    };
    Ok((resource, number("--limit", amount)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(line.split_whitespace().map(str::to_string))
    }

    #[test]
    fn takes_what_it_is_given() {
        let line = "--name n --early --status-fd 7 --root /r --user 70000 --group 36 --cgroup /c/cgroup.procs \
                    --device /dev/null --limit core=0 --limit nofile=64 -- /bin/true --root x";
        let options = parse(line).unwrap();
        assert_eq!((options.status_fd, options.user_id, options.groups), (7, 70000, vec![36]));
        assert_eq!(options.limits, [(libc::RLIMIT_CORE, 0), (libc::RLIMIT_NOFILE, 64)]);
        assert!(options.early && !options.host_network);
        assert_eq!(options.command, ["/bin/true", "--root", "x"]);
    }

    #[test]
    fn binds_and_stays_in_the_network_if_told_to() {
        let line = "--status-fd 7 --root /r --user 7 --host-network --bind /a:/b:ro --bind /c:/d:rw -- /bin/true";
        let options = parse(line).unwrap();
        let expected = [("/a", "/b", false), ("/c", "/d", true)].map(|(s, p, w)| (s.to_string(), p.to_string(), w));
        assert_eq!(options.binds, expected);
        assert!(options.host_network);
    }

    #[test]
    fn refuses_what_would_be_no_jail() {
        for line in [
            "--status-fd 7 --root /r --user 0 -- /bin/true",
            "--status-fd 7 --root / --user 7 -- /bin/true",
            "--status-fd 7 --root /r/../.. --user 7 -- /bin/true",
            "--status-fd 7 --root /r -- /bin/true",
            "--status-fd 7 --root /r --user 7 --group 0 -- /bin/true",
            "--root /r --user 7 -- /bin/true",
            "--status-fd 7 --root /r --user 7 -- true",
            "--status-fd 7 --root /r --user 7 --",
            "--status-fd 7 --root /r --user 7 --limit cpu=1 -- /bin/true",
            "--status-fd 7 --root /r --user 4294967296 -- /bin/true",
            "--status-fd 7 --root /r --user 7 --shell yes -- /bin/true",
            "--status-fd 7 --root /r --user 7 --bind /a:/b -- /bin/true",
            "--status-fd 7 --root /r --user 7 --bind /a:/b:rx -- /bin/true",
            "--status-fd 7 --root /r --user 7 --bind /a:/../b:rw -- /bin/true",
            "--status-fd 7 --root /r --user 7 --bind a:/b:rw -- /bin/true",
            "--status-fd",
        ] {
            assert!(parse(line).is_err(), "{}", line);
        }
    }
}
