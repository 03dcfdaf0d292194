//! The dashboard: what people see of the server in a browser.

pub mod face;
