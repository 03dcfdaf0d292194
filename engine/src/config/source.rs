//! Where settings come from: the environment, the file, and the reader that takes them in order of precedence.
//!
//! The reader never stops at a mistake: it keeps a list of problems, each naming where the value was written. A key that
//! is still in the file after every known one was taken is unknown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// What every environment variable of the program begins with.
const ENV_PREFIX: &str = "SHARDWIRE_";
/// Variables with the prefix that are not read by [`Reader::setting`]: other programs of the project, and keys.
const ENV_ELSEWHERE: [&str; 6] = [
    "SHARDWIRE_CONFIG",
    "SHARDWIRE_DEV_KEY",
    "SHARDWIRE_DEV_SERVER_KEY",
    "SHARDWIRE_DEV_JWT_SECRET",
    "SHARDWIRE_ADMIN_URL",
    "SHARDWIRE_ADMIN_TOKEN",
];
/// The file that is read when none is named.
const DEFAULT_FILE: &str = "./shardwire.toml";

/// The `SHARDWIRE_…` variables. An empty value counts as not set, as environment files of systemd leave them.
/// Holds keys: not `Debug`.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The variables of this process. A value that is not UTF-8 is taken with replacement characters, which no
    /// setting accepts or finds.
    #[must_use]
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| {
                Some((
                    name.into_string().ok()?,
                    value.to_string_lossy().into_owned(),
                ))
            })
            .collect()
    }

    /// The value of a variable.
    #[must_use]
    pub fn var(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours =
            |(name, value): &(String, String)| name.starts_with(ENV_PREFIX) && !value.is_empty();
        Self(variables.into_iter().filter(ours).collect())
    }
}

/// A setting that can be given in three places.
pub(super) struct Name {
    pub(super) flag: &'static str,
    pub(super) env: &'static str,
    pub(super) key: &'static str,
}

/// Takes settings by precedence and collects what is wrong with them.
pub(super) struct Reader<'e> {
    env: &'e Env,
    /// The file that is read, if any.
    pub(super) path: Option<PathBuf>,
    table: Table,
    known_env: Vec<&'static str>,
    problems: Vec<String>,
}

