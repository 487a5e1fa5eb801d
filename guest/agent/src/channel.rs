//! The byte channel to the host: a virtio port or a vsock in a VM, a unix socket in tests. Nothing here ever blocks once
//! the channel is open.

use std::collections::VecDeque;
use std::io;
use std::os::unix::io::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use hutch_proto::{encode, Decoder, Frame, CONTROL};
use serde_json::Value;

use crate::sys;

const PORT_NAME: &str = "hutch.agent";
const PORT_WAIT: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 64 * 1024;
/// Log frames wait in their container's backlog while more than this is on its way out.
const COMFORTABLE_BYTES: usize = 256 * 1024;

/// The channel. What is queued belongs to one connection: a new one starts with an empty queue.
pub struct Channel {
    fd: RawFd,
    /// What connections come from; None: there is only one, for ever.
    listener: Option<RawFd>,
    decoder: Decoder,
    out: VecDeque<u8>,
    hung_up: bool,
}

impl Channel {
    /// Opens the virtio port. It has its name from the host, by a message some time after its driver came up: the kernel
    /// tells when.
    pub fn open_port() -> Result<Channel, String> {
        let events = sys::device_events().map_err(|e| format!("device events: {}", e))?;
        let end = Instant::now() + PORT_WAIT;
        loop {
            if let Some(channel) = Channel::named_port()? {
                return Ok(channel);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("no virtio port is named {}", PORT_NAME));
            }
            let mut news = [libc::pollfd { fd: events.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
            sys::poll(&mut news, left.as_millis() as i32 + 1);
            let mut ignored = [0u8; 4096];
            while let Ok(Some(_)) = sys::read_some(events.as_raw_fd(), &mut ignored) {}
        }
    }

    fn named_port() -> Result<Option<Channel>, String> {
        let entries = std::fs::read_dir("/sys/class/virtio-ports").map_err(|e| format!("virtio ports: {}", e))?;
        for entry in entries.flatten() {
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() != PORT_NAME {
                continue;
            }
            let path = Path::new("/dev").join(entry.file_name());
            let file = std::fs::OpenOptions::new().read(true).write(true).open(&path);
            let fd = file.map_err(|e| format!("{}: {}", path.display(), e))?.into_raw_fd();
            sys::set_non_blocking(fd, true);
            return Ok(Some(Channel::new(fd, None)));
        }
        Ok(None)
    }

    /// Listens on a unix socket; one connection at a time.
    pub fn listen(path: &Path) -> Result<Channel, String> {
        drop(std::fs::remove_file(path));
        let listener = UnixListener::bind(path).map_err(|e| format!("{}: {}", path.display(), e))?.into_raw_fd();
        sys::set_non_blocking(listener, false);
        Ok(Channel::new(-1, Some(listener)))
    }

    /// Listens on a vsock port, and lets the host know: it is called at the same port, once. Nobody need be there.
    pub fn listen_vsock(port: u32) -> Result<Channel, String> {
        let listener = sys::listen_vsock(port).map_err(|e| format!("vsock port {}: {}", port, e))?;
        sys::set_non_blocking(listener, false);
        sys::call_host(port);
        Ok(Channel::new(-1, Some(listener)))
    }

    fn new(fd: RawFd, listener: Option<RawFd>) -> Channel {
        Channel { fd, listener, decoder: Decoder::default(), out: VecDeque::new(), hung_up: false }
    }

    /// What to poll, and for what. A port whose host is away is not polled: SIGIO tells when it is back.
    pub fn poll_entry(&self) -> libc::pollfd {
        let (fd, mut events) = match &self.listener {
            Some(listener) if self.fd < 0 => (*listener, libc::POLLIN),
            _ if self.hung_up => (-1, 0),
            _ => (self.fd, libc::POLLIN),
        };
        if fd == self.fd && !self.out.is_empty() {
            events |= libc::POLLOUT;
        }
        libc::pollfd { fd, events, revents: 0 }
    }

    /// The port's other end may have come or gone.
    pub fn host_changed(&mut self) {
        self.hung_up = false;
    }

    /// Takes in what is there and sends what fits.
    pub fn service(&mut self, revents: libc::c_short) -> Vec<Frame> {
        if self.fd < 0 {
            self.accept();
            return Vec::new();
        }
        let mut frames = Vec::new();
        if revents & libc::POLLIN != 0 {
            frames = self.receive();
        } else if revents & (libc::POLLHUP | libc::POLLERR) != 0 {
            self.disconnected();
        }
        if revents & libc::POLLOUT != 0 {
            self.flush();
        }
        frames
    }

    fn accept(&mut self) {
        if let Some(fd) = self.listener.and_then(sys::accept) {
            self.fd = fd;
            // What of a frame an earlier connection left behind is nobody's.
            self.decoder = Decoder::default();
            sys::set_non_blocking(self.fd, false);
            self.out.clear();
        }
    }

    fn receive(&mut self) -> Vec<Frame> {
        let mut buffer = vec![0; READ_BYTES];
        match sys::read_some(self.fd, &mut buffer) {
            Ok(Some(0)) | Err(_) => {
                self.disconnected();
                Vec::new()
            }
            Ok(Some(count)) => self.decoder.feed(&buffer[..count]),
            Ok(None) => Vec::new(),
        }
    }

    fn disconnected(&mut self) {
        self.out.clear();
        if self.listener.is_some() {
            sys::close(self.fd);
            self.fd = -1;
        } else {
            self.hung_up = true;
        }
    }

    fn flush(&mut self) {
        while !self.out.is_empty() {
            let (front, _) = self.out.as_slices();
            match sys::write_some(self.fd, front) {
                Ok(0) => return,
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.disconnected(),
            }
        }
    }

    /// Whether there is room for log frames now.
    pub fn has_room(&self) -> bool {
        self.fd >= 0 && !self.hung_up && self.out.len() < COMFORTABLE_BYTES
    }

    /// Begins a conversation anew: what was queued for an earlier one is dropped, and a zero byte ends what of it may
    /// be half written.
    pub fn restart(&mut self) {
        self.out.clear();
        self.out.push_back(0);
    }

    /// Queues a frame.
    pub fn send(&mut self, frame: &Frame) {
        if self.fd < 0 {
            return;
        }
        let mut encoded = Vec::new();
        encode(frame, &mut encoded);
        self.out.extend(encoded);
    }

    /// Queues a control document.
    pub fn send_control(&mut self, document: &Value) {
        self.send(&Frame { kind: CONTROL, channel: 0, payload: document.to_string().into_bytes() });
    }
}
