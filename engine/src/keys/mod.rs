//! Apps, API keys and the admin token, as kept in the data folder.
//!
//! `apps.json` holds the apps and a [`KeyRecord`] per key: hashes, never keys. `admin-token` holds the admin API's token
//! in clear, for its owner's tools. Not here: looking keys up ([`shardwire_proto::auth::key::KeyRing`]). Invariants: a
//! key is in clear only on its way to the operator who made it; two keys are never the same.

mod data_dir;

use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use shardwire_proto::auth::key::{
    KeyKind, KeyRecord, default_capabilities, generate_key, is_well_formed,
};

pub use self::data_dir::{DataDir, DataError, write_atomically};
use crate::config::Env;

const APPS_FILE: &str = "apps.json";
const ADMIN_TOKEN_FILE: &str = "admin-token";
/// Version of the file's form; another one is refused rather than guessed at.
const APPS_VERSION: u32 = 1;
/// The app that the first start makes.
const DEV_APP: &str = "dev";
/// Names of its two keys.
const DEV_CLIENT: &str = "dev-client";
const DEV_SERVER: &str = "dev-server";

/// Values the environment fixes for the keys of app `dev`, for tests and demos.
#[derive(Clone, Default)]
pub struct DevKeys {
    client: Option<String>,
    server: Option<String>,
}

impl DevKeys {
    /// Reads `SHARDWIRE_DEV_KEY` and `SHARDWIRE_DEV_SERVER_KEY`.
    ///
    /// # Errors
    /// A message naming the variable whose value does not have the form of a key, or is the other's.
    pub fn from_env(env: &Env) -> Result<Self, String> {
        let read = |name: &str| match env.var(name) {
            Some(key) if !is_well_formed(key) => Err(format!(
                "{name}: a key is 16 to 128 characters of A-Z, a-z, 0-9, _ and -"
            )),
            key => Ok(key.map(str::to_owned)),
        };
        let keys = Self {
            client: read("SHARDWIRE_DEV_KEY")?,
            server: read("SHARDWIRE_DEV_SERVER_KEY")?,
        };
        if keys.client.is_some() && keys.client == keys.server {
            return Err("SHARDWIRE_DEV_SERVER_KEY: must differ from SHARDWIRE_DEV_KEY".to_owned());
        }
        Ok(keys)
    }
}

/// The keys that the first start made: the only time they are known in clear.
#[derive(Clone)]
pub struct FirstStart {
    /// For browsers and devices.
    pub client_key: String,
    /// For back ends.
    pub server_key: String,
}

impl fmt::Debug for FirstStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirstStart")
    }
}

/// `apps.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Apps {
    version: u32,
    apps: Vec<App>,
    keys: Vec<KeyRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct App {
    id: String,
}

/// Reads the keys of all apps. With no app yet, makes app `dev` with a client and a server key, whose values the caller
/// then shows. Values in `fixed` replace those of the dev app's keys. Makes the admin token where it is missing.
///
/// # Errors
/// A file cannot be read, understood or written; or a fixed value is another key's already.
pub fn open(
    dir: &DataDir,
    fixed: &DevKeys,
) -> Result<(Vec<KeyRecord>, Option<FirstStart>), DataError> {
    ensure_admin_token(dir)?;
    let mut apps = read_apps(dir)?;
    let mut changed = false;
    let mut first_start = None;
    if apps.apps.is_empty() {
        let first = FirstStart {
            client_key: fixed
                .client
                .clone()
                .unwrap_or_else(|| random_key(KeyKind::Client)),
            server_key: fixed
                .server
                .clone()
                .unwrap_or_else(|| random_key(KeyKind::Server)),
        };
        set_dev_key(dir, &mut apps, KeyKind::Client, &first.client_key)?;
        set_dev_key(dir, &mut apps, KeyKind::Server, &first.server_key)?;
        first_start = Some(first);
        changed = true;
    } else {
        for (kind, key) in [
            (KeyKind::Client, &fixed.client),
            (KeyKind::Server, &fixed.server),
        ] {
            if let Some(key) = key {
                changed |= set_dev_key(dir, &mut apps, kind, key)?;
            }
        }
    }
    if changed {
        let path = dir.file(APPS_FILE);
        let mut text = serde_json::to_vec_pretty(&apps).map_err(|error| {
            DataError::new(
                "write",
                &path,
                &error,
                "report this as a fault of shardwire",
            )
        })?;
        text.push(b'\n');
        dir.write(APPS_FILE, &text)?;
    }
    Ok((apps.keys, first_start))
}

