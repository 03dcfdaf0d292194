//! Message encryption for Web Push (RFC 8291, aes128gcm of RFC 8188) and VAPID keys (RFC 8292).
//!
//! The primitives are aws-lc's; here is only the order in which the two RFCs use them. Not here: what is encrypted.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use aws_lc_rs::rand;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use data_encoding::BASE64URL_NOPAD;
use jsonwebtoken::EncodingKey;

/// Bytes of a record: one holds any notification that has been accepted.
const RECORD_BYTES: u32 = 4096;
/// Behind the text of the last record (RFC 8188, 2).
const LAST_RECORD: u8 = 2;

/// Whom a message is encrypted for, read from a subscription.
#[derive(Debug, Clone, Copy)]
pub(super) struct Receiver<'a> {
    /// An uncompressed P-256 point.
    pub(super) public: &'a [u8],
    /// The shared secret.
    pub(super) auth: &'a [u8],
}

/// Encrypts `text` as a body with `Content-Encoding: aes128gcm`.
///
/// # Errors
/// The receiver's key is not a point of the curve.
pub(super) fn encrypt(text: &[u8], receiver: Receiver<'_>) -> Result<Vec<u8>, Unspecified> {
    let mut salt = [0; 16];
    rand::fill(&mut salt)?;
    encrypt_with(text, receiver, &PrivateKey::generate(&ECDH_P256)?, &salt)
}

fn encrypt_with(
    text: &[u8],
    receiver: Receiver<'_>,
    own: &PrivateKey,
    salt: &[u8; 16],
) -> Result<Vec<u8>, Unspecified> {
    let own_public = own.compute_public_key()?;
    let own_public = own_public.as_ref();
    let peer = UnparsedPublicKey::new(&ECDH_P256, receiver.public);
    // RFC 8291, 3.4.
    let key = agreement::agree(own, peer, Unspecified, |secret| {
        let info = [b"WebPush: info\0", receiver.public, own_public];
        expand::<32>(
            &Salt::new(HKDF_SHA256, receiver.auth).extract(secret),
            &info,
        )
    })?;
    // RFC 8188, 2.2 and 2.3.
    let key = Salt::new(HKDF_SHA256, salt).extract(&key);
    let content_key = expand::<16>(&key, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce = expand::<12>(&key, &[b"Content-Encoding: nonce\0"])?;

    // RFC 8188, 2.1: salt, record size, and the sender's key as its id.
    let id_bytes = u8::try_from(own_public.len()).map_err(|_| Unspecified)?;
    let mut body = Vec::with_capacity(21 + own_public.len() + text.len() + 17);
    body.extend_from_slice(salt);
    body.extend_from_slice(&RECORD_BYTES.to_be_bytes());
    body.push(id_bytes);
    body.extend_from_slice(own_public);
    let mut record = [text, &[LAST_RECORD]].concat();
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &content_key)?).seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::empty(),
        &mut record,
    )?;
    body.extend_from_slice(&record);
    Ok(body)
}

/// So many bytes of HKDF.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

fn expand<const N: usize>(key: &Prk, info: &[&[u8]]) -> Result<[u8; N], Unspecified> {
    let mut out = [0; N];
    key.expand(info, Bytes(N))?.fill(&mut out)?;
    Ok(out)
}

/// A VAPID key pair. Not `Debug`: it holds a secret.
pub(super) struct VapidKey {
    /// The private number, 32 bytes, base64url: the form in which others' tools keep it.
    pub(super) private: String,
    /// The uncompressed point, base64url: what browsers subscribe with.
    pub(super) public: String,
    pub(super) signing: EncodingKey,
}

impl VapidKey {
    pub(super) fn generate() -> Result<Self, Unspecified> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
        let private: aws_lc_rs::encoding::EcPrivateKeyBin<'_> =
            aws_lc_rs::encoding::AsBigEndian::as_be_bytes(&pair.private_key())?;
        Self::from_private(private.as_ref())
    }

    /// From the private number.
    pub(super) fn from_private(private: &[u8]) -> Result<Self, Unspecified> {
        let public = PrivateKey::from_private_key(&ECDH_P256, private)
            .map_err(|_| Unspecified)?
            .compute_public_key()?;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            private,
            public.as_ref(),
        )
        .map_err(|_| Unspecified)?;
        Ok(Self {
            private: BASE64URL_NOPAD.encode(private),
            public: BASE64URL_NOPAD.encode(public.as_ref()),
            signing: EncodingKey::from_ec_der(pair.to_pkcs8v1()?.as_ref()),
        })
    }
}

/// Whether a subscription's key is a point of the curve.
pub(super) fn is_point(public: &[u8]) -> bool {
    agreement::ParsedPublicKey::try_from(UnparsedPublicKey::new(&ECDH_P256, public)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Vec<u8> {
        BASE64URL_NOPAD.decode(text.as_bytes()).unwrap()
    }

    #[test]
    fn the_example_of_rfc_8291() {
        let public = decode(
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
        );
        let auth = decode("BTBZMqHH6r4Tts7J_aSIgg");
        let own = decode("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw");
        let own = PrivateKey::from_private_key(&ECDH_P256, &own).unwrap();
        let salt = decode("DGv6ra1nlYgDCS1FRnbzlw").try_into().unwrap();
        let receiver = Receiver {
            public: &public,
            auth: &auth,
        };
        let text = b"When I grow up, I want to be a watermelon";
        let body = encrypt_with(text, receiver, &own, &salt).unwrap();
        assert_eq!(
            BASE64URL_NOPAD.encode(&body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN",
        );
    }

    #[test]
    fn a_key_that_is_no_point_is_refused() {
        let receiver = Receiver {
            public: &[4; 65],
            auth: &[0; 16],
        };
        assert!(encrypt(b"x", receiver).is_err());
        assert!(!is_point(&[4; 65]));
    }

    #[test]
    fn vapid_keys_come_back_from_their_private_number() {
        let made = VapidKey::generate().unwrap();
        let private = decode(&made.private);
        assert_eq!(private.len(), 32);
        assert_eq!(decode(&made.public).len(), 65);
        assert!(is_point(&decode(&made.public)));
        let again = VapidKey::from_private(&private).unwrap();
        assert_eq!(again.public, made.public);
        assert!(VapidKey::from_private(&[0; 32]).is_err());
    }
}
