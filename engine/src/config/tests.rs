use std::fs;
use std::path::Path;

use shardwire_proto::record::Sync;
use tempfile::TempDir;

use super::*;

fn host() -> Host {
    Host {
        cores: vec![0, 1, 2, 3],
        parallelism: 4,
        nofile: 20_000,
    }
}

fn env(variables: &[(&str, &str)]) -> Env {
    variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

/// Flags naming a file with this text.
fn with_file(folder: &TempDir, text: &str) -> Flags {
    let path = folder.path().join("shardwire.toml");
    fs::write(&path, text).unwrap();
    Flags {
        config: Some(path.to_str().unwrap().to_owned()),
        ..Flags::default()
    }
}

fn load(text: &str) -> Result<Config, Vec<String>> {
    let folder = TempDir::new().unwrap();
    Config::load(&with_file(&folder, text), &Env::default(), &host())
        .map_err(|error| error.problems)
}

/// The only problem of a file with this text.
fn problem(text: &str) -> String {
    let mut problems = load(text).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[test]
fn defaults_are_the_contract() {
    let config = load("").unwrap();
    assert_eq!(config.listen, "127.0.0.1:9001".parse().unwrap());
    assert_eq!(config.admin_listen, "127.0.0.1:9002".parse().unwrap());
    assert_eq!(config.data_dir, Path::new("./data"));
    assert_eq!(config.cores, [0, 1, 2, 3]);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(
        config.runtime,
        Runtime {
            spin_before_park_us: 0,
            connections_max: 20_000 - 512
        }
    );
    assert_eq!(
        (config.log.level, config.log.format),
        (log::LevelFilter::Info, LogFormat::Auto)
    );
    assert_eq!(
        config.drain,
        Drain {
            rate: 2000,
            deadline_s: 30,
            announce_s: 0,
        }
    );
    assert!(
        config.websocket.hello && config.http.cors_origins == ["*"] && config.warnings.is_empty()
    );
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let folder = TempDir::new().unwrap();
    let text =
        "listen = '127.0.0.1:1'\ndata_dir = '/file'\nshards = 1\nadmin.listen = '127.0.0.1:11'";
    let mut flags = with_file(&folder, text);
    let in_file = Config::load(&flags, &Env::default(), &host()).unwrap();
    assert_eq!(
        (
            in_file.listen.port(),
            in_file.admin_listen.port(),
            in_file.cores.len()
        ),
        (1, 11, 1)
    );

    let variables = env(&[
        ("SHARDWIRE_LISTEN", "127.0.0.1:2"),
        ("SHARDWIRE_DATA_DIR", "/env"),
        ("SHARDWIRE_SHARDS", "2"),
        ("SHARDWIRE_ADMIN_LISTEN", ""),
    ]);
    let in_env = Config::load(&flags, &variables, &host()).unwrap();
    assert_eq!(
        (
            in_env.listen.port(),
            in_env.data_dir.to_str(),
            in_env.cores.len()
        ),
        (2, Some("/env"), 2)
    );
    assert_eq!(
        in_env.admin_listen.port(),
        11,
        "an empty variable is not set"
    );

    flags.listen = Some("127.0.0.1:3".to_owned());
    flags.shards = Some("3".to_owned());
    let in_flags = Config::load(&flags, &variables, &host()).unwrap();
    assert_eq!(
        (
            in_flags.listen.port(),
            in_flags.data_dir.to_str(),
            in_flags.cores.len()
        ),
        (3, Some("/env"), 3)
    );
}

#[test]
fn the_environment_names_the_file_unless_a_flag_does() {
    let folder = TempDir::new().unwrap();
    let path = with_file(&folder, "shards = 2").config.unwrap();
    let config = Config::load(
        &Flags::default(),
        &env(&[("SHARDWIRE_CONFIG", &path)]),
        &host(),
    )
    .unwrap();
    assert_eq!(
        (config.cores.len(), config.file),
        (2, Some(PathBuf::from(&path)))
    );
    let flags = Flags {
        config: Some("/nonexistent/file".to_owned()),
        ..Flags::default()
    };
    let error = Config::load(&flags, &env(&[("SHARDWIRE_CONFIG", &path)]), &host()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("cannot read the configuration file /nonexistent/file"),
        "{error}"
    );
}

#[test]
fn every_section_is_read() {
    let config = load(
        "cores = [1, 3]
        [limits]\nheartbeat_ms = 20000
        [websocket]\nhello = false\nallowed_origins = ['https://a.example']
        [http]\ncors_origins = ['http://localhost:3000', 'https://b.example']
        [runtime]\nspin_before_park_us = 50\nconnections_max = 100
        [log]\nlevel = 'debug'\nformat = 'json'
        [drain]\nrate = 10\ndeadline_s = 5
        [store]\nqueue_ops_max = 1000\ncommit_wait_us = 500
        [history]\nring_bytes_max = 1000000\nrecovery_overlap_ms = 50
        [[namespace]]\npattern = 'a:*'\nttl_s = 600\nmessages_max = 10\nsync = 'disk'
        [[namespace]]\npattern = 'b:*'\nhistory = false
        [[namespace]]\npattern = '*'\npersist = false",
    )
    .unwrap();
    assert_eq!(config.cores, [1, 3]);
    assert_eq!(
        config.limits,
        Limits {
            heartbeat_ms: 20_000,
            ..Limits::default()
        }
    );
    assert!(!config.websocket.hello && config.websocket.allowed_origins == ["https://a.example"]);
    assert_eq!(config.http.cors_origins.len(), 2);
    assert_eq!(
        config.runtime,
        Runtime {
            spin_before_park_us: 50,
            connections_max: 100
        }
    );
    assert_eq!(
        (config.log.level, config.log.format),
        (log::LevelFilter::Debug, LogFormat::Json)
    );
    assert_eq!(
        config.drain,
        Drain {
            rate: 10,
            deadline_s: 5,
            announce_s: 0,
        }
    );
    assert_eq!(
        config.store,
        StoreConfig {
            queue_ops_max: 1000,
            commit_wait_us: 500,
            ..StoreConfig::default()
        }
    );
    assert_eq!(
        config.history,
        History {
            ring_bytes_max: 1_000_000,
            recovery_overlap_ms: 50
        }
    );
    let namespaces = [
        Namespace {
            pattern: "a:*".into(),
            ttl_s: 600,
            messages_max: 10,
            sync: Sync::Disk,
            ..Namespace::default()
        },
        Namespace {
            pattern: "b:*".into(),
            history: false,
            ..Namespace::default()
        },
        Namespace {
            persist: false,
            ..Namespace::default()
        },
    ];
    assert_eq!(config.namespace, namespaces);
}

#[test]
fn unknown_keys_are_all_named_with_their_paths() {
    let text = "listn = 'x'\n[limits]\nheartbeats_ms = 1\n[broker.redis]\nurl = 'x'\n[websocket]\nhello = true\nhallo = 1";
    let problems = load(text).unwrap_err();
    assert_eq!(problems.len(), 4, "{problems:?}");
    for key in [
        "listn",
        "limits.heartbeats_ms",
        "broker.redis.url",
        "websocket.hallo",
    ] {
        assert!(
            problems
                .iter()
                .any(|p| p.starts_with(&format!("unknown key {key} in "))),
            "{key}: {problems:?}"
        );
    }
}

#[test]
fn mistakes_of_every_kind_are_told_together() {
    let problems = load(
        "shards = 0\nlisten = 'nowhere'\nwhat = 1\n[limits]\nheartbeat_ms = 'x'\n[drain]\nrate = 0",
    )
    .unwrap_err();
    assert_eq!(problems.len(), 5, "{problems:?}");
}

#[test]
fn bad_values_are_refused_with_their_place() {
    for (text, expected) in [
        ("listen = 9001", "listen in"),
        ("listen = '127.0.0.1'", "write 0.0.0.0:9001"),
        ("listen = '0.0.0.0:9002'", "have the same port"),
        ("data_dir = ''", "data_dir in"),
        ("shards = 129", "from 1 to 128"),
        ("shards = '2'", "must be an integer"),
        ("cores = '7'", "core 7 is not one of those"),
        ("cores = ['a']", "must hold integers"),
        (
            "limits.publish_bytes_max = -1",
            "limits.publish_bytes_max in",
        ),
        (
            "limits.heartbeat_ms = 60000",
            "heartbeat_ms must be between",
        ),
        ("websocket.hello = 'yes'", "websocket.hello in"),
        (
            "websocket.allowed_origins = ['https://a.example/']",
            "is not an origin",
        ),
        ("http.cors_origins = ['a.example']", "is not an origin"),
        ("websocket.allowed_origins = ['*']", "is not an origin"),
        (
            "runtime.spin_before_park_us = 10001",
            "is not between 0 and 10000",
        ),
        ("log.level = 'loud'", "is not a level"),
        ("log.format = 'xml'", "log.format in"),
        ("drain.deadline_s = 0", "is not between 1 and 3600"),
        ("drain = 5", "unknown key drain in"),
        ("store.readers = 0", "is not between 1 and 64"),
        ("store.queue_ops_max = 0", "store.queue_ops_max in"),
        ("store.batch_ops_max = 0", "store.batch_ops_max in"),
        (
            "store.commit_wait_us = 1000001",
            "is not between 0 and 1000000",
        ),
        (
            "history.recovery_overlap_ms = 120001",
            "is not between 0 and 120000",
        ),
        ("namespace = 1", "namespace in"),
        ("[[namespace]]\nttl_s = 600", "pattern"),
        ("[[namespace]]\npattern = 'a'\nttl = 600", "ttl"),
        ("[[namespace]]\npattern = 'a*'", "a*"),
        ("[[namespace]]\npattern = 'a'\nttl_s = 119", "below 120"),
        (
            "[[namespace]]\npattern = 'a'\nmessages_max = 0",
            "messages_max is 0",
        ),
        ("[[namespace]]\npattern = 'a'\nsync = 'power'", "power"),
    ] {
        let told = problem(text);
        assert!(told.contains(expected), "{text}: {told}");
    }
}

#[test]
fn a_syntax_error_names_file_and_line() {
    let told = problem("shards = 2\nlisten = \n");
    assert!(
        told.contains("shardwire.toml") && told.contains("line 2"),
        "{told}"
    );
}

#[test]
fn flags_and_variables_are_named_as_the_place() {
    let flags = Flags {
        shards: Some("many".to_owned()),
        ..Flags::default()
    };
    let error = Config::load(&flags, &env(&[("SHARDWIRE_LISTEN", "x")]), &host()).unwrap_err();
    assert!(
        error.problems.iter().any(|p| p.starts_with("--shards: ")),
        "{error}"
    );
    assert!(
        error
            .problems
            .iter()
            .any(|p| p.starts_with("SHARDWIRE_LISTEN: ")),
        "{error}"
    );
}

#[test]
fn variables_that_would_be_ignored_are_told() {
    let variables = env(&[
        ("SHARDWIRE_LISTN", "x"),
        ("SHARDWIRE_DEV_KEY", "secret"),
        ("PATH", "/bin"),
    ]);
    let config = Config::load(&Flags::default(), &variables, &host()).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("SHARDWIRE_LISTN"));
}

#[test]
fn connections_are_bounded_by_the_descriptor_limit() {
    let config = load("runtime.connections_max = 1000000").unwrap();
    assert_eq!(config.runtime.connections_max, 20_000 - 512);
    assert!(
        config.warnings[0].contains("RLIMIT_NOFILE"),
        "{:?}",
        config.warnings
    );
    let poor = Host {
        nofile: 100,
        ..host()
    };
    let config = Config::load(&Flags::default(), &Env::default(), &poor).unwrap();
    assert_eq!(config.runtime.connections_max, 1);
}

#[test]
fn a_reload_names_what_changed() {
    let before = load("[limits]\nheartbeat_ms = 20000").unwrap();
    let after = load("admin.listen = '127.0.0.1:1'\n[log]\nlevel = 'warn'").unwrap();
    assert_eq!(
        before.changed(&after),
        ["admin.listen", "limits.heartbeat_ms", "log.level"]
    );
    assert!(before.changed(&before).is_empty());
    assert_eq!(
        before.changed(&load("shards = 2\nlimits.heartbeat_ms = 20000").unwrap()),
        ["shards"]
    );
    assert_eq!(
        before.changed(&load("cores = '3,2,1,0'\nlimits.heartbeat_ms = 20000").unwrap()),
        ["cores"]
    );
}

#[test]
fn certificates_of_both_listeners() {
    let config = load(
        "[tls]\ncertificates = [{ cert = 'a.pem', key = 'a.key' }]\n\
         [admin]\nlisten = '127.0.0.1:7'\n[admin.tls]\ncert = 'b.pem'\nkey = 'b.key'\nclient_ca = 'ca.pem'",
    )
    .unwrap();
    assert!(config.tls.is_on() && config.admin_listen.port() == 7);
    let admin = config.admin_tls.clone().unwrap();
    assert_eq!(
        (admin.cert.as_path(), admin.client_ca.as_deref()),
        (Path::new("b.pem"), Some(Path::new("ca.pem")))
    );
    let plain = load("[admin]\nlisten = '127.0.0.1:7'").unwrap();
    assert!(!plain.tls.is_on() && plain.admin_tls.is_none());
    assert_eq!(plain.changed(&config), ["admin.tls", "tls.certificates"]);

    assert!(problem("[tls]\ncertificates = [{ cert = 'a.pem' }]").contains("tls.certificates"));
    assert!(problem("[admin.tls]\ncert = 'a.pem'\nkey = 'a.key'\nca = 'x'").contains("admin.tls"));
}

#[test]
fn the_readme_lists_every_setting() {
    let readme = include_str!("../../../README.md");
    let config = serde_json::to_value(load("").unwrap()).unwrap();
    let mut names: Vec<String> = [
        LISTEN,
        ADMIN_LISTEN,
        DATA_DIR,
        SHARDS,
        CORES,
        LOG_LEVEL,
        REDIS_URL,
        MONGO_URL,
    ]
    .iter()
    .flat_map(|name| [name.flag, name.env, name.key].map(str::to_owned))
    .collect();
    for section in [
        "limits",
        "websocket",
        "http",
        "tls",
        "runtime",
        "log",
        "drain",
        "store",
        "store.mongo",
        "auth",
        "auth.claims",
        "history",
        "accounts",
        "dashboard",
        "mail",
        "webhooks",
        "push",
        "broker.redis",
    ] {
        let keys = config[section].as_object().unwrap().keys();
        names.extend(keys.map(|key| format!("{section}.{key}")));
    }
    names.push("admin.tls".to_owned());
    let namespace = serde_json::to_value(Namespace::default()).unwrap();
    names.extend(namespace.as_object().unwrap().keys().cloned());
    for name in names {
        assert!(
            readme.contains(&format!("`{name}")),
            "the README does not list `{name}`"
        );
    }
}