/// The keys as the file has them, for a reload. Changes nothing.
///
/// # Errors
/// The file cannot be read or understood.
pub fn read(dir: &DataDir) -> Result<Vec<KeyRecord>, DataError> {
    read_apps(dir).map(|apps| apps.keys)
}

fn read_apps(dir: &DataDir) -> Result<Apps, DataError> {
    const REMEDY: &str = "restore it from a backup, or remove it to start with fresh keys";
    let Some(text) = dir.read(APPS_FILE)? else {
        return Ok(Apps {
            version: APPS_VERSION,
            apps: Vec::new(),
            keys: Vec::new(),
        });
    };
    let path = dir.file(APPS_FILE);
    let apps: Apps = serde_json::from_str(&text)
        .map_err(|error| DataError::new("understand", &path, &error, REMEDY))?;
    if apps.version != APPS_VERSION {
        let cause = format!(
            "its version is {}, this build knows {APPS_VERSION}",
            apps.version
        );
        return Err(DataError::new(
            "understand",
            &path,
            &cause,
            "use the release that wrote it",
        ));
    }
    Ok(apps)
}

/// Gives the dev app's key of this kind the value `key`; returns whether that changed anything.
fn set_dev_key(
    dir: &DataDir,
    apps: &mut Apps,
    kind: KeyKind,
    key: &str,
) -> Result<bool, DataError> {
    let id = match kind {
        KeyKind::Client => DEV_CLIENT,
        KeyKind::Server => DEV_SERVER,
    };
    let path = dir.file(APPS_FILE);
    let record = KeyRecord::new(
        id.to_owned(),
        DEV_APP.to_owned(),
        kind,
        key,
        default_capabilities(kind),
    )
    .map_err(|error| {
        DataError::new(
            "store a key in",
            &path,
            &error,
            "use 16 to 128 characters of [A-Za-z0-9_-]",
        )
    })?;
    if let Some(same) = apps.keys.iter().find(|known| known.hash == record.hash) {
        if same.id == record.id && same.app == record.app {
            return Ok(false);
        }
        let cause = format!(
            "the value given for key {id} is that of key {} already",
            same.id
        );
        return Err(DataError::new(
            "store a key in",
            &path,
            &cause,
            "choose another value",
        ));
    }
    apps.keys
        .retain(|known| !(known.id == record.id && known.app == record.app));
    apps.keys.push(record);
    if !apps.apps.iter().any(|app| app.id == DEV_APP) {
        apps.apps.push(App {
            id: DEV_APP.to_owned(),
        });
    }
    Ok(true)
}

/// A random key of this kind, 192 bits.
fn random_key(kind: KeyKind) -> String {
    generate_key(kind.key_prefix(), &random())
}

fn ensure_admin_token(dir: &DataDir) -> Result<(), DataError> {
    if dir
        .read(ADMIN_TOKEN_FILE)?
        .is_some_and(|token| !token.trim().is_empty())
    {
        return Ok(());
    }
    let mut token = generate_key("at_", &random());
    token.push('\n');
    dir.write(ADMIN_TOKEN_FILE, token.as_bytes())
}

/// The admin token of a data folder that was opened.
///
/// # Errors
/// The file cannot be read.
pub fn read_admin_token(data_dir: &Path) -> io::Result<String> {
    std::fs::read_to_string(data_dir.join(ADMIN_TOKEN_FILE)).map(|text| text.trim().to_owned())
}

