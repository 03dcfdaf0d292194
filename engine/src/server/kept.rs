//! Presence members between two processes: a file in the data folder, written at the end of a drain and taken at the next
//! start.
//!
//! Invariants: what was read is gone from the folder before anybody is served, so that no member comes back twice; what
//! cannot be read or written costs the members, never the start or the end.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shardwire_proto::shard::KeptMember;

use crate::keys;

const FILE: &str = "presence.json";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    /// ms since the Unix epoch.
    written_ms: u64,
    members: Vec<KeptMember>,
}

/// The members that the last process has kept, if that is no longer ago than `grace_ms`: clients that had so much time have
/// gone elsewhere.
pub(super) fn take(data_dir: &Path, grace_ms: u64, now_ms: u64) -> Vec<KeptMember> {
    let path = data_dir.join(FILE);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            log::warn!(
                "{}: cannot read the presence members: {error}",
                path.display()
            );
            return Vec::new();
        }
    };
    if let Err(error) = fs::remove_file(&path) {
        log::warn!("{}: cannot be removed: {error}", path.display());
        return Vec::new();
    }
    match serde_json::from_slice::<Kept>(&text) {
        Ok(kept) if now_ms.saturating_sub(kept.written_ms) <= grace_ms => kept.members,
        Ok(_) => Vec::new(),
        Err(error) => {
            log::warn!(
                "{}: is not a list of presence members: {error}",
                path.display()
            );
            Vec::new()
        }
    }
}

/// Keeps members for the next process.
pub(super) fn keep(data_dir: &Path, members: Vec<KeptMember>, now_ms: u64) {
    if members.is_empty() {
        return;
    }
    let count = members.len();
    let kept = Kept {
        written_ms: now_ms,
        members,
    };
    let path = data_dir.join(FILE);
    let written = serde_json::to_vec(&kept).map_err(std::io::Error::from);
    match written.and_then(|text| keys::write_atomically(&path, &text)) {
        Ok(()) => log::info!("presence: kept {count} members for the next start"),
        Err(error) => log::error!("{}: cannot keep presence members: {error}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member() -> KeptMember {
        KeptMember {
            app: "dev".into(),
            channel: "c".into(),
            client_id: "a".into(),
            joined_at: 1,
            state: Some("{}".into()),
        }
    }

    #[test]
    fn members_are_taken_once_and_not_too_late() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(take(path, 1000, 0).is_empty());
        keep(path, vec![member()], 5000);
        assert_eq!(take(path, 1000, 6000), [member()]);
        assert!(take(path, 1000, 6000).is_empty());
        keep(path, vec![member()], 5000);
        assert!(take(path, 1000, 6001).is_empty());
        assert!(!path.join(FILE).exists());
    }

    #[test]
    fn what_is_not_a_list_of_members_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "[]").unwrap();
        assert!(take(folder.path(), 1000, 0).is_empty());
    }
}
