//! A function per page: what is shared ([`Shell`](super::Shell)) and what the page is about, as data, give its markup.
//!
//! Structs that mirror an answer of the admin API are read from it as it is; fields it leaves out have their default.

pub mod account;
pub mod apps;
pub mod audit;
pub mod auth;
pub mod channels;
pub mod console;
pub mod error;

pub mod keys;
pub mod overview;
pub mod push;
pub mod server;
pub mod settings;
pub mod teams;
pub mod usage;
pub mod webhooks;