fn random() -> [u8; 24] {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).expect("the kernel's random source works once the system is up");
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use shardwire_proto::auth::key::KeyRing;
    use tempfile::TempDir;

    use super::*;

    const CLIENT: &str = "ck_fixed_client_0123";
    const SERVER: &str = "sk_fixed_server_0123";

    fn folder() -> (TempDir, DataDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::lock(&temp.path().join("data")).unwrap();
        (temp, dir)
    }

    fn fixed(variables: &[(&str, &str)]) -> Result<DevKeys, String> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        DevKeys::from_env(&variables.collect())
    }

    #[test]
    fn the_first_start_makes_keys_that_the_second_knows_by_hash_only() {
        let (_temp, dir) = folder();
        let (keys, first) = open(&dir, &DevKeys::default()).unwrap();
        let first = first.unwrap();
        assert!(first.client_key.starts_with("ck_") && first.server_key.starts_with("sk_"));
        let ring = KeyRing::new(keys);
        assert_eq!(
            ring.authenticate(&first.client_key).unwrap().kind,
            KeyKind::Client
        );
        assert_eq!(
            ring.authenticate(&first.server_key).unwrap().kind,
            KeyKind::Server
        );

        let text = dir.read(APPS_FILE).unwrap().unwrap();
        assert!(!text.contains(&first.client_key) && !text.contains(&first.server_key));
        assert_eq!(read(&dir).unwrap().len(), 2);
        let (again, second) = open(&dir, &DevKeys::default()).unwrap();
        assert!(second.is_none());
        assert!(KeyRing::new(again).authenticate(&first.server_key).is_ok());
        assert_eq!(dir.read(APPS_FILE).unwrap().unwrap(), text);
    }

    #[test]
    fn the_environment_fixes_the_first_keys_and_replaces_later_ones() {
        let (_temp, dir) = folder();
        let only_client = fixed(&[("SHARDWIRE_DEV_KEY", CLIENT)]).unwrap();
        let first = open(&dir, &only_client).unwrap().1.unwrap();
        assert_eq!(first.client_key, CLIENT);

        let only_server = fixed(&[("SHARDWIRE_DEV_SERVER_KEY", SERVER)]).unwrap();
        let (keys, second) = open(&dir, &only_server).unwrap();
        assert!(second.is_none() && keys.len() == 2);
        let ring = KeyRing::new(keys);
        assert!(ring.authenticate(CLIENT).is_ok() && ring.authenticate(SERVER).is_ok());
        assert!(ring.authenticate(&first.server_key).is_err());
    }

    #[test]
    fn one_value_cannot_be_both_keys() {
        let (_temp, dir) = folder();
        open(&dir, &fixed(&[("SHARDWIRE_DEV_KEY", CLIENT)]).unwrap()).unwrap();
        let told = open(
            &dir,
            &fixed(&[("SHARDWIRE_DEV_SERVER_KEY", CLIENT)]).unwrap(),
        )
        .unwrap_err()
        .to_string();
        assert!(
            told.contains("dev-client") && !told.contains(CLIENT),
            "{told}"
        );
        assert!(
            fixed(&[
                ("SHARDWIRE_DEV_KEY", CLIENT),
                ("SHARDWIRE_DEV_SERVER_KEY", CLIENT)
            ])
            .is_err()
        );
    }

    #[test]
    fn a_malformed_value_is_refused_by_the_name_of_its_variable_without_showing_it() {
        let told = fixed(&[("SHARDWIRE_DEV_SERVER_KEY", "too short")])
            .err()
            .unwrap();
        assert!(
            told.contains("SHARDWIRE_DEV_SERVER_KEY") && !told.contains("too short"),
            "{told}"
        );
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused_and_left_alone() {
        for text in [
            "{",
            r#"{"version":2,"apps":[],"keys":[]}"#,
            r#"{"version":1,"apps":[],"keys":[],"more":1}"#,
        ] {
            let (_temp, dir) = folder();
            dir.write(APPS_FILE, text.as_bytes()).unwrap();
            let told = open(&dir, &DevKeys::default()).unwrap_err().to_string();
            assert!(told.contains("apps.json"), "{told}");
            assert_eq!(dir.read(APPS_FILE).unwrap().unwrap(), text);
        }
    }

    #[test]
    fn the_admin_token_is_made_once_and_for_its_owner() {
        let (_temp, dir) = folder();
        open(&dir, &DevKeys::default()).unwrap();
        let token = dir.read(ADMIN_TOKEN_FILE).unwrap().unwrap();
        assert!(is_well_formed(token.trim()));
        open(&dir, &DevKeys::default()).unwrap();
        assert_eq!(dir.read(ADMIN_TOKEN_FILE).unwrap().unwrap(), token);
        for name in [ADMIN_TOKEN_FILE, APPS_FILE] {
            assert_eq!(
                dir.file(name).metadata().unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }
}
