//! The `shardwire` program: reads settings, prepares the host's side, and runs the server.
//!
//! Exit codes: 0 clean stop, 1 failure while running, 2 bad configuration or host.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use shardwire::activation::Inherited;
use shardwire::check::{self, Grade, Holding};
use shardwire::config::cli::{Cli, Command, Flags, StoreCommand};
use shardwire::config::{Config, Env, Host};
use shardwire::copy::{self, Destination};
use shardwire::keys::{self, DataDir, DevKeys, FirstStart};
use shardwire::notify;
use shardwire::server::{self, Ready, reachable};
use shardwire::takeover;
use shardwire::tls::Acceptors;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long a start waits for the sockets of a predecessor that was killed.
const RESTART_PATIENCE: Duration = Duration::from_secs(2);

/// Bad configuration or host.
const EXIT_UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let env = Env::of_process();
    match cli.command {
        Some(Command::Check { json }) => check::command(&cli.flags, &env, json),
        Some(Command::Store {
            command: StoreCommand::Copy { to, json },
        }) => copy(&cli.flags, &env, to, json),
        None => {
            let code = serve(&cli.flags, cli.takeover, &env);
            log::logger().flush();
            code
        }
    }
}

/// `shardwire store copy`.
fn copy(flags: &Flags, env: &Env, to: Destination, json: bool) -> ExitCode {
    let config = match Config::load(flags, env, &Host::of_process()) {
        Ok(config) => config,
        Err(error) => {
            for problem in error.problems {
                eprintln!("shardwire: {problem}");
            }
            return ExitCode::from(EXIT_UNUSABLE);
        }
    };
    match copy::run(&config, to, !json) {
        Ok(copied) => {
            let text = if json {
                serde_json::json!(copied).to_string()
            } else {
                copied.to_string()
            };
            // Whoever closed stdout does not want to know.
            _ = writeln!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("shardwire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(flags: &Flags, takes_over: bool, env: &Env) -> ExitCode {
    let host = Host::of_process();
    let (config, dev_keys) = match (Config::load(flags, env, &host), DevKeys::from_env(env)) {
        (Ok(config), Ok(dev_keys)) => (config, dev_keys),
        (config, dev_keys) => {
            let problems = config.err().map(|error| error.problems).unwrap_or_default();
            for problem in problems.into_iter().chain(dev_keys.err()) {
                eprintln!("shardwire: {problem}");
            }
            return ExitCode::from(EXIT_UNUSABLE);
        }
    };
    shardwire::log::init(&config.log);
    log_warnings(&config);
    let inherited = match Inherited::from_service_manager() {
        Ok(inherited) => inherited,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(EXIT_UNUSABLE);
        }
    };
    if !host_is_usable(&config, &inherited, takes_over) {
        return ExitCode::from(EXIT_UNUSABLE);
    }
    let tls = match Acceptors::load(&config) {
        Ok(tls) => tls,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(EXIT_UNUSABLE);
        }
    };
    // Last of all checks: whoever asks for it has to be able to go on.
    let (inherited, patience) = match take_over(&config, inherited, takes_over) {
        Ok(taken) => taken,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let opened = DataDir::lock_within(&config.data_dir, patience)
        .and_then(|dir| keys::open(&dir, &dev_keys, &config.mongo).map(|opened| (dir, opened)));
    // The folder is this process's as long as `_dir` is there.
    let (_dir, opened) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            log::error!("{error}");
            return ExitCode::from(EXIT_UNUSABLE);
        }
    };
    let reload = || {
        let next = Config::load(flags, env, &host).map_err(|error| error.problems.join("; "))?;
        log_warnings(&next);
        Ok(next)
    };
    let first_start = opened.first_start.clone();
    let (ready_file, data_dir) = (config.ready_file.clone(), config.data_dir.clone());
    let is_secure = config.tls.is_on();
    let on_ready = |ready: &Ready| {
        if let Some(first_start) = &first_start {
            let mut text = first_start_text(first_start, ready.listen, is_secure, &data_dir);
            if let Some(setup) = &ready.setup {
                text.push_str(&setup_text(setup));
            }
            // Whoever closed stdout does not want the keys.
            _ = std::io::stdout().write_all(text.as_bytes());
        }
        if let Some(path) = &ready_file {
            write_ready_file(path, ready);
        }
        notify::ready(&format!("serving {}", ready.listen));
        log::info!(listen:% = ready.listen, admin:% = ready.admin; "serving");
        if let Some(dashboard) = &ready.dashboard {
            log::info!(dashboard; "dashboard");
        }
    };
    match server::run(config, tls, opened, inherited, &reload, on_ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn log_warnings(config: &Config) {
    for warning in &config.warnings {
        log::warn!("{warning}");
    }
}

/// The listening sockets of the server that is to be succeeded, if that is asked for and one runs, and how long to wait
/// for its place.
fn take_over(
    config: &Config,
    inherited: Inherited,
    takes_over: bool,
) -> Result<(Inherited, Duration), String> {
    if !takes_over {
        return Ok((inherited, Duration::ZERO));
    }
    let taken = takeover::take(&config.data_dir).map_err(|error| {
        format!("the running server does not hand over its sockets, and goes on: {error}")
    })?;
    let Some(taken) = taken else {
        log::info!("no server runs on this data folder: nothing to take over");
        return Ok((inherited, Duration::ZERO));
    };
    log::info!(predecessor = taken.pid; "took over the listening sockets; waiting for the predecessor to end");
    let theirs = taken.sockets.only(config.listen, config.admin_listen);
    // What a service manager passes on comes first.
    let or = |ours: Vec<_>, theirs| if ours.is_empty() { theirs } else { ours };
    let sockets = Inherited {
        client: or(inherited.client, theirs.client),
        admin: or(inherited.admin, theirs.admin),
    };
    Ok((sockets, taken.gone_within))
}

/// Raises this process's limits, then logs what is amiss with the host. False when the server could not run.
fn host_is_usable(config: &Config, inherited: &Inherited, takes_over: bool) -> bool {
    check::raise_limits();
    // Addresses that are passed on are taken, and rightly so.
    let own = |address, passed_on: bool| (!passed_on && !takes_over).then_some(address);
    let own = [
        own(config.listen, !inherited.client.is_empty()),
        own(config.admin_listen, !inherited.admin.is_empty()),
    ];
    for address in own.into_iter().flatten() {
        check::await_free(address, RESTART_PATIENCE);
    }
    let mut usable = true;
    let findings =
        check::host(config)
            .into_iter()
            .chain(check::addresses(config, own, Holding::Refused));
    for finding in findings {
        let remedy = finding.remedy.as_deref().unwrap_or_default();
        match finding.grade {
            Grade::Ok => log::debug!(value = finding.value; "{}", finding.what),
            Grade::Warn => log::warn!(value = finding.value, remedy; "{}", finding.what),
            Grade::Fail => {
                log::error!(value = finding.value, remedy; "{}", finding.what);
                usable = false;
            }
        }
    }
    usable
}

/// Tells whoever started the process where it serves. It may wait for this file, so a failure is an error in the log.
fn write_ready_file(path: &Path, ready: &Ready) {
    let text = serde_json::json!({
        "listen": ready.listen.to_string(),
        "admin": ready.admin.to_string(),
        "pid": std::process::id(),
    });
    if let Err(error) = keys::write_atomically(path, format!("{text}\n").as_bytes()) {
        log::error!(path:% = path.display(), error:%; "cannot write the ready file");
    }
}

/// What the first start shows: the keys, this once, and a line each to receive and to send a message.
fn first_start_text(
    keys: &FirstStart,
    listen: SocketAddr,
    is_secure: bool,
    data_dir: &Path,
) -> String {
    let s = if is_secure { "s" } else { "" };
    let FirstStart {
        client_key,
        server_key,
    } = keys;
    let address = reachable(listen);
    let data_dir = data_dir.display();
    format!(
        "\
First start: made the app \"dev\" with two keys. They are shown this once; {data_dir} keeps their hashes.

  client key  {client_key}  (browsers and devices)
  server key  {server_key}  (back ends; keep it secret)

Receive, with the Python SDK (pip install wsocket-io):

  python3 -c 'import asyncio, wsocket; c = wsocket.create_client(\"ws{s}://{address}\", \"{client_key}\"); \
c.channel(\"chat\").on_message(lambda data, meta: print(data)); loop = asyncio.new_event_loop(); \
loop.run_until_complete(c.connect()); loop.run_forever()'

Send, with curl:

  curl http{s}://{address}/api/channels/chat/messages -H 'Authorization: Bearer {server_key}' \
-H 'Content-Type: application/json' -d '{{\"data\": {{\"text\": \"hello\"}}}}'

"
    )
}

/// How the first person gets in.
fn setup_text(setup: &str) -> String {
    format!(
        "Make the first account of the dashboard within a day, with this link:\n\n  {setup}\n\n\
Or at any time: shardwirectl accounts create you@example.com --operator\n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasted_lines_reach_a_server_on_all_interfaces() {
        let keys = FirstStart {
            client_key: "ck_1".into(),
            server_key: "sk_2".into(),
        };
        let text = first_start_text(
            &keys,
            "0.0.0.0:9001".parse().unwrap(),
            false,
            Path::new("./data"),
        );
        assert!(text.contains("curl http://127.0.0.1:9001/api/channels/chat/messages"));
        assert!(text.contains("\"ws://127.0.0.1:9001\", \"ck_1\"") && text.contains("Bearer sk_2"));
        assert!(text.contains(r#"-d '{"data": {"text": "hello"}}'"#));
        assert_eq!(
            reachable("[::]:1".parse().unwrap()),
            "[::1]:1".parse().unwrap()
        );
        assert_eq!(
            reachable("10.0.0.1:1".parse().unwrap()),
            "10.0.0.1:1".parse().unwrap()
        );
    }
}
