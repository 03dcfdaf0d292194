//! Every scenario against a small relay, and the faults that a run must find.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod relay;

use std::process::{Child, Command, Stdio};

use clap::Parser;
use relay::Fault;
use shardwire_loadtest::opts::Cli;
use shardwire_loadtest::report::Report;
use shardwire_loadtest::run;

const SHORT: [&str; 5] = ["--quiet", "-d", "0.4", "-w", "0.1"];

fn try_run(port: u16, words: &str) -> anyhow::Result<Report> {
    let url = format!("ws://127.0.0.1:{port}");
    let mut args = vec!["shardwire-loadtest"];
    args.extend(words.split(' '));
    args.extend(["--url", &url]);
    args.extend(SHORT);
    run::run(&Cli::parse_from(args).scenario, &[])
}

fn run_plain(port: u16, words: &str) -> Report {
    let paths = "--protocol plain --subscribe-path /sub/{channel} --publish-path /pub/{channel} --echo-path /echo/{channel}";
    try_run(port, &format!("{words} {paths}")).unwrap()
}

#[track_caller]
fn assert_clean(report: &Report) {
    assert!(report.integrity.is_clean(), "{:?}", report.integrity);
    assert_eq!(report.integrity.due, report.integrity.received);
    assert_eq!(
        (report.faults.errors, report.faults.connections_ended),
        (0, 0),
        "{:?}",
        report.faults
    );
}

#[test]
fn fanout_reaches_all_on_one_thread_and_on_two() {
    let port = relay::start(Fault::None);
    for words in [
        "fanout -n 7 -p 2 --in-flight 3",
        "fanout -n 7 -p 2 --in-flight 3 -t 2",
    ] {
        let report = run_plain(port, words);
        assert_clean(&report);
        assert!(
            report.deliveries > 70 && report.integrity.due.is_multiple_of(7),
            "{}",
            report.deliveries
        );
        let completion = report.completion.unwrap();
        assert!(
            completion.count.abs_diff(report.published) <= 6,
            "{} {}",
            completion.count,
            report.published
        );
        assert!(completion.p50_us >= report.latency.unwrap().p50_us);
    }
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let report = run_plain(relay::start(Fault::None), "fanout -n 3 -p 2 --rate 200");
    assert_clean(&report);
    assert!(
        (60..=100).contains(&report.published),
        "200/s for 0.4 s: {}",
        report.published
    );
    let reached = report.deliveries.div_ceil(3);
    assert!(
        reached.abs_diff(report.published) <= 8,
        "{reached} {}",
        report.published
    );
}

#[test]
fn channels_do_not_mix() {
    let port = relay::start(Fault::None);
    for words in [
        "channels -c 20 -n 2",
        "channels -c 20 -n 2 -t 2",
        "channels -c 20 --rate 500",
        "channels -c 20 --echo",
        "channels -c 3 --echo -t 2",
    ] {
        let report = run_plain(port, words);
        assert_clean(&report);
        assert!(report.deliveries > 40);
    }
}

#[test]
fn wsocket_subscribes_publishes_and_reads_acks() {
    let port = relay::start(Fault::None);
    for words in [
        "fanout -n 5 --key k --persist false",
        "channels -c 9 --shared-publishers 2 --key k",
        "channels -c 9 --echo --key k",
    ] {
        let report = try_run(port, words).unwrap();
        assert_clean(&report);
        let acked = report.ack.unwrap().count;
        assert!(
            acked > 10 && acked.abs_diff(report.published) <= 10,
            "{acked} of {}",
            report.published
        );
    }
}

#[test]
fn pusher_signs_and_ignores_its_publishers_copies() {
    let port = relay::start(Fault::None);
    let report = try_run(
        port,
        "fanout -n 5 -p 2 --protocol pusher --key k --secret s",
    )
    .unwrap();
    assert_clean(&report);
    assert!(report.deliveries > 50 && report.integrity.due.is_multiple_of(5));
}