impl<'e> Reader<'e> {
    /// Opens the file that `flag`, the environment or the default names. Only the default may be absent.
    pub(super) fn open(flag: Option<&str>, env: &'e Env) -> Self {
        let mut reader = Self {
            env,
            path: None,
            table: Table::new(),
            known_env: ENV_ELSEWHERE.to_vec(),
            problems: Vec::new(),
        };
        let named = flag.or(env.var("SHARDWIRE_CONFIG"));
        let path = Path::new(named.unwrap_or(DEFAULT_FILE));
        match std::fs::read_to_string(path) {
            Ok(text) => match text.parse() {
                Ok(table) => reader.table = table,
                Err(error) => reader.problem(format!(
                    "{}: {}",
                    path.display(),
                    error.to_string().trim_end()
                )),
            },
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return reader;
            }
            Err(error) => reader.problem(format!(
                "cannot read the configuration file {}: {error}",
                path.display()
            )),
        }
        reader.path = Some(path.to_owned());
        reader
    }

    pub(super) fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    /// The value of a setting in text form, parsed: the flag's, else the environment's, else the file's. `None` when it
    /// is nowhere, or wrong, which is then a problem. `in_file` turns the file's value into the text form. A file value
    /// that is overruled is taken, unchecked.
    pub(super) fn setting<T>(
        &mut self,
        name: &Name,
        flag: Option<&str>,
        in_file: fn(Value) -> Result<String, &'static str>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.known_env.push(name.env);
        let value = self.take_value(name.key);
        let (place, text) = if let Some(text) = flag {
            (name.flag.to_owned(), Ok(text.to_owned()))
        } else if let Some(text) = self.env.var(name.env) {
            (name.env.to_owned(), Ok(text.to_owned()))
        } else {
            (self.place(name.key), in_file(value?))
        };
        match text.map_err(str::to_owned).and_then(|text| parse(&text)) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("{place}: {error}"));
                None
            }
        }
    }

    /// A setting that is only in the file; the default when it is absent or wrong.
    pub(super) fn take<T: DeserializeOwned>(&mut self, key: &str, default: T) -> T {
        let Some(value) = self.take_value(key) else {
            return default;
        };
        value.try_into().unwrap_or_else(|error: toml::de::Error| {
            let place = self.place(key);
            self.problem(format!("{place}: {}", error.message()));
            default
        })
    }

    /// A whole section whose keys are those of `default`, set one by one, so that each mistake is told with its key.
    pub(super) fn take_section<T: DeserializeOwned + serde::Serialize>(
        &mut self,
        section: &str,
        default: T,
    ) -> T {
        let Ok(known) = Table::try_from(&default) else {
            return default;
        };
        let mut set = Table::new();
        for key in known.keys() {
            let path = format!("{section}.{key}");
            let Some(value) = self.take_value(&path) else {
                continue;
            };
            let alone = Table::from_iter([(key.clone(), value.clone())]);
            match alone.try_into::<T>() {
                Ok(_) => _ = set.insert(key.clone(), value),
                Err(error) => {
                    let place = self.place(&path);
                    self.problem(format!("{place}: {}", error.message()));
                }
            }
        }
        set.try_into().unwrap_or(default)
    }

    /// What is wrong, unknown keys included, and what deserves a warning.
    pub(super) fn finish(mut self) -> (Vec<String>, Vec<String>) {
        let mut unknown = Vec::new();
        leaves(&self.table, "", &mut unknown);
        for key in unknown {
            let place = self.place(&key);
            self.problem(format!("unknown key {place}"));
        }
        let mut warnings = Vec::new();
        for name in self.env.0.keys().map(String::as_str) {
            if !self.known_env.contains(&name) {
                warnings.push(format!(
                    "environment variable {name} is not a setting and is ignored"
                ));
            }
        }
        (self.problems, warnings)
    }

    /// How messages name a key of the file.
    pub(super) fn place(&self, key: &str) -> String {
        match &self.path {
            Some(path) => format!("{key} in {}", path.display()),
            None => key.to_owned(),
        }
    }

    /// Removes the value at a dotted path, and its section once that is empty.
    fn take_value(&mut self, key: &str) -> Option<Value> {
        take_at(&mut self.table, key)
    }
}

fn take_at(table: &mut Table, path: &str) -> Option<Value> {
    let Some((section, rest)) = path.split_once('.') else {
        return table.remove(path);
    };
    let inner = table.get_mut(section)?.as_table_mut()?;
    let value = take_at(inner, rest);
    if inner.is_empty() {
        table.remove(section);
    }
    value
}

/// The dotted paths of what is in a table; an empty section counts as nothing.
fn leaves(table: &Table, prefix: &str, out: &mut Vec<String>) {
    for (key, value) in table {
        let path = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => leaves(inner, &format!("{path}."), out),
            _ => out.push(path),
        }
    }
}

/// The text form of a setting that is a string in the file.
pub(super) fn string(value: Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text),
        _ => Err("must be a string"),
    }
}

/// The text form of a setting that is an integer in the file.
pub(super) fn integer(value: Value) -> Result<String, &'static str> {
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        _ => Err("must be an integer"),
    }
}

/// The text form of an array of strings: they are separated by spaces.
pub(super) fn string_list(value: Value) -> Result<String, &'static str> {
    match value {
        Value::Array(entries) => {
            let entries: Result<Vec<_>, _> = entries.into_iter().map(string).collect();
            Ok(entries.map_err(|_| "must hold strings")?.join(" "))
        }
        other => string(other).map_err(|_| "must be a string or an array of strings"),
    }
}

/// The text form of a list of cores: `"0-3,6"` or `[0, 1]` in the file.
pub(super) fn core_list(value: Value) -> Result<String, &'static str> {
    match value {
        Value::Array(cores) => {
            let cores: Result<Vec<_>, _> = cores.into_iter().map(integer).collect();
            Ok(cores.map_err(|_| "must hold integers")?.join(","))
        }
        other => {
            string(other).map_err(|_| "must be a string such as \"0-3,6\" or an array of integers")
        }
    }
}
