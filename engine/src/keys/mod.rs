//! What the data folder holds of secrets, and what the first start makes.
//!
//! `registry.db` holds apps and credentials (see [`crate::registry`]); `apps.json` of earlier versions is taken into it
//! once. `admin-token` holds the admin API's token in clear, for its owner's tools. Invariants: an API key is in clear
//! only on its way to the operator who made it; two keys are never the same.

mod data_dir;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use shardwire_proto::auth::app::App;
use shardwire_proto::auth::edit::DocumentChange;
use shardwire_proto::auth::key::{
    KeyKind, KeyRecord, default_capabilities, generate_key, is_well_formed,
};
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::auth::signing::{Algorithm, KeyMaterial, SigningKey};
use shardwire_proto::limits::HS256_SECRET_BYTES_MIN;

pub use self::data_dir::{DataDir, DataError, write_atomically};
use crate::config::Env;
use crate::mongo::{Mongo, MongoConfig};
use crate::records::mongo::MongoRecordStorage;
use crate::registry::documents::{Documents, RecordDocuments, SqliteDocuments};

pub(crate) const REGISTRY_FILE: &str = "registry.db";
/// Of earlier versions.
const APPS_FILE: &str = "apps.json";
/// What it is called once it has been taken over.
const APPS_FILE_IMPORTED: &str = "apps.json.imported";
const ADMIN_TOKEN_FILE: &str = "admin-token";
/// Version of that file's form; another one is refused rather than guessed at.
const APPS_VERSION: u32 = 1;
/// The app that the first start makes.
const DEV_APP: &str = "dev";
/// Names of its two keys.
const DEV_CLIENT: &str = "dev-client";
const DEV_SERVER: &str = "dev-server";
/// Its signing key.
const DEV_SIGNING: &str = "dev-signing";

/// Values the environment fixes for the keys of app `dev`, for tests and demos.
#[derive(Clone, Default)]
pub struct DevKeys {
    client: Option<String>,
    server: Option<String>,
    /// The signing key's.
    jwt_secret: Option<String>,
}