#[test]
fn http_publishes_outlive_their_connections() {
    let report = run_plain(relay::start(Fault::None), "http -p 3 -n 2");
    assert_clean(&report);
    assert!(
        report.published > 24,
        "more than the four that a connection takes: {}",
        report.published
    );
    assert!(report.ack.is_some());
}

#[test]
fn storm_counts_connections() {
    for words in [
        "storm --hold 5 --window 4",
        "storm --hold 5 --window 8 --rate 100",
    ] {
        let report = run_plain(relay::start(Fault::None), words);
        assert!(report.connects > 20, "{}", report.connects);
        assert_eq!(report.connect.unwrap().count, report.connects);
        assert_eq!(report.faults.connections_ended, 0, "{:?}", report.faults);
    }
}

#[test]
fn everybody_comes_back_after_a_drop() {
    let report = run_plain(relay::start(Fault::None), "reconnect -n 12 -c 3 --rounds 2");
    assert_clean(&report);
    assert_eq!(
        (report.rounds.len(), report.connects, report.integrity.due),
        (2, 24, 24)
    );
    assert!(
        report
            .rounds
            .iter()
            .all(|round| round.served_ms >= round.ready_ms && round.ready_ms > 0.0)
    );
}

const CHURN: &str =
    "churn -n 15 -c 6 -k 2 -p 2 --rate 600 --cut-rate 100 --away-ms 40 --overlap-ms 0 --key k";

#[test]
fn clients_that_are_cut_end_with_everything() {
    let port = relay::start(Fault::None);
    for words in [
        CHURN,
        &format!("{CHURN} -t 2"),
        &CHURN
            .replace("-k 2", "-k 1 --cut-resuming")
            .replace("40", "1"),
    ] {
        let report = try_run(port, words).unwrap();
        assert_clean(&report);
        let returns = report.returns.unwrap();
        assert!(
            returns.cuts > 25 && returns.resumes.abs_diff(returns.cuts) <= 15,
            "{returns:?}"
        );
        assert!(
            returns.replayed > 0 && returns.repeated <= returns.replayed,
            "{returns:?}"
        );
        assert_eq!(
            (
                returns.unacked,
                returns.unrecovered,
                returns.sequence_faults
            ),
            (0, 0, 0)
        );
        assert!(report.ack.unwrap().count > 100);
    }
}

#[test]
fn what_a_resume_does_wrong_is_found() {
    let churn = |fault| try_run(relay::start(fault), CHURN).unwrap();
    let forgetful = churn(Fault::ForgetMissed).integrity;
    assert!(
        forgetful.lost > 0 && forgetful.duplicated == 0,
        "{forgetful:?}"
    );
    let repeating = churn(Fault::RepeatReceived).integrity;
    assert!(
        repeating.duplicated > 0 && repeating.lost == 0,
        "{repeating:?}"
    );
}

#[test]
fn a_message_without_an_ack_is_nobodys_loss() {
    let report = try_run(relay::start(Fault::Refuse), CHURN).unwrap();
    assert_clean(&report);
    assert_eq!(report.returns.unwrap().unacked, 1);
    assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
}

#[test]
fn reconnecting_clients_resume_where_the_protocol_can() {
    let port = relay::start(Fault::None);
    let report = try_run(port, "reconnect -n 12 -c 3 --rounds 2 --key k").unwrap();
    assert_clean(&report);
    assert_eq!((report.rounds.len(), report.integrity.due), (2, 36));
    assert_eq!(report.returns.unwrap().resumes, 24);
}

#[test]
fn idle_and_mixed_are_clean() {
    let port = relay::start(Fault::None);
    assert_clean(&run_plain(port, "idle -n 10"));
    let words = "mixed -n 10 -c 5 --rate 20 --channel-rate 100 --http-rate 50 --churn-rate 50";
    let report = run_plain(port, words);
    assert_clean(&report);
    assert!(report.connects > 10 && report.ack.is_some() && report.deliveries > 100);
}

