//! The terminal of a container that wants one: the runtime makes it and hands its master over through a unix socket.

use std::fs;
use std::io;
use std::os::unix::io::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::sys;

/// A socket that waits for the runtime to hand over a terminal.
pub struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    /// Makes the socket in a bundle.
    pub fn listen(bundle: &Path) -> io::Result<Console> {
        let path = bundle.join("console.sock");
        drop(fs::remove_file(&path));
        let listener = UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        Ok(Console { listener, path })
    }

    /// Where the runtime is to connect to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The terminal's master, ours from now on. To be called when the runtime has ended: what it sent waits in the socket.
    pub fn take(self) -> io::Result<RawFd> {
        let (stream, _) = self.listener.accept()?;
        drop(fs::remove_file(&self.path));
        let none = || io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal");
        sys::receive_fd(stream.as_raw_fd())?.ok_or_else(none)
    }
}
