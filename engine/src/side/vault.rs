//! Keeps secrets unreadable in the store: AES-256-GCM under a key from a file that only the process's user can read.
//!
//! What is sealed names what it is for, so that no sealed text can take another's place. Losing the key file means
//! giving the secrets anew.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};

use crate::sys;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// Seals and unseals. Not `Debug`: it holds a key.
pub(super) struct Vault(RandomizedNonceKey);

impl Vault {
    /// With a key of [`KEY_BYTES`]; `None` where it is of another length.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        RandomizedNonceKey::new(&AES_256_GCM, key).ok().map(Self)
    }

    /// `text` for `purpose`, unreadable.
    pub(super) fn seal(&self, purpose: &str, text: &[u8]) -> Option<String> {
        let mut sealed = text.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let nonce = self.0.seal_in_place_append_tag(aad, &mut sealed).ok()?;
        Some(BASE64URL_NOPAD.encode(&[nonce.as_ref().as_slice(), &sealed].concat()))
    }

    /// What was sealed for `purpose` with this key.
    pub(super) fn unseal(&self, purpose: &str, sealed: &str) -> Option<Vec<u8>> {
        let sealed = BASE64URL_NOPAD.decode(sealed.as_bytes()).ok()?;
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = rest.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let opened = self.0.open_in_place(nonce, aad, &mut text).ok()?.len();
        text.truncate(opened);
        Some(text)
    }
}

/// The text of a key file: 64 hex digits where it was made here. It is made where it is missing; of several processes
/// that do so at once all have the same.
///
/// # Errors
/// It cannot be read or made.
pub(super) fn read_key(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?,
        read => return read,
    }
    fs::read_to_string(path)
}

fn make(path: &Path) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(
        ".{}.tmp",
        HEXLOWER.encode(sys::random().get(..8).unwrap_or_default())
    ));
    let temporary = PathBuf::from(temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    let text = format!("{}\n", HEXLOWER.encode(sys::random_32().as_slice()));
    let linked = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        // Unlike a rename this leaves alone what somebody else has made meanwhile.
        .and_then(|()| fs::hard_link(&temporary, path));
    fs::remove_file(&temporary)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(path),
    }
}

/// Has the folder's entry on disk as well.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_same_key_and_purpose_open_it() {
        let vault = Vault::new(&[2; KEY_BYTES]).unwrap();
        let sealed = vault.seal("a/web", b"secret").unwrap();
        assert!(!sealed.contains("secret"));
        assert_ne!(sealed, vault.seal("a/web", b"secret").unwrap());
        let again = Vault::new(&[2; KEY_BYTES]).unwrap();
        assert_eq!(again.unseal("a/web", &sealed).unwrap(), b"secret");
        assert!(again.unseal("b/web", &sealed).is_none());
        let other = Vault::new(&[1; KEY_BYTES]).unwrap();
        assert!(other.unseal("a/web", &sealed).is_none());
        assert!(again.unseal("a/web", "AAAA").is_none());
        assert!(Vault::new(b"short").is_none());
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_whoever_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let keys: Vec<String> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| read_key(&path).unwrap()))
                .collect();
            makers
                .into_iter()
                .map(|maker| maker.join().unwrap())
                .collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        assert_eq!(
            HEXLOWER.decode(keys[0].trim().as_bytes()).unwrap().len(),
            KEY_BYTES
        );
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left"
        );
        fs::write(&path, "short").unwrap();
        assert_eq!(
            read_key(&path).unwrap(),
            "short",
            "what is there is not replaced"
        );
    }
}
