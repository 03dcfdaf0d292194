//! The bytes on the wire, one file per contract: parse in, serialise out.

pub mod http_api;
pub mod resume;
pub mod wsocket;
