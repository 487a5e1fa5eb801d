//! Content of an image below a volume's path, copied into the volume while that is empty.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::containers::text;

const MAX_LINKS: usize = 40;

/// Carries out `seeds` of a request: [{`to`, `from`: [{`root`, `path`}]}]. The first directory that is there fills the volume.
pub fn seed_volumes(given: &Value) -> Result<(), String> {
    for item in given["seeds"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let to = PathBuf::from(text(item, "to")?);
        fs::create_dir_all(&to).map_err(|e| format!("{}: {}", to.display(), e))?;
        if !is_empty(&to).map_err(|e| format!("{}: {}", to.display(), e))? {
            continue;
        }
        for candidate in item["from"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let (root, path) = (text(candidate, "root")?, text(candidate, "path")?);
            let found = resolve(Path::new(&root), Path::new(&path)).filter(|p| p.is_dir());
            if let Some(from) = found {
                copy_directory(&from, &to).map_err(|e| format!("content of {} for a volume: {}", path, e))?;
                break;
            }
        }
    }
    Ok(())
}

/// Whether a directory holds nothing but what a fresh file system has.
fn is_empty(directory: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(directory)?.flatten().all(|e| e.file_name() == "lost+found"))
}

/// Where a path leads to inside of a root, by its own links; None if nothing is there.
fn resolve(root: &Path, path: &Path) -> Option<PathBuf> {
    let mut rest: Vec<PathBuf> = parts(path);
    let mut inside = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == Path::new("..") {
            inside.pop();
            continue;
        }
        let next = root.join(&inside).join(&part);
        if !fs::symlink_metadata(&next).ok()?.file_type().is_symlink() {
            inside.push(&part);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return None;
        }
        let target = fs::read_link(&next).ok()?;
        if target.is_absolute() {
            inside = PathBuf::new();
        }
        rest.extend(parts(&target));
    }
    Some(root.join(inside))
}

/// The steps of a path, the last one first.
fn parts(path: &Path) -> Vec<PathBuf> {
    let step = |c: Component<'_>| match c {
        Component::Normal(name) => Some(PathBuf::from(name)),
        Component::ParentDir => Some(PathBuf::from("..")),
        _ => None,
    };
    path.components().filter_map(step).rev().collect()
}

fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir_all(&target)?;
            copy_directory(&source, &target)?;
            continue;
        }
        if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target)?;
        } else {
            make_node(&target, &fs::symlink_metadata(&source)?)?;
        }
        copy_owner(&source, &target)?;
    }
    copy_owner(from, to)
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn make_node(target: &Path, like: &fs::Metadata) -> io::Result<()> {
    if like.file_type().is_socket() {
        return Ok(());
    }
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns.
    match unsafe { libc::mknod(c_path(target)?.as_ptr(), like.mode(), like.rdev()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Owner, mode (after the owner, whose change takes set-id bits away) and times.
fn copy_owner(from: &Path, to: &Path) -> io::Result<()> {
    let like = fs::symlink_metadata(from)?;
    if fs::symlink_metadata(to).is_err() {
        return Ok(());
    }
    let path = c_path(to)?;
    // SAFETY: the pointer is a NUL-terminated string that lives until the call returns.
    if unsafe { libc::lchown(path.as_ptr(), like.uid(), like.gid()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if !like.file_type().is_symlink() {
        fs::set_permissions(to, fs::Permissions::from_mode(like.mode() & 0o7777))?;
    }
    let times = [
        libc::timespec { tv_sec: like.atime(), tv_nsec: like.atime_nsec() },
        libc::timespec { tv_sec: like.mtime(), tv_nsec: like.mtime_nsec() },
    ];
    // SAFETY: both pointers are to values that live until the call returns.
    let set = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hutch-seed-{}-{}", std::process::id(), name));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn links_of_an_image_stay_inside_it() {
        let root = scratch("links");
        fs::create_dir_all(root.join("real/etc")).unwrap();
        std::os::unix::fs::symlink("/real", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../../etc", root.join("climbs")).unwrap();
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        assert_eq!(resolve(&root, Path::new("/absolute/etc")), Some(root.join("real/etc")));
        assert_eq!(resolve(&root, Path::new("/climbs")), None);
        assert_eq!(resolve(&root, Path::new("/loop")), None);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn an_empty_volume_gets_the_content_once() {
        let root = scratch("content");
        fs::create_dir_all(root.join("image/data/sub")).unwrap();
        fs::write(root.join("image/data/sub/file"), "x").unwrap();
        fs::set_permissions(root.join("image/data"), fs::Permissions::from_mode(0o750)).unwrap();
        let to = root.join("volume");
        let seeds = json!({ "seeds": [{ "to": to, "from": [
            { "root": root.join("image"), "path": "/none" }, { "root": root.join("image"), "path": "/data" }] }] });
        seed_volumes(&seeds).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "x");
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o750);
        fs::write(to.join("sub/file"), "changed").unwrap();
        seed_volumes(&seeds).unwrap();
        assert_eq!(fs::read_to_string(to.join("sub/file")).unwrap(), "changed");
        fs::remove_dir_all(root).unwrap();
    }
}