impl DevKeys {
    /// Reads `SHARDWIRE_DEV_KEY`, `SHARDWIRE_DEV_SERVER_KEY` and `SHARDWIRE_DEV_JWT_SECRET`.
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
            jwt_secret: env.var("SHARDWIRE_DEV_JWT_SECRET").map(str::to_owned),
        };
        let secret = keys.jwt_secret.as_ref();
        if secret.is_some_and(|secret| secret.len() < HS256_SECRET_BYTES_MIN) {
            return Err(format!(
                "SHARDWIRE_DEV_JWT_SECRET: a secret has at least {HS256_SECRET_BYTES_MIN} bytes"
            ));
        }
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
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Imported {
    version: u32,
    apps: Vec<ImportedApp>,
    keys: Vec<KeyRecord>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportedApp {
    id: String,
}

/// Apps and credentials as they are at the start.
pub struct Opened {
    /// Where they are kept.
    pub documents: Box<dyn Documents>,
    /// What is there.
    pub registry: Registry,
    /// Where there was no app yet.
    pub first_start: Option<FirstStart>,
    /// Where everything else is kept, if not in the data folder.
    pub mongo: Option<Mongo>,
}

/// Opens apps and credentials, in the data folder or in the database that is configured. With no app yet, makes app `dev`
/// with a client and a server key, whose values the caller then shows, and a signing key. Values in `fixed` replace those
/// of the dev app. Makes the admin token where it is missing.
///
/// # Errors
/// A file or the database cannot be read, understood or written; or a fixed value is another key's already.
pub fn open(dir: &DataDir, fixed: &DevKeys, config: &MongoConfig) -> Result<Opened, DataError> {
    ensure_admin_token(dir)?;
    let Some(url) = &config.url else {
        let path = dir.file(REGISTRY_FILE);
        let documents = SqliteDocuments::open(&path);
        let documents = documents.map_err(|error| unusable(&path, &error))?;
        return open_documents(dir, fixed, Box::new(documents), &path);
    };
    let place = PathBuf::from(url.to_string());
    let failed = |error: String| DataError::new("use", &place, &error, REMEDY_DATABASE);
    let mongo = Mongo::connect(config).map_err(|error| failed(error.to_string()))?;
    let storage = MongoRecordStorage::new(mongo.clone());
    let documents = RecordDocuments::open(&storage).map_err(failed)?;
    let opened = open_documents(dir, fixed, Box::new(documents), &place)?;
    Ok(Opened {
        mongo: Some(mongo),
        ..opened
    })
}

const REMEDY_DATABASE: &str = "check store.mongo in the configuration, and the database";

fn unusable(place: &Path, error: &str) -> DataError {
    let remedy = "restore it from a backup, or remove it to start with fresh keys";
    DataError::new("use", place, &error, remedy)
}

fn open_documents(
    dir: &DataDir,
    fixed: &DevKeys,
    mut documents: Box<dyn Documents>,
    place: &Path,
) -> Result<Opened, DataError> {
    loop {
        let opened = prepare(dir, fixed, &mut *documents, place);
        // Another server has made them first.
        if opened.is_err() && documents.is_changed() {
            continue;
        }
        let (registry, first_start) = opened?;
        return Ok(Opened {
            documents,
            registry,
            first_start,
            mongo: None,
        });
    }
}

/// What is stored, with what is missing made.
fn prepare(
    dir: &DataDir,
    fixed: &DevKeys,
    documents: &mut dyn Documents,
    place: &Path,
) -> Result<(Registry, Option<FirstStart>), DataError> {
    let failed = |error: String| unusable(place, &error);
    let mut registry = documents
        .load()
        .and_then(|stored| Registry::from_documents(&stored))
        .map_err(failed)?;
    let import = read_apps(dir)?;
    let is_import = import.is_some();
    if let Some(imported) = import.filter(|_| registry.apps().next().is_none()) {
        registry = imported;
        store(documents, &registry.documents()).map_err(failed)?;
    }
    if is_import {
        let (from, to) = (dir.file(APPS_FILE), dir.file(APPS_FILE_IMPORTED));
        std::fs::rename(&from, to)
            .map_err(|error| DataError::new("rename", &from, &error, "check its owner and mode"))?;
    }
    let now_ms = crate::clock::now_ms();
    let mut first_start = None;
    let (mut client, mut server) = (fixed.client.clone(), fixed.server.clone());
    if registry.apps().next().is_none() {
        let client = client.get_or_insert_with(|| random_key(KeyKind::Client));
        let server = server.get_or_insert_with(|| random_key(KeyKind::Server));
        first_start = Some(FirstStart {
            client_key: client.clone(),
            server_key: server.clone(),
        });
    }
    let mut dev = Dev {
        changes: Vec::new(),
        registry,
        now_ms,
    };
    for (kind, key) in [(KeyKind::Client, client), (KeyKind::Server, server)] {
        if let Some(key) = key {
            dev.set_key(kind, &key).map_err(failed)?;
        }
    }
    if first_start.is_some() || fixed.jwt_secret.is_some() {
        let secret = fixed.jwt_secret.clone();
        dev.set_secret(secret.unwrap_or_else(|| generate_key("", &random())))
            .map_err(failed)?;
    }
    store(documents, &dev.changes).map_err(failed)?;
    Ok((dev.registry, first_start))
}

fn store(documents: &mut dyn Documents, changes: &[DocumentChange]) -> Result<(), String> {
    if changes.is_empty() {
        return Ok(());
    }
    documents.apply(changes)
}

/// What an earlier version has left, if it has.
fn read_apps(dir: &DataDir) -> Result<Option<Registry>, DataError> {
    const REMEDY: &str = "restore it from a backup, or remove it to start with fresh keys";
    let Some(text) = dir.read(APPS_FILE)? else {
        return Ok(None);
    };
    let path = dir.file(APPS_FILE);
    let not_understood = |error: String| DataError::new("understand", &path, &error, REMEDY);
    let imported: Imported =
        serde_json::from_str(&text).map_err(|error| not_understood(error.to_string()))?;
    if imported.version != APPS_VERSION {
        let cause = format!(
            "its version is {}, this build knows {APPS_VERSION}",
            imported.version
        );
        return Err(DataError::new(
            "understand",
            &path,
            &cause,
            "use the release that wrote it",
        ));
    }
    let apps = imported.apps.into_iter().map(|app| App::new(&app.id));
    Registry::new(apps, imported.keys, [], [])
        .map(Some)
        .map_err(not_understood)
}

/// The dev app in the making.
struct Dev {
    registry: Registry,
    changes: Vec<DocumentChange>,
    now_ms: u64,
}

impl Dev {
    /// Gives the dev app's key of this kind the value `key`.
    fn set_key(&mut self, kind: KeyKind, key: &str) -> Result<(), String> {
        let id = match kind {
            KeyKind::Client => DEV_CLIENT,
            KeyKind::Server => DEV_SERVER,
        };
        let grants = default_capabilities(kind);
        let record = KeyRecord::new(id.to_owned(), DEV_APP.to_owned(), kind, key, grants);
        let mut record = record.map_err(|error| error.to_string())?;
        record.created_ms = self.now_ms;
        self.registry
            .put_key(record, self.now_ms, &mut self.changes)
    }

    /// Gives the dev app's signing key this secret.
    fn set_secret(&mut self, secret: String) -> Result<(), String> {
        let key = SigningKey {
            kid: DEV_SIGNING.to_owned(),
            app: DEV_APP.to_owned(),
            algorithm: Algorithm::Hs256,
            material: KeyMaterial::Secret(secret),
            capabilities: default_capabilities(KeyKind::Client),
            disabled: false,
            created_ms: self.now_ms,
            expires_ms: None,
        };
        self.registry
            .put_signing_key(key, self.now_ms, &mut self.changes)
    }
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

/// Random bytes of the system.
pub(crate) fn random() -> [u8; 24] {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).expect("the kernel's random source works once the system is up");
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use shardwire_proto::error::ErrorCode;
    use tempfile::TempDir;

    use super::*;

    const CLIENT: &str = "ck_fixed_client_0123";
    const SERVER: &str = "sk_fixed_server_0123";

    fn open(dir: &DataDir, fixed: &DevKeys) -> Result<Opened, DataError> {
        super::open(dir, fixed, &MongoConfig::default())
    }

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

    fn kind_of(registry: &Registry, key: &str) -> Result<KeyKind, ErrorCode> {
        registry.ring().authenticate(key, 0).map(|key| key.kind)
    }

    /// Everything that a data folder's database files hold.
    fn on_disk(dir: &DataDir) -> Vec<u8> {
        let files = ["registry.db", "registry.db-wal"].map(|name| std::fs::read(dir.file(name)));
        files.into_iter().flatten().flatten().collect()
    }

    fn holds(bytes: &[u8], text: &str) -> bool {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    }

    #[test]
    fn the_first_start_makes_keys_that_the_second_knows_by_hash_only() {
        let (_temp, dir) = folder();
        let Opened {
            registry,
            first_start,
            ..
        } = open(&dir, &DevKeys::default()).unwrap();
        let first = first_start.unwrap();
        assert!(first.client_key.starts_with("ck_") && first.server_key.starts_with("sk_"));
        assert_eq!(kind_of(&registry, &first.client_key), Ok(KeyKind::Client));
        assert_eq!(kind_of(&registry, &first.server_key), Ok(KeyKind::Server));
        assert_eq!(registry.signing_keys(DEV_APP).count(), 1);
        let bytes = on_disk(&dir);
        assert!(holds(&bytes, DEV_CLIENT));
        assert!(!holds(&bytes, &first.client_key) && !holds(&bytes, &first.server_key));

        let second = open(&dir, &DevKeys::default()).unwrap();
        assert!(second.first_start.is_none());
        assert_eq!(second.registry.documents(), registry.documents());
    }

    #[test]
    fn the_environment_fixes_the_first_keys_and_replaces_later_ones() {
        let (_temp, dir) = folder();
        let only_client = fixed(&[("SHARDWIRE_DEV_KEY", CLIENT)]).unwrap();
        let first = open(&dir, &only_client).unwrap().first_start.unwrap();
        assert_eq!(first.client_key, CLIENT);

        let secret = "a secret of at least thirty-two bytes";
        let only_server = fixed(&[
            ("SHARDWIRE_DEV_SERVER_KEY", SERVER),
            ("SHARDWIRE_DEV_JWT_SECRET", secret),
        ]);
        let second = open(&dir, &only_server.unwrap()).unwrap();
        let registry = second.registry;
        assert!(second.first_start.is_none() && registry.keys(DEV_APP).count() == 2);
        assert!(kind_of(&registry, CLIENT).is_ok() && kind_of(&registry, SERVER).is_ok());
        assert!(kind_of(&registry, &first.server_key).is_err());
        let material = &registry.signing_keys(DEV_APP).next().unwrap().material;
        assert_eq!(*material, KeyMaterial::Secret(secret.into()));
        let third = open(&dir, &DevKeys::default()).unwrap();
        assert_eq!(third.registry.documents(), registry.documents());
    }

    #[test]
    fn one_value_cannot_be_both_keys() {
        let (_temp, dir) = folder();
        open(&dir, &fixed(&[("SHARDWIRE_DEV_KEY", CLIENT)]).unwrap()).unwrap();
        let both = fixed(&[("SHARDWIRE_DEV_SERVER_KEY", CLIENT)]).unwrap();
        let told = open(&dir, &both).err().unwrap().to_string();
        assert!(
            told.contains("dev-client") && !told.contains(CLIENT),
            "{told}"
        );
        let same = [
            ("SHARDWIRE_DEV_KEY", CLIENT),
            ("SHARDWIRE_DEV_SERVER_KEY", CLIENT),
        ];
        assert!(fixed(&same).is_err());
    }

    #[test]
    fn a_malformed_value_is_refused_by_the_name_of_its_variable_without_showing_it() {
        for name in ["SHARDWIRE_DEV_SERVER_KEY", "SHARDWIRE_DEV_JWT_SECRET"] {
            let told = fixed(&[(name, "too short")]).err().unwrap();
            assert!(told.contains(name) && !told.contains("too short"), "{told}");
        }
    }

    #[test]
    fn apps_of_an_earlier_version_are_taken_over_once() {
        let (_temp, dir) = folder();
        let grants = default_capabilities(KeyKind::Server);
        let key = KeyRecord::new("k".into(), "shop".into(), KeyKind::Server, SERVER, grants);
        let mut record = serde_json::to_value(key.unwrap()).unwrap();
        // Fields that the version had not yet.
        record.as_object_mut().unwrap().remove("createdMs");
        record.as_object_mut().unwrap().remove("name");
        let text = serde_json::json!({"version": 1, "apps": [{"id": "shop"}], "keys": [record]});
        dir.write(APPS_FILE, text.to_string().as_bytes()).unwrap();
        let opened = open(&dir, &DevKeys::default()).unwrap();
        assert!(opened.first_start.is_none());
        assert_eq!(kind_of(&opened.registry, SERVER), Ok(KeyKind::Server));
        assert!(!dir.file(APPS_FILE).exists() && dir.file(APPS_FILE_IMPORTED).exists());
        let again = open(&dir, &DevKeys::default()).unwrap();
        assert_eq!(kind_of(&again.registry, SERVER), Ok(KeyKind::Server));
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
            let told = open(&dir, &DevKeys::default()).err().unwrap().to_string();
            assert!(told.contains("apps.json"), "{told}");
            assert_eq!(dir.read(APPS_FILE).unwrap().unwrap(), text);
        }
    }

    #[test]
    fn the_admin_token_is_made_once_and_for_its_owner() {
        let (_temp, dir) = folder();
        let opened = open(&dir, &DevKeys::default()).unwrap();
        let token = dir.read(ADMIN_TOKEN_FILE).unwrap().unwrap();
        assert!(is_well_formed(token.trim()));
        open(&dir, &DevKeys::default()).unwrap();
        assert_eq!(dir.read(ADMIN_TOKEN_FILE).unwrap().unwrap(), token);
        for name in [ADMIN_TOKEN_FILE, REGISTRY_FILE] {
            assert_eq!(
                dir.file(name).metadata().unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        drop(opened);
    }
}
