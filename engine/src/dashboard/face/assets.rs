//! The style sheet and the scripts, part of the program. All have one version in their address, so that they can be kept
//! for ever by browsers and still find each other by relative names.

use std::hash::Hasher as _;
use std::sync::OnceLock;

use super::paths;

/// A file that pages refer to.
#[derive(Debug)]
pub struct Asset {
    pub name: &'static str,
    pub content_type: &'static str,
    pub bytes: &'static [u8],
}

macro_rules! asset {
    ($name:literal, $content_type:literal) => {
        Asset {
            name: $name,
            content_type: $content_type,
            bytes: include_bytes!(concat!("../assets/", $name)),
        }
    };
}

/// All of them.
pub const ASSETS: &[Asset] = &[
    asset!("style.css", "text/css; charset=utf-8"),
    asset!("ui.js", "text/javascript; charset=utf-8"),
    asset!("api.js", "text/javascript; charset=utf-8"),
    asset!("live.js", "text/javascript; charset=utf-8"),
    asset!("chart.js", "text/javascript; charset=utf-8"),
    asset!("console.js", "text/javascript; charset=utf-8"),
    asset!("wsocket.js", "text/javascript; charset=utf-8"),
    asset!("icon.svg", "image/svg+xml"),
];

/// The one with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name)
}

/// What changes whenever one of them does: the part of the address before the name. Good as a strong `ETag` too.
#[must_use]
pub fn version() -> &'static str {
    static VERSION: OnceLock<String> = OnceLock::new();
    VERSION.get_or_init(|| {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        for asset in ASSETS {
            hasher.write(asset.name.as_bytes());
            hasher.write(asset.bytes);
        }
        format!("{:016x}", hasher.finish())
    })
}

/// The address of one.
pub(crate) fn path(name: &str) -> String {
    paths::to(&["assets", version(), name])
}

/// FNV-1a, which unlike the standard library's hasher gives the same in every version of the compiler.
struct Fnv(u64);

impl std::hash::Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
