//! The secret that the dashboard's tokens hang on: one file of the data folder, from which a key for each use is derived.
//!
//! Several servers that share their accounts need the same file. Not here: tokens themselves
//! (`shardwire_proto::account::access`).

use std::io;
use std::path::Path;

use aws_lc_rs::hmac;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use shardwire_proto::account::access::Signer;

use crate::side::vault::{KEY_BYTES, Vault, read_key};

/// Name of the file in the data folder; readable by its owner only.
pub const SECRET_FILE: &str = "accounts.key";

/// Keys, one for each use.
pub(super) struct Secrets {
    pub(super) signer: Signer,
    forms: hmac::Key,
    /// For secrets of second factors; what each is for is its owner.
    pub(super) vault: Vault,
}

impl Secrets {
    /// Reads the file, or makes it.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(SECRET_FILE);
        let text = read_key(&path)?;
        let root = HEXLOWER.decode(text.trim().as_bytes()).ok();
        let root = root.filter(|root| root.len() == KEY_BYTES).ok_or_else(|| {
            let text = format!("{} does not hold 64 hex digits", path.display());
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?;
        Self::derive(&root).ok_or_else(|| io::Error::other("keys cannot be derived"))
    }

    fn derive(root: &[u8]) -> Option<Self> {
        let root = hmac::Key::new(hmac::HMAC_SHA256, root);
        let key = |usage: &[u8]| <[u8; 32]>::try_from(hmac::sign(&root, usage).as_ref()).ok();
        Some(Self {
            signer: Signer::new(&key(b"access tokens")?),
            forms: hmac::Key::new(hmac::HMAC_SHA256, &key(b"forms")?),
            vault: Vault::new(&key(b"second factors")?)?,
        })
    }

    /// What a form carries to show that it comes from a page that was made for this session.
    pub(super) fn form_token(&self, session: &str) -> String {
        BASE64URL_NOPAD.encode(hmac::sign(&self.forms, session.as_bytes()).as_ref())
    }

    /// Whether a form carries the right token; takes as long for every wrong one.
    pub(super) fn is_form_token(&self, session: &str, token: &str) -> bool {
        let token = BASE64URL_NOPAD.decode(token.as_bytes());
        token.is_ok_and(|tag| hmac::verify(&self.forms, session.as_bytes(), &tag).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_file_is_made_once_for_its_owner_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = Secrets::open(folder.path()).unwrap();
        let second = Secrets::open(folder.path()).unwrap();
        assert_eq!(first.form_token("s"), second.form_token("s"));
        let path = folder.path().join(SECRET_FILE);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, "abc").unwrap();
        assert!(Secrets::open(folder.path()).is_err());
    }

    #[test]
    fn what_is_sealed_is_read_by_its_owner_only() {
        let secrets = Secrets::derive(&[1; 32]).unwrap();
        let sealed = secrets.vault.seal("a_1", b"secret").unwrap();
        assert_eq!(secrets.vault.unseal("a_1", &sealed).unwrap(), b"secret");
        assert!(secrets.vault.unseal("a_2", &sealed).is_none());
        assert!(
            Secrets::derive(&[2; 32])
                .unwrap()
                .vault
                .unseal("a_1", &sealed)
                .is_none()
        );
        assert!(secrets.vault.unseal("a_1", "AAAA").is_none());
        assert_ne!(sealed, secrets.vault.seal("a_1", b"secret").unwrap());
    }

    #[test]
    fn a_form_of_another_session_is_told() {
        let secrets = Secrets::derive(&[1; 32]).unwrap();
        let token = secrets.form_token("s_1");
        assert!(secrets.is_form_token("s_1", &token));
        assert!(!secrets.is_form_token("s_2", &token) && !secrets.is_form_token("s_1", ""));
    }
}
