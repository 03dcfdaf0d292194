//! Calls of the admin API.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use ureq::http::{Method, Request, Uri};

use crate::failure::Failure;

/// Where a server started here keeps its token.
const DEFAULT_TOKEN_FILE: &str = "data/admin-token";
/// From connecting to the whole answer: the server's own deadline for a publish is 10 s.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of an answer at most.
const ANSWER_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Entries asked for in one page of a list.
const PAGE: usize = 1000;

/// A server's admin API.
#[derive(Debug)]
pub(crate) struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<String>,
}

impl Client {
    /// The API at `url`; its token is in `token_file`, else in `token`, else in the data folder below this one.
    ///
    /// # Errors
    /// The URL is not one, or the file cannot be read.
    pub(crate) fn new(
        url: &str,
        token_file: Option<&Path>,
        token: Option<String>,
    ) -> Result<Self, Failure> {
        let uri: Uri = url
            .parse()
            .map_err(|_| Failure::Usage(format!("{url}: not a URL")))?;
        if uri.scheme_str() != Some("http") {
            let text =
                format!("{url}: only http:// is spoken; reach a remote server through a tunnel");
            return Err(Failure::Usage(text));
        }
        let token = match (token_file, token) {
            (Some(path), _) => Some(
                fs::read_to_string(path)
                    .map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?,
            ),
            (None, Some(token)) => Some(token),
            (None, None) => fs::read_to_string(DEFAULT_TOKEN_FILE).ok(),
        };
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(TIMEOUT))
            .proxy(None)
            .build();
        Ok(Self {
            agent: config.new_agent(),
            base: url.trim_end_matches('/').to_owned(),
            token: token.map(|token| token.trim().to_owned()),
        })
    }

    /// The host that the API is at.
    pub(crate) fn host(&self) -> String {
        let uri: Option<Uri> = self.base.parse().ok();
        uri.and_then(|uri| uri.host().map(str::to_owned))
            .unwrap_or_default()
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::GET, path, None)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(body.to_string()))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PUT, path, Some(body.to_string()))
    }

    pub(crate) fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.call(Method::PATCH, path, Some(body.to_string()))
    }

    pub(crate) fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.call(Method::DELETE, path, None)
    }

    /// At most `limit` entries of a list, from as many pages as it takes; and whether there are more.
    pub(crate) fn list(
        &self,
        path: &str,
        name: &str,
        mut query: Query,
        limit: usize,
    ) -> Result<(Vec<Value>, bool), Failure> {
        let mut found = Vec::new();
        loop {
            let left = limit - found.len();
            query.set("limit", left.min(PAGE));
            let mut page = self.get(&query.path(path))?;
            if let Value::Array(entries) = page[name].take() {
                found.extend(entries);
            }
            match page["cursor"].as_str() {
                Some(cursor) if found.len() < limit => query.set("cursor", cursor),
                cursor => return Ok((found, cursor.is_some())),
            }
        }
    }

    /// A publish, whose body is sent as it is.
    pub(crate) fn post_text(&self, path: &str, body: String) -> Result<Value, Failure> {
        self.call(Method::POST, path, Some(body))
    }

    fn call(&self, method: Method, path: &str, body: Option<String>) -> Result<Value, Failure> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("Accept", "application/json");
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let broken = |error: ureq::http::Error| Failure::Usage(error.to_string());
        let answer = match body {
            Some(body) => {
                let request = request.header("Content-Type", "application/json");
                self.agent.run(request.body(body).map_err(broken)?)
            }
            None => self.agent.run(request.body(()).map_err(broken)?),
        };
        let mut answer = answer.map_err(|error| self.transport(&error))?;
        let status = answer.status().as_u16();
        let text = answer
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
            .map_err(|error| self.transport(&error))?;
        let body: Value = serde_json::from_str(&text).map_err(|_| {
            Failure::Failed(format!(
                "{}: not the answer of an admin API (HTTP {status})",
                self.base
            ))
        })?;
        if (200..300).contains(&status) {
            return Ok(body);
        }
        Err(Failure::Refused {
            status,
            code: body["code"].as_u64().unwrap_or(u64::from(status) * 100),
            text: body["error"].as_str().unwrap_or("refused").to_owned(),
        })
    }

    fn transport(&self, error: &ureq::Error) -> Failure {
        Failure::Unreachable(format!("{}: {error}", self.base))
    }
}

/// A query string in the making.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(&'static str, String)>);

impl Query {
    pub(crate) fn set(&mut self, name: &'static str, value: impl Display) {
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, value.to_string()));
    }

    pub(crate) fn set_some(&mut self, name: &'static str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// `path` with the query behind it.
    pub(crate) fn path(&self, path: &str) -> String {
        let pairs: Vec<String> = self
            .0
            .iter()
            .map(|(name, value)| format!("{name}={}", part(value)))
            .collect();
        if pairs.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", pairs.join("&"))
        }
    }
}

/// A part of a path, encoded.
pub(crate) fn part(text: &str) -> impl Display + '_ {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_into_a_path_stays_one_part_of_it() {
        assert_eq!(part("a/b c?é").to_string(), "a%2Fb%20c%3F%C3%A9");
        let mut query = Query::default();
        query.set("prefix", "a&b");
        query.set_some("cursor", None::<&str>);
        query.set("limit", 1);
        query.set("limit", 2);
        assert_eq!(query.path("/x"), "/x?prefix=a%26b&limit=2");
    }

    #[test]
    fn only_what_can_be_spoken_is_accepted() {
        for url in ["ftp://a", "https://a", "127.0.0.1:9002", ""] {
            let refused = Client::new(url, None, None);
            assert!(matches!(refused, Err(Failure::Usage(_))), "{url}");
        }
        let client = Client::new("http://[::1]:9002/", None, Some("t\n".into())).unwrap();
        assert_eq!(
            (client.base.as_str(), client.token.as_deref()),
            ("http://[::1]:9002", Some("t"))
        );
        assert_eq!(client.host(), "[::1]");
    }
}
