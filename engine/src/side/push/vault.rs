//! Keeps secrets unreadable in the store: AES-256-GCM under a key in a file that only the process's user can read.
//!
//! What is sealed names what it is for, so that no sealed text can take another's place. Losing the key file means
//! giving the credentials anew.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};

const KEY_BYTES: usize = 32;

/// Seals and opens. Not `Debug`: it holds a key.
pub(super) struct Vault(RandomizedNonceKey);

impl Vault {
    /// Reads the key file; makes it where it is missing.
    ///
    /// # Errors
    /// It cannot be read or made, or does not hold 64 hex digits.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let key = match OpenOptions::new().read(true).open(path) {
            Ok(mut file) => {
                let mut text = String::new();
                file.read_to_string(&mut text)?;
                HEXLOWER_PERMISSIVE
                    .decode(text.trim().as_bytes())
                    .unwrap_or_default()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(path)?.to_vec(),
            Err(error) => return Err(error),
        };
        Self::with_key(&key)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "must hold 64 hex digits"))
    }

    fn with_key(key: &[u8]) -> Option<Self> {
        RandomizedNonceKey::new(&AES_256_GCM, key).ok().map(Self)
    }

    /// `text` for `purpose`, unreadable.
    pub(super) fn seal(&self, purpose: &str, text: &[u8]) -> Option<String> {
        let mut sealed = text.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let nonce = self.0.seal_in_place_append_tag(aad, &mut sealed).ok()?;
        Some(BASE64.encode(&[nonce.as_ref().as_slice(), &sealed].concat()))
    }

    /// What was sealed for `purpose` with this key.
    pub(super) fn unseal(&self, purpose: &str, sealed: &str) -> Option<Vec<u8>> {
        let sealed = BASE64.decode(sealed.as_bytes()).ok()?;
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = rest.to_vec();
        let aad = Aad::from(purpose.as_bytes());
        let opened = self.0.open_in_place(nonce, aad, &mut text).ok()?.len();
        text.truncate(opened);
        Some(text)
    }
}

fn make(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    rand::fill(&mut key).map_err(|_| io::Error::other("no randomness"))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(format!("{}\n", HEXLOWER_PERMISSIVE.encode(&key)).as_bytes())?;
    file.sync_all()?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_same_key_and_purpose_open_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("push.key");
        let vault = Vault::open(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let sealed = vault.seal("a/web", b"secret").unwrap();
        assert!(!sealed.contains("secret"));
        let again = Vault::open(&path).unwrap();
        assert_eq!(again.unseal("a/web", &sealed).unwrap(), b"secret");
        assert!(again.unseal("b/web", &sealed).is_none());
        let other = Vault::with_key(&[1; KEY_BYTES]).unwrap();
        assert!(other.unseal("a/web", &sealed).is_none());
        assert!(again.unseal("a/web", "AAAA").is_none());
    }

    #[test]
    fn a_damaged_key_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("push.key");
        std::fs::write(&path, "short").unwrap();
        assert!(Vault::open(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "short");
    }
}
