//! The second factor of an account: setting it up, taking codes, taking it away.

use serde::Serialize;
use shardwire_proto::account::second_factor::{
    RECOVERY_BYTES, RECOVERY_CODES, RecoveryCodes, SECRET_BYTES, check_code, provisioning_url,
    secret_text,
};
use shardwire_proto::error::ErrorCode;

use super::documents::{Account, SecondFactor};
use super::keeper::{Keeper, Kept, Result, bad};
use crate::sys;

/// What an authenticator app is given. Holds a secret: not `Debug`.
#[derive(Clone, Serialize)]
pub struct Enrolment {
    /// To be typed.
    pub secret: String,
    /// To be read from a picture.
    pub url: String,
}

impl Keeper {
    /// Begins to set up a second factor; it counts once a code was confirmed.
    pub fn begin_second_factor(&mut self, account: &str) -> Result<Enrolment> {
        let mut kept = self.get::<Account>(account)?;
        if kept.document.second_factor.is_some() {
            return Err(bad("there is a second factor already; remove it first"));
        }
        let mut secret = [0; SECRET_BYTES];
        for (to, from) in secret.iter_mut().zip(sys::random_32()) {
            *to = from;
        }
        kept.document.pending_factor = self.secrets.vault.seal(account, &secret);
        let put = kept.put()?;
        self.apply(&[put])?;
        Ok(Enrolment {
            secret: secret_text(&secret),
            url: provisioning_url(&secret, &kept.document.email),
        })
    }

    /// What is being set up, to be shown again after a wrong code.
    pub fn pending_second_factor(&mut self, account: &str) -> Result<Option<Enrolment>> {
        let kept = self.get::<Account>(account)?;
        let secret = kept.document.pending_factor.as_deref();
        let secret = secret.and_then(|sealed| self.unseal(account, sealed));
        Ok(secret.map(|secret| Enrolment {
            secret: secret_text(&secret),
            url: provisioning_url(&secret, &kept.document.email),
        }))
    }

    /// Confirms the second factor with a code of it; returns recovery codes, this once.
    pub fn confirm_second_factor(&mut self, account: &str, code: &str) -> Result<Vec<String>> {
        let mut kept = self.get::<Account>(account)?;
        let sealed = kept.document.pending_factor.take();
        let sealed = sealed.ok_or_else(|| bad("no second factor is being set up"))?;
        let secret = self.unseal(account, &sealed).ok_or(ErrorCode::Internal)?;
        let now_ms = self.now();
        let step = check_code(&secret, code, 0, now_ms);
        let step = step.ok_or_else(|| bad("`code` is wrong; is the clock of the device right?"))?;
        let (recovery, codes) = make_recovery_codes();
        kept.document.second_factor = Some(SecondFactor {
            sealed,
            last_step: step,
            recovery,
            since_ms: now_ms,
        });
        let put = kept.put()?;
        self.apply(&[put])?;
        Ok(codes)
    }

    /// Takes the second factor away.
    pub fn remove_second_factor(&mut self, account: &str) -> Result<()> {
        let mut kept = self.get::<Account>(account)?;
        if kept.document.second_factor.take().is_none() {
            return Err(bad("there is no second factor"));
        }
        let put = kept.put()?;
        self.apply(&[put])
    }

    /// Makes other recovery codes in place of those that are left.
    pub fn renew_recovery_codes(&mut self, account: &str) -> Result<Vec<String>> {
        let mut kept = self.get::<Account>(account)?;
        let factor = kept.document.second_factor.as_mut();
        let factor = factor.ok_or_else(|| bad("there is no second factor"))?;
        let (recovery, codes) = make_recovery_codes();
        factor.recovery = recovery;
        let put = kept.put()?;
        self.apply(&[put])?;
        Ok(codes)
    }

    /// Recovery codes that are left; none without a second factor.
    pub fn recovery_codes_left(&mut self, account: &str) -> Result<Option<usize>> {
        let kept = self.get::<Account>(account)?;
        Ok(kept
            .document
            .second_factor
            .map(|factor| factor.recovery.len()))
    }

    /// Takes a code, and notes in the account that it is used; how it was, or none where it is wrong. The account is not
    /// written: the session that follows does that.
    pub(super) fn take_code(
        &self,
        kept: &mut Kept<Account>,
        code: &str,
    ) -> Result<Option<&'static str>> {
        let id = kept.id.clone();
        let factor = kept
            .document
            .second_factor
            .as_mut()
            .ok_or(ErrorCode::BadToken)?;
        let secret = self
            .unseal(&id, &factor.sealed)
            .ok_or(ErrorCode::Internal)?;
        if let Some(step) = check_code(&secret, code, factor.last_step, self.now()) {
            factor.last_step = step;
            return Ok(Some("signed in with a code"));
        }
        let is_taken = factor.recovery.take(code);
        Ok(is_taken.then_some("signed in with a recovery code"))
    }

    fn unseal(&self, account: &str, sealed: &str) -> Option<[u8; SECRET_BYTES]> {
        self.secrets.vault.unseal(account, sealed)?.try_into().ok()
    }
}

fn make_recovery_codes() -> (RecoveryCodes, Vec<String>) {
    let random: Vec<[u8; RECOVERY_BYTES]> = (0..RECOVERY_CODES)
        .map(|_| {
            let mut bytes = [0; RECOVERY_BYTES];
            for (to, from) in bytes.iter_mut().zip(sys::random()) {
                *to = from;
            }
            bytes
        })
        .collect();
    RecoveryCodes::make(&random)
}
