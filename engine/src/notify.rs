//! Tells systemd how the process is doing (`sd_notify(3)`): one datagram to `$NOTIFY_SOCKET`.
//!
//! Without that variable nothing happens. A message that cannot be sent is logged and otherwise without effect: the
//! service manager then acts by its own timeouts.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The server can serve.
pub fn ready(status: &str) {
    tell(&format!("READY=1\nSTATUS={}", one_line(status)));
}

/// The server has begun to end, which takes up to `within`: it is not to be killed for being slow before that.
pub fn stopping(within: Duration) {
    tell(&format!(
        "STOPPING=1\nEXTEND_TIMEOUT_USEC={}",
        within.as_micros()
    ));
}

/// What the server is doing, for `systemctl status`.
pub fn status(text: &str) {
    tell(&format!("STATUS={}", one_line(text)));
}

/// A sign of life.
pub fn alive() {
    tell("WATCHDOG=1");
}

/// How often the service manager wants a sign of life of this process; `None` where it does not.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    let var = |name| std::env::var(name).ok();
    interval(
        std::process::id(),
        var("WATCHDOG_PID").as_deref(),
        var("WATCHDOG_USEC").as_deref(),
    )
}

fn interval(pid: u32, watchdog_pid: Option<&str>, usec: Option<&str>) -> Option<Duration> {
    let meant = watchdog_pid.is_none_or(|meant| meant.parse() == Ok(pid));
    let usec = usec?.parse().ok().filter(|usec| *usec > 0)?;
    meant.then(|| Duration::from_micros(usec))
}

/// A line feed would begin another assignment.
fn one_line(text: &str) -> String {
    text.replace('\n', "; ")
}

fn tell(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&socket, state) {
        log::warn!(state, error:%; "cannot notify the service manager");
    }
}

/// `socket` is a path, or `@` and a name in the abstract namespace.
fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?
        .send_to_addr(state.as_bytes(), &address)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let half_minute = Some(Duration::from_secs(30));
        assert_eq!(interval(7, None, Some("30000000")), half_minute);
        assert_eq!(interval(7, Some("7"), Some("30000000")), half_minute);
        assert_eq!(interval(7, Some("8"), Some("30000000")), None);
        assert_eq!(interval(7, None, Some("0")), None);
        assert_eq!(interval(7, None, None), None);
    }

    #[test]
    fn the_state_arrives_at_a_path_and_at_an_abstract_name() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("notify");
        let name = format!("shardwire-test-{}", std::process::id());
        let named = SocketAddr::from_abstract_name(&name).unwrap();
        let receivers = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&named).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (receiver, socket) in receivers {
            send(&socket, "READY=1").unwrap();
            let mut bytes = [0; 32];
            let length = receiver.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1");
        }
        assert!(send(OsStr::new("/nonexistent/socket"), "READY=1").is_err());
    }
}