#[test]
fn members_enter_once_each() {
    let port = relay::start(Fault::None);
    for words in ["presence -n 40 --key k", "presence -n 41 --key k -t 2"] {
        let report = try_run(port, words).unwrap();
        assert_clean(&report);
        let joins = report.joins.unwrap();
        assert!(matches!(joins.members, 40 | 41));
        assert!(joins.joins_per_s > 0.0);
    }
    let error = try_run(
        relay::start(Fault::Refuse),
        "presence -n 8 --key k --timeout 2s",
    );
    let text = format!("{:#}", error.unwrap_err());
    assert!(text.contains("only 7 of 8"), "{text}");
}

#[test]
fn what_the_server_does_wrong_is_found() {
    let counts = |fault| {
        let integrity = run_plain(relay::start(fault), "fanout -n 3 --in-flight 8").integrity;
        assert!(!integrity.is_clean());
        (integrity.lost, integrity.duplicated, integrity.out_of_order)
    };
    assert_eq!(counts(Fault::Lose), (1, 0, 0));
    assert_eq!(counts(Fault::Repeat), (0, 1, 0));
    assert_eq!(counts(Fault::Swap), (0, 0, 1));
}

#[test]
fn an_ended_connection_loses_what_it_was_due() {
    let report = run_plain(relay::start(Fault::Close), "fanout -n 3 --rate 100");
    assert_eq!(report.faults.connections_ended, 1);
    assert!(report.integrity.lost > 20, "{:?}", report.integrity);
}

#[test]
fn a_refused_key_is_said() {
    let error = try_run(relay::start(Fault::None), "idle -n 2 --key refused").unwrap_err();
    assert!(format!("{error:#}").contains("401"), "{error:#}");
}

/// A program of this package that is ended with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start_floor(threads: &str) -> (Program, u16) {
    let mut floor = Command::new(env!("CARGO_BIN_EXE_shardwire-floor"));
    floor.args([
        "--listen",
        "127.0.0.1:0",
        "--threads",
        threads,
        "--connections",
        "50",
    ]);
    let mut child = floor.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let port = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
    (Program(child), port)
}

#[test]
fn the_floor_sends_everything_to_everybody() {
    for threads in ["1", "2"] {
        let (floor, port) = start_floor(threads);
        let pid = floor.0.id();
        let report = run_plain(
            port,
            &format!("fanout -n 12 --in-flight 4 --server-pid {pid}"),
        );
        assert_clean(&report);
        let server = report.server.unwrap();
        assert!(server.cpu_us_per_delivery.unwrap() > 0.0 && server.rss_after_bytes > 100_000);
    }
}

#[test]
fn exit_codes_and_files() {
    let run = |port: u16, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardwire-loadtest"));
        let url = format!("ws://127.0.0.1:{port}");
        command.args([
            "fanout",
            "-n",
            "2",
            "--protocol",
            "plain",
            "--subscribe-path",
            "/sub/{channel}",
        ]);
        command
            .args(["--publish-path", "/pub/{channel}", "--url", &url])
            .args(SHORT)
            .args(args);
        command.stderr(Stdio::null()).status().unwrap().code()
    };
    let folder = std::env::temp_dir().join(format!("shardwire-loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (json, html) = (folder.join("r.json"), folder.join("r.html"));
    let clean = relay::start(Fault::None);
    let files = [
        "--json",
        json.to_str().unwrap(),
        "--html",
        html.to_str().unwrap(),
    ];
    assert_eq!(run(clean, &files), Some(0));
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["integrity"]["lost"], 0);
    assert!(report["latency"]["p99_us"].as_f64().unwrap() > 0.0);
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
    std::fs::remove_dir_all(&folder).unwrap();
    assert_eq!(run(clean, &["--no-such-option"]), Some(2));
    assert_eq!(run(clean, &["--size", "3"]), Some(2));
    assert_eq!(run(relay::start(Fault::Lose), &[]), Some(3));
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    assert_eq!(run(closed, &["--timeout", "1"]), Some(1));
}
