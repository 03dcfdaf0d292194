//! The secret that the dashboard's tokens hang on: one file of the data folder, from which a key for each use is derived.
//!
//! Several servers that share their accounts need the same file. Not here: tokens themselves
//! (`shardwire_proto::account::access`).

use std::io;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hmac;
use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use shardwire_proto::account::access::Signer;

use crate::keys::write_atomically;
use crate::sys;

/// Name of the file in the data folder; readable by its owner only.
pub const SECRET_FILE: &str = "accounts.key";

/// Keys, one for each use.
pub(super) struct Secrets {
    pub(super) signer: Signer,
    forms: hmac::Key,
    seal: RandomizedNonceKey,
}

impl Secrets {
    /// Reads the file, or makes it.
    pub(super) fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(SECRET_FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let text = format!("{}\n", HEXLOWER.encode(sys::random_32().as_slice()));
                write_atomically(&path, text.as_bytes())?;
                text
            }
            read => read?,
        };
        let root = HEXLOWER.decode(text.trim().as_bytes()).ok();
        let root = root.filter(|root| root.len() == 32).ok_or_else(|| {
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
            seal: RandomizedNonceKey::new(&AES_256_GCM, &key(b"second factors")?).ok()?,
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

    /// Encrypts for an owner, so that it can be read as theirs only.
    pub(super) fn seal(&self, owner: &str, plain: &[u8]) -> Option<String> {
        let mut bytes = plain.to_vec();
        let aad = Aad::from(owner.as_bytes());
        let nonce = self.seal.seal_in_place_append_tag(aad, &mut bytes).ok()?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.append(&mut bytes);
        Some(BASE64URL_NOPAD.encode(&sealed))
    }

    pub(super) fn unseal(&self, owner: &str, sealed: &str) -> Option<Vec<u8>> {
        let sealed = BASE64URL_NOPAD.decode(sealed.as_bytes()).ok()?;
        let (nonce, bytes) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = bytes.to_vec();
        let aad = Aad::from(owner.as_bytes());
        let plain = self.seal.open_in_place(nonce, aad, &mut bytes).ok()?;
        Some(plain.to_vec())
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
        let sealed = secrets.seal("a_1", b"secret").unwrap();
        assert_eq!(secrets.unseal("a_1", &sealed).unwrap(), b"secret");
        assert!(secrets.unseal("a_2", &sealed).is_none());
        assert!(
            Secrets::derive(&[2; 32])
                .unwrap()
                .unseal("a_1", &sealed)
                .is_none()
        );
        assert!(secrets.unseal("a_1", "AAAA").is_none());
        assert_ne!(sealed, secrets.seal("a_1", b"secret").unwrap());
    }

    #[test]
    fn a_form_of_another_session_is_told() {
        let secrets = Secrets::derive(&[1; 32]).unwrap();
        let token = secrets.form_token("s_1");
        assert!(secrets.is_form_token("s_1", &token));
        assert!(!secrets.is_form_token("s_2", &token) && !secrets.is_form_token("s_1", ""));
    }
}
