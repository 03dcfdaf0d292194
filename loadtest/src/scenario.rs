//! Scenarios as plans: what each one connects and publishes.

use anyhow::ensure;

use crate::adapter::Adapter;
use crate::opts::{Channels, Churn, Mixed, Protocol, Scenario};
use crate::plan::{self, Group, Pace, Plan, Via};

/// Subscribers of the channel that `mixed` publishes to over HTTP.
const MIXED_HTTP_SUBSCRIBERS: u32 = 10;

/// The plan of `scenario`, with channel names that start with `prefix`.
pub fn plan(scenario: &Scenario, adapter: &Adapter, prefix: &str) -> anyhow::Result<Plan> {
    let mut plan = Plan::default();
    let group = Group {
        prefix: prefix.to_owned(),
        channels: 1,
        subscribers: 0,
        publishers: 0,
        shared_publishers: None,
        pace: Pace::OnDemand,
        via: Via::Socket,
    };
    match scenario {
        Scenario::Fanout(opts) => plan.add(&Group {
            subscribers: opts.subscribers,
            publishers: opts.publishers,
            pace: pace(opts.rate, opts.publishers, opts.in_flight)?,
            ..group
        }),
        Scenario::Channels(opts) => plan.add(&channels(opts, adapter, group)?),
        Scenario::Storm(opts) => {
            plan.add(&group);
            plan.churn = plan::Churn {
                channel: 0,
                hold: opts.hold,
                window: opts.window,
                rate: opts.rate,
            };
        }
        Scenario::Idle(opts) => plan.add(&spread(opts.connections, opts.channels, 0, group)?),
        Scenario::Presence(opts) => {
            ensure!(
                matches!(adapter, Adapter::Wsocket(_)),
                "presence needs the wsocket protocol"
            );
            plan.add(&group);
            plan.members = opts.clients;
        }
        Scenario::Reconnect(opts) => plan.add(&spread(opts.connections, opts.channels, 1, group)?),
        Scenario::Churn(opts) => churn(opts, adapter, group, &mut plan)?,
        Scenario::Http(opts) => {
            ensure_http(adapter)?;
            ensure!(opts.channels > 0, "--channels: at least 1");
            let publishers = opts.publishers.div_ceil(opts.channels);
            let pace = pace(opts.rate, publishers * opts.channels, 1)?;
            plan.add(&Group {
                channels: opts.channels,
                subscribers: opts.subscribers,
                publishers,
                pace,
                via: Via::Http,
                ..group
            });
        }
        Scenario::Mixed(opts) => mixed(opts, adapter, group, &mut plan)?,
    }
    crate::run::ensure_useful(&plan)?;
    Ok(plan)
}

fn channels(opts: &Channels, adapter: &Adapter, group: Group) -> anyhow::Result<Group> {
    ensure!(opts.channels > 0, "--channels: at least 1");
    ensure!(
        opts.shared_publishers.is_none() || !adapter.is_bound_to_channel(),
        "--shared-publishers: a connection of this protocol publishes to one channel only"
    );
    ensure!(
        !opts.echo || adapter.can_echo(),
        "--echo: this protocol sends nobody their own messages"
    );
    ensure!(
        opts.shared_publishers != Some(0),
        "--shared-publishers: at least 1"
    );
    let publishers = if opts.shared_publishers.is_some() || opts.echo {
        1
    } else {
        opts.publishers
    };
    Ok(Group {
        channels: opts.channels,
        subscribers: if opts.echo { 1 } else { opts.subscribers },
        publishers: if opts.echo { 1 } else { opts.publishers },
        via: if opts.echo {
            Via::Subscriber
        } else {
            Via::Socket
        },
        shared_publishers: opts.shared_publishers,
        pace: pace(opts.rate, publishers * opts.channels, opts.in_flight)?,
        ..group
    })
}

/// `connections` over `channels`, as even as whole numbers allow without a rest.
fn spread(connections: u32, channels: u32, publishers: u32, group: Group) -> anyhow::Result<Group> {
    ensure!(
        channels > 0 && connections.is_multiple_of(channels),
        "--connections must be a multiple of --channels"
    );
    Ok(Group {
        channels,
        subscribers: connections / channels,
        publishers,
        ..group
    })
}

