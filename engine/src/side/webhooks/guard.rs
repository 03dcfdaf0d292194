//! Where deliveries may go: not into the operator's own networks, unless the operator says so.
//!
//! A name is looked up once per connection; only the addresses that pass are connected to, so what a name means cannot
//! change between look and connect. Redirects are not followed, and no proxy of the environment is used.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

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

/// Whether an address is one of the public internet.
#[must_use]
pub(super) fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        // This network, private, loopback, link-local, private (RFC 1122, 1918, 3927).
        (0 | 10 | 127, ..) | (169, 254, _) | (192, 168, _) => true,
        (172, 16..=31, _) => true,
        // Shared by carriers (RFC 6598).
        (100, 64..=127, _) => true,
        // Protocol assignments, documentation, 6to4 relays, benchmarks (RFC 6890, 5737, 7526, 2544).
        (192, 0, 0 | 2) | (198, 51, 100) | (203, 0, 113) | (192, 88, 99) => true,
        (198, 18 | 19, _) => true,
        // Multicast, reserved, broadcast.
        (224.., ..) => true,
        _ => false,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // NAT64 and 6to4 lead to the IPv4 address within (RFC 6052, 3056).
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, ORCHID, documentation (RFC 4380, 7343, 3849).
        [0x2001, 0 | 0x10..=0x2f | 0xdb8, ..] => false,
        // Global unicast is 2000::/3; all else is loopback, local, multicast or unassigned.
        [first, ..] => first & 0xe000 == 0x2000,
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
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = literal.eq_ignore_ascii_case("localhost")
        || literal.parse().is_ok_and(|address| !is_public(address));
    if is_local && !allow_private {
        return Err(format!("`url`: {REFUSED}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_ones_own_networks_are_told_from_public_ones() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:7f00:1::1",
            "2001:db8::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "1.1.1.1",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

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
