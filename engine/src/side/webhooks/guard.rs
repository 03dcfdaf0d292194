//! Where deliveries may go: not into the operator's own networks, unless the operator says so.
//!
//! A name is looked up once per connection; only the addresses that pass are connected to, so what a name means cannot
//! change between look and connect. Redirects are not followed, and no proxy of the environment is used.

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::side::egress::{is_allowed_host, is_public};

/// What the attempt's error says; part of the delivery log.
pub(super) const REFUSED: &str = "the target's address is not public";

/// Resolves names to public addresses alone.
#[derive(Debug, Default)]
pub(super) struct PublicOnly;

impl Resolver for PublicOnly {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = DefaultResolver::default().resolve(uri, config, timeout)?;
        let mut public = self.empty();
        for address in found.iter().filter(|address| is_public(address.ip())) {
            public.push(*address);
        }
        if public.is_empty() {
            return Err(ureq::Error::Other(REFUSED.into()));
        }
        Ok(public)
    }
}

/// Checks a target as it is written.
///
/// # Errors
/// What is wrong, for whoever wrote it.
pub(super) fn check_url(url: &str, require_https: bool, allow_private: bool) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|_| "`url` is not a URL".to_owned())?;
    let scheme = uri.scheme_str().unwrap_or_default();
    if scheme != "https" && (require_https || scheme != "http") {
        let wanted = if require_https {
            "https://"
        } else {
            "https:// or http://"
        };
        return Err(format!("`url` must begin with {wanted}"));
    }
    let authority = uri.authority().map(|a| a.as_str()).unwrap_or_default();
    if authority.contains('@') {
        return Err("`url` must not hold credentials".into());
    }
    let host = uri.host().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| "`url` names no host".to_owned())?;
    let is_local = host.eq_ignore_ascii_case("localhost") && !allow_private;
    if is_local || !is_allowed_host(host, allow_private) {
        return Err(format!("`url`: {REFUSED}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_checked_as_they_are_written() {
        let check = |url| check_url(url, false, false);
        assert!(check("https://example.com/hook?x=1").is_ok());
        assert!(check("http://example.com:8080/").is_ok());
        for bad in [
            "",
            "example.com",
            "ftp://example.com/",
            "https://u:p@example.com/",
            "http://localhost/",
            "http://127.0.0.1/",
            "http://[::1]:80/",
            "http://[::ffff:10.0.0.1]/",
            "/path",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check_url("http://example.com", true, false).is_err());
        assert!(check_url("http://127.0.0.1:9/", false, true).is_ok());
    }
}