fn churn(opts: &Churn, adapter: &Adapter, group: Group, plan: &mut Plan) -> anyhow::Result<()> {
    ensure!(
        adapter.can_resume() && opts.common.target.persist,
        "churn needs a protocol with resume, and stored messages"
    );
    ensure!(
        (1..=opts.channels).contains(&opts.channels_per_client),
        "--channels-per-client: 1 to --channels"
    );
    ensure!(opts.publishers > 0, "--publishers: at least 1");
    ensure!(
        opts.cut_rate > 0.0 && opts.cut_rate.is_finite(),
        "--cut-rate: more than 0"
    );
    ensure!(
        !opts.cut_resuming || opts.channels_per_client == 1,
        "--cut-resuming: only with one channel per client"
    );
    plan.add(&Group {
        channels: opts.channels,
        shared_publishers: Some(opts.publishers),
        pace: pace(Some(opts.rate), opts.channels, 1)?,
        ..group
    });
    plan.add_clients(opts.clients, opts.channels_per_client);
    plan.cuts = plan::Cuts {
        rate: opts.cut_rate,
        away_ms: opts.away_ms,
        overlap_ms: opts.overlap_ms,
        cut_resuming: opts.cut_resuming,
        seed: opts.seed,
    };
    Ok(())
}

fn mixed(opts: &Mixed, adapter: &Adapter, group: Group, plan: &mut Plan) -> anyhow::Result<()> {
    plan.add(&Group {
        prefix: format!("{}-big", group.prefix),
        subscribers: opts.subscribers,
        publishers: 1,
        pace: pace(Some(opts.rate), 1, 1)?,
        ..group.clone()
    });
    if opts.churn_rate > 0.0 {
        plan.churn = plan::Churn {
            channel: 0,
            hold: 64,
            window: 256,
            rate: Some(opts.churn_rate),
        };
    }
    if opts.channels > 0 {
        plan.add(&Group {
            prefix: format!("{}-small", group.prefix),
            channels: opts.channels,
            subscribers: 2,
            publishers: 1,
            pace: pace(Some(opts.channel_rate), opts.channels, 1)?,
            ..group.clone()
        });
    }
    if opts.http_rate > 0.0 && ensure_http(adapter).is_ok() {
        plan.add(&Group {
            prefix: format!("{}-http", group.prefix),
            subscribers: MIXED_HTTP_SUBSCRIBERS,
            publishers: 4,
            pace: pace(Some(opts.http_rate), 4, 1)?,
            via: Via::Http,
            ..group
        });
    }
    Ok(())
}

fn ensure_http(adapter: &Adapter) -> anyhow::Result<()> {
    ensure!(
        !matches!(adapter, Adapter::Nats(_)),
        "NATS has no HTTP API to publish with"
    );
    Ok(())
}

/// The pace of each of `streams` streams that share `rate`, or have `in_flight` each.
fn pace(rate: Option<f64>, streams: u32, in_flight: u32) -> anyhow::Result<Pace> {
    match rate {
        Some(rate) => {
            ensure!(rate > 0.0 && rate.is_finite(), "--rate: more than 0");
            Ok(Pace::Rate(rate / f64::from(streams.max(1))))
        }
        None => {
            ensure!(in_flight > 0, "--in-flight: at least 1");
            Ok(Pace::InFlight(in_flight))
        }
    }
}

/// The publish rate aimed at, in messages per second, if the scenario is an open loop.
pub fn open_rate(scenario: &Scenario) -> Option<f64> {
    match scenario {
        Scenario::Fanout(o) => o.rate,
        Scenario::Channels(o) => o.rate,
        Scenario::Http(o) => o.rate,
        Scenario::Churn(o) => Some(o.rate),
        Scenario::Mixed(o) => {
            let http = if o.common.target.protocol == Protocol::Nats {
                0.0
            } else {
                o.http_rate.max(0.0)
            };
            Some(o.rate + http + if o.channels > 0 { o.channel_rate } else { 0.0 })
        }
        Scenario::Storm(_) | Scenario::Idle(_) | Scenario::Presence(_) | Scenario::Reconnect(_) => {
            None
        }
    }
}

