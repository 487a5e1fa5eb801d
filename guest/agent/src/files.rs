//! Volumes that are files: the host says what is in them, and they are kept in memory.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use serde_json::{json, Value};

use crate::containers::text;

const MAX_PATH_BYTES: usize = 255;
const MAX_OWNER_ID: u64 = i32::MAX as u64;

/// Who owns a volume's files, and what they may do with them.
struct Owner {
    uid: u32,
    gid: u32,
    mode: u32,
}

/// Carries out `files`: {`directory`, `mode`, `uid`, `gid`, `files`: [{`path`, `text`, `append`}]}. No error tells contents.
pub fn fill(given: &Value) -> Result<Value, String> {
    let directory = PathBuf::from(text(given, "directory")?);
    if !directory.is_absolute() {
        return Err("directory must be absolute".to_string());
    }
    let number = |name: &str, most: u64| {
        let found = given[name].as_u64().filter(|n| *n <= most);
        found.map(|n| n as u32).ok_or(format!("{} is not between 0 and {}", name, most))
    };
    let owner =
        Owner { uid: number("uid", MAX_OWNER_ID)?, gid: number("gid", MAX_OWNER_ID)?, mode: number("mode", 0o777)? };
    for item in given["files"].as_array().ok_or("files must be a list")? {
        let path = text(item, "path")?;
        let content = item["text"].as_str().ok_or("text is missing")?;
        let inside = below(&path).ok_or_else(|| format!("{:?} is not a path below a volume", path))?;
        write(&directory.join(inside), content, item["append"] == json!(true), &owner)
            .map_err(|e| format!("file {}: {}", path, e))?;
    }
    Ok(json!({}))
}

/// A path that leads nowhere but further down.
fn below(path: &str) -> Option<&Path> {
    let fits = !path.is_empty() && path.len() <= MAX_PATH_BYTES && !path.contains('\0');
    let path = Path::new(path);
    (fits && path.components().all(|c| matches!(c, Component::Normal(_)))).then_some(path)
}

fn write(path: &Path, content: &str, append: bool, owner: &Owner) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(!append)
        .truncate(!append)
        .append(append)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(content.as_bytes())?;
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns.
    if unsafe { libc::lchown(name.as_ptr(), owner.uid, owner.gid) } != 0 {
        return Err(io::Error::last_os_error());
    }
    file.set_permissions(fs::Permissions::from_mode(owner.mode))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn only_what_is_below_is_written() {
        for path in ["", "/etc/passwd", "..", "a/../b", "./a", "a\0b", &"x".repeat(256)] {
            assert_eq!(below(path), None, "{:?}", path);
        }
        assert_eq!(below("sub/app.conf"), Some(Path::new("sub/app.conf")));
    }

    #[test]
    fn files_come_in_pieces() {
        let directory = std::env::temp_dir().join(format!("hutch-files-{}", std::process::id()));
        // SAFETY: these calls only return numbers.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        let request =
            |files: Value| json!({ "directory": directory, "mode": 0o440, "uid": uid, "gid": gid, "files": files });
        fill(&request(json!([{ "path": "a", "text": "one" }, { "path": "sub/b", "text": "" }]))).unwrap();
        assert_eq!(fs::metadata(directory.join("a")).unwrap().mode() & 0o7777, 0o440);
        assert_eq!(fs::read_to_string(directory.join("sub/b")).unwrap(), "");
        drop(fs::set_permissions(directory.join("a"), fs::Permissions::from_mode(0o640)));
        fill(&request(json!([{ "path": "a", "text": " two", "append": true }]))).unwrap();
        assert_eq!(fs::read_to_string(directory.join("a")).unwrap(), "one two");
        assert!(fill(&request(json!([{ "path": "../a", "text": "secret" }]))).unwrap_err().find("secret").is_none());
        assert!(fill(&request(json!([{ "path": "none", "text": "x", "append": true }]))).is_err());
        assert!(fill(&json!({ "directory": "/x", "mode": 0o4777, "uid": 0, "gid": 0, "files": [] })).is_err());
        fs::remove_dir_all(directory).unwrap();
    }
}
