//! `listeners.json`: where a running broker can be reached, for scripts that let it pick its ports.
//!
//! ```text
//! {"kafka":"127.0.0.1:9092","http":"127.0.0.1:8080"}
//! ```
//! Written whole or not at all (a new file renamed over the old one), after the ports are open; removed when a broker
//! starts in the directory and when it has shut down. What a killed broker left behind is therefore stale.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub(crate) const FILE_NAME: &str = "listeners.json";

#[derive(serde::Serialize)]
struct Listeners {
    kafka: SocketAddr,
    http: SocketAddr,
}

/// Blocking.
pub(crate) fn write(data_dir: &Path, kafka: SocketAddr, http: SocketAddr) -> io::Result<()> {
    let json = serde_json::to_string(&Listeners { kafka, http })?;
    let unfinished = data_dir.join(format!("{FILE_NAME}.unfinished"));
    std::fs::write(&unfinished, json)?;
    std::fs::rename(&unfinished, path(data_dir))
}

/// Blocking. It is fine where there is none.
pub(crate) fn remove(data_dir: &Path) -> io::Result<()> {
    match std::fs::remove_file(path(data_dir)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

pub(crate) fn path(data_dir: &Path) -> PathBuf {
    data_dir.join(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_the_broker_is_and_goes_with_it() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        remove(dir.path())?;
        write(dir.path(), SocketAddr::from(([127, 0, 0, 1], 9092)), SocketAddr::from(([127, 0, 0, 1], 8080)))?;
        let text = std::fs::read_to_string(path(dir.path()))?;
        assert_eq!(text, r#"{"kafka":"127.0.0.1:9092","http":"127.0.0.1:8080"}"#);
        remove(dir.path())?;
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 0);
        Ok(())
    }
}