/// The load in words.
pub fn load_text(scenario: &Scenario) -> String {
    let size = scenario.common().load.size;
    let closed = |in_flight| {
        format!("closed loop, {in_flight} in flight per publisher, {size}-byte payloads")
    };
    match (scenario, open_rate(scenario)) {
        (Scenario::Churn(o), _) => format!(
            "open loop, {} stored messages/s, {} of {} clients cut per second for up to {} ms",
            o.rate, o.cut_rate, o.clients, o.away_ms
        ),
        (_, Some(rate)) => format!("open loop, {rate} messages/s, {size}-byte payloads"),
        (Scenario::Fanout(o), None) => closed(o.in_flight),
        (Scenario::Channels(o), None) => closed(o.in_flight),
        (Scenario::Http(o), None) => format!(
            "{} HTTP connections, one request each, {size}-byte payloads",
            o.publishers
        ),
        (Scenario::Storm(o), None) => match o.rate {
            Some(rate) => format!("open loop, {rate} connects/s, {} held", o.hold),
            None => format!("closed loop, {} connecting, {} held", o.window, o.hold),
        },
        (Scenario::Idle(_), None) => "none".to_owned(),
        (Scenario::Presence(o), None) => format!("{} clients enter one channel", o.clients),
        (Scenario::Reconnect(o), None) => {
            format!("{} rounds of dropping all and coming back", o.rounds)
        }
        (Scenario::Mixed(_), None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opts::Cli;
    use clap::Parser;

    fn plan_of(args: &[&str]) -> anyhow::Result<Plan> {
        let scenario = Cli::parse_from([&["lt"], args].concat()).scenario;
        let adapter = Adapter::new(&scenario.common().target, "n");
        plan(&scenario, &adapter, "p")
    }

    #[test]
    fn fanout_splits_its_rate() {
        let plan = plan_of(&["fanout", "-n", "10", "-p", "4", "--rate", "100"]).unwrap();
        assert_eq!((plan.subscribers(), plan.streams.len()), (10, 4));
        assert!(plan.streams.iter().all(|s| s.pace == Pace::Rate(25.0)));
    }

    #[test]
    fn impossible_plans_are_refused() {
        assert!(
            plan_of(&[
                "channels",
                "--shared-publishers",
                "2",
                "--protocol",
                "plain"
            ])
            .is_err()
        );
        assert!(plan_of(&["channels", "--shared-publishers", "2"]).is_ok());
        assert!(plan_of(&["channels", "--echo", "--protocol", "pusher"]).is_err());
        assert!(plan_of(&["http", "--protocol", "nats"]).is_err());
        assert!(plan_of(&["idle", "-n", "10", "-c", "3"]).is_err());
        assert!(plan_of(&["fanout", "--rate", "0"]).is_err());
        assert!(plan_of(&["churn", "--persist", "false"]).is_err());
        assert!(plan_of(&["churn", "--protocol", "nats"]).is_err());
        assert!(plan_of(&["churn", "--cut-resuming"]).is_err());
        assert!(plan_of(&["churn", "-k", "51"]).is_err());
        assert!(plan_of(&["presence", "--protocol", "nats"]).is_err());
        assert!(plan_of(&["presence", "-n", "0"]).is_err());
        assert!(plan_of(&["fanout", "-n", "0", "-p", "0"]).is_err());
    }

    #[test]
    fn churn_spreads_clients_over_channels() {
        let plan = plan_of(&["churn", "-n", "10", "-c", "4", "-k", "2", "-p", "3"]).unwrap();
        assert_eq!((plan.clients.len(), plan.publishers.len()), (10, 3));
        assert_eq!((plan.connections(), plan.subscribers()), (13, 10));
        for channel in 0..4 {
            let of_channel = plan.clients.iter().flatten().filter(|&&c| c == channel);
            assert_eq!(of_channel.count(), 5);
            assert_eq!(plan.channels[channel as usize].streams.len(), 1);
        }
        assert!(
            plan.clients
                .iter()
                .all(|channels| channels[0] != channels[1])
        );
    }

    #[test]
    fn mixed_has_all_four_parts() {
        let plan = plan_of(&["mixed"]).unwrap();
        assert_eq!(plan.channels.len(), 1 + 500 + 1);
        assert!(plan.publishers.iter().any(|p| p.via == Via::Http));
        assert!(plan.churn.slots() > 0);
        let without_http = plan_of(&["mixed", "--protocol", "nats"]).unwrap();
        assert!(without_http.publishers.iter().all(|p| p.via == Via::Socket));
    }
}
