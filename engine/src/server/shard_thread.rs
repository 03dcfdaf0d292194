//! What one shard's thread does from its start to its end.

use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_lite::future;
use glommio::channels::channel_mesh::{Full, MeshBuilder};
use glommio::net::TcpListener;
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::broker::BrokerReply;
use shardwire_proto::cluster::SharedReply;
use shardwire_proto::ids::{Placement, ShardId};
use shardwire_proto::msg::{Answer, Query};
use shardwire_proto::record::StoreReply;
use shardwire_proto::shard::{KeptMember, Options, Shard, ShardConfig};
use shardwire_proto::webhook::Wanted;
use shardwire_proto::ws::{DecoderConfig, Role};
use socket2::Socket;

use crate::broker::BrokerHandle;
use crate::cluster::{ClusterHandle, Incoming};
use crate::config::{Config, NOFILE_RESERVE};
use crate::conn::head::accept;
use crate::http::{AdminSettings, AdminStart, HttpSettings, Port, Stage, everywhere, serve_admin};
use crate::registry::RegistryHandle;
use crate::shard::inbox::Inbox;
use crate::shard::{Batch, Core, Server, Settings, ShardRuntime, read_clock};
use crate::side::push::{PushHandle, WhoIsThere};
use crate::side::webhooks::WebhookHandle;
use crate::store::StoreHandle;
use crate::sys;
use crate::tls::{Acceptor, Acceptors};
use crate::usage::{AppTotals, UsageHandle};
use crate::watchdog::Beats;

/// Everything a shard's thread is given.
pub(super) struct Plan {
    pub(super) id: ShardId,
    pub(super) placement: Placement,
    pub(super) registry: RegistryHandle,
    /// Apps and credentials as they change.
    pub(super) snapshots: Inbox<Arc<Registry>>,
    pub(super) usage: UsageHandle,
    /// What apps have used before this start.
    pub(super) used: AppTotals,
    /// What they have used since, as it changes.
    pub(super) totals: Inbox<AppTotals>,
    pub(super) webhooks: WebhookHandle,
    pub(super) wanted: WantedEvents,
    pub(super) push: PushHandle,
    /// What push asks, on the first shard.
    pub(super) who: Option<Inbox<WhoIsThere>>,
    pub(super) options: Options,
    pub(super) seed: u64,
    pub(super) clock: Instant,
    pub(super) connections_max: usize,
    pub(super) cors_origins: Vec<String>,
    /// What the acceptor has accepted for it.
    pub(super) connections: Inbox<Socket>,
    /// The admin listeners, on the first shard.
    pub(super) admin: Vec<Socket>,
    /// The dashboard's own listeners, on the first shard.
    pub(super) dashboard: Vec<Socket>,
    pub(super) admin_start: AdminStart,
    pub(super) tls: Acceptors,
    /// Where it shows that it moves, and how often; none where nobody wants to know.
    pub(super) beats: Option<(Beats, Duration)>,
    /// The other nodes, what they tell this shard and, on the first, what they ask.
    pub(super) cluster: Option<ClusterHandle>,
    pub(super) shared: Inbox<SharedReply>,
    pub(super) calls: Option<Inbox<Incoming>>,
    pub(super) store: StoreHandle,
    /// None where this is the only node.
    pub(super) broker: Option<BrokerHandle>,
    /// What the broker has done or heard.
    pub(super) heard: Inbox<Vec<BrokerReply>>,
    /// What the store answers.
    pub(super) replies: Inbox<StoreReply>,
    /// None where this is the only shard.
    pub(super) mesh: Option<MeshBuilder<Batch, Full>>,
    pub(super) orders: Inbox<Control>,
    /// Told when the shard serves.
    pub(super) up: mpsc::Sender<()>,
    /// Told when it is drained.
    pub(super) drained: mpsc::Sender<()>,
    /// Presence members from before, of all shards.
    pub(super) members: Arc<[KeptMember]>,
    /// Told which presence members may come back.
    pub(super) keep: mpsc::Sender<Vec<KeptMember>>,
}

/// Which events back ends want.
pub(super) struct WantedEvents {
    /// At the start.
    pub(super) now: Arc<Wanted>,
    /// As it changes.
    pub(super) later: Inbox<Arc<Wanted>>,
}

/// Orders of the main thread.
pub(super) enum Control {
    Reconfigure {
        options: Arc<Options>,
        config: Arc<Config>,
    },
    /// Clients are to go elsewhere.
    Announce,
    /// End connections, so many a second.
    Drain {
        rate: u32,
        deadline: Duration,
    },
    /// Say which presence members may come back.
    Keep,
    Stop,
}

/// Pace of a drain's steps.
const DRAIN_STEP: Duration = Duration::from_millis(5);

/// How long members are waited for that a connection seems to hold still: one that a drain's deadline has left open does.
const KEEP_GRACE: Duration = Duration::from_millis(300);

/// How long the end of a shard waits for its last events to be taken.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// TLS handshakes of the process, beyond its connections, that end in a refusal: a quarter of the descriptors that are kept
/// back.
const REFUSALS_MAX: usize = NOFILE_RESERVE / 4;

/// How often a shard that waits for the others looks for them.
const MEETING_POLL: Duration = Duration::from_millis(5);

/// What a drain leaves a connection for its request head: a client sends it at once, and a browser that connects ahead of
/// need does not.
const HEAD_GRACE: Duration = Duration::from_millis(300);

pub(super) async fn run(plan: Plan) {
    let settings = Settings {
        decoder: DecoderConfig {
            message_bytes_max: plan.options.limits.inbound_message_bytes_max,
            role: Role::Server,
            tolerate_unmasked_control: true,
        },
        handshake_deadline: Duration::from_millis(plan.options.limits.handshake_deadline_ms),
        connections_max: plan.connections_max,
        refusals_max: (REFUSALS_MAX / usize::from(plan.placement.shards())).max(1),
        store: Some(plan.store),
        is_shared_store: plan.options.shared_store,
        broker: plan.broker,
        tls: plan.tls.public.clone(),
        registry: Some(plan.registry.clone()),
        usage: Some(plan.usage.clone()),
        webhooks: Some(plan.webhooks.clone()),
        push: Some(plan.push),
        cluster: plan.cluster.clone(),
    };
    let shards = usize::from(plan.placement.shards());
    let http = HttpSettings::new(shards, &plan.cors_origins);
    let config = ShardConfig {
        id: plan.id,
        placement: plan.placement,
        registry: plan.registry.snapshot(),
        options: plan.options,
        seed: plan.seed,
    };
    let now = read_clock(plan.clock);
    let mut core = Shard::new(config, now);
    core.set_totals(&plan.used);
    core.meet_planned_apps();
    core.set_wanted(plan.wanted.now);
    core.import_members(&plan.members, now);
    let server = ShardRuntime::new(plan.id, core, settings, Rc::new(http), plan.clock);
    if let Some(mesh) = plan.mesh {
        match future::or(mesh.join(), stay_awake()).await {
            Ok((senders, receivers)) => server.connect_mesh(senders, receivers),
            Err(error) => {
                log::error!("shard {}: cannot join the mesh: {error}", plan.id.0);
                return;
            }
        }
    }
    glommio::spawn_local(server.clone().run_turns()).detach();
    glommio::spawn_local(server.clone().hear_store(plan.replies)).detach();
    glommio::spawn_local(server.clone().hear_broker(plan.heard)).detach();
    glommio::spawn_local(server.clone().hear_cluster(plan.shared)).detach();
    if let Some(calls) = plan.calls {
        glommio::spawn_local(crate::http::everywhere::answer_calls(server.clone(), calls)).detach();
    }
    glommio::spawn_local(hear_registry(server.clone(), plan.snapshots)).detach();
    glommio::spawn_local(hear_totals(server.clone(), plan.totals)).detach();
    glommio::spawn_local(hear_wanted(server.clone(), plan.wanted.later)).detach();
    glommio::spawn_local(tick(server.clone(), plan.registry, plan.usage.clone())).detach();
    if let Some(who) = plan.who {
        glommio::spawn_local(tell_who_is_there(server.clone(), who)).detach();
    }
    if let Some((beats, every)) = plan.beats {
        glommio::spawn_local(beat(beats, usize::from(plan.id.0), every)).detach();
    }
    glommio::spawn_local(server.clone().admit_all(plan.connections)).detach();
    let started_ms = server.now().unix_ms;
    let admin = AdminSettings::new(plan.admin_start, shards, Stage::Serving, started_ms);
    let admin = Rc::new(admin);
    // Browsers are shown the certificates that clients are shown.
    let own = plan.dashboard.into_iter();
    let own = own.map(|listener| (listener, Port::Dashboard, plan.tls.public.clone()));
    let ports = plan.admin.into_iter();
    let ports = ports.map(|listener| (listener, Port::Admin, plan.tls.admin.clone()));
    for (listener, port, tls) in ports.chain(own) {
        let listener = sys::glommio_listener(listener);
        glommio::spawn_local(accept_admin(
            server.clone(),
            listener,
            tls,
            admin.clone(),
            port,
        ))
        .detach();
    }
    // What the core has to say to its peers already.
    server.with(|_, _| ());
    // The main thread waits for it.
    let _ = plan.up.send(());
    loop {
        match plan.orders.recv().await {
            Control::Reconfigure { options, config } => {
                *admin.config.borrow_mut() = config;
                server.with(|shard, now| shard.set_options((*options).clone(), now));
                sweep(&server).await;
            }
            Control::Announce => {
                server.http.stage.set(Stage::Draining);
                admin.stage.set(Stage::Draining);
            }
            Control::Drain { rate, deadline } => {
                glommio::spawn_local(drain(server.clone(), rate, deadline, plan.drained.clone()))
                    .detach();
            }
            Control::Keep => {
                // The main thread may have stopped waiting.
                let _ = plan.keep.send(members_to_keep(&server).await);
            }
            Control::Stop => {
                // The last of it: connections have ended by now.
                report_usage(&server, &plan.usage);
                raise_all(&server).await;
                return;
            }
        }
    }
}

async fn accept_admin(
    server: Server,
    listener: TcpListener,
    tls: Option<Acceptor>,
    settings: Rc<AdminSettings>,
    port: Port,
) {
    loop {
        let (server, tls, settings) = (server.clone(), tls.clone(), settings.clone());
        match listener.accept().await {
            Ok(stream) => glommio::spawn_local(async move {
                let Some(_place) = settings.occupy() else {
                    return;
                };
                if let Some((transport, head)) = accept(&server, stream, tls.as_ref()).await {
                    serve_admin(transport, head, server, settings, port).await;
                }
            })
            .detach(),
            Err(error) => {
                // On a socket that is shared with another process, that one was faster.
                if error.raw_os_error() != Some(libc::EAGAIN) {
                    log::warn!("admin: accept failed: {error}");
                }
                glommio::timer::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
    }
}

/// Between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);

/// Never ends, and wakes the shard's thread while it waits for the others: on a busy machine the runtime loses about one in
/// fifty of the wake-ups by which they find each other, and a thread that wakes for any reason sees what it has missed.
async fn stay_awake<T>() -> T {
    loop {
        glommio::timer::sleep(MEETING_POLL).await;
    }
}

async fn tick(server: Server, registry: RegistryHandle, usage: UsageHandle) {
    loop {
        glommio::timer::sleep(TICK).await;
        let uses = server.with(|shard, now| {
            shard.tick(now);
            shard.take_key_uses()
        });
        registry.note_uses(uses);
        report_usage(&server, &usage);
        raise(&server);
        if let Some(cluster) = &server.settings.cluster {
            let (connections, channels) =
                server.with(|shard, _| (shard.connections(), shard.channels()));
            cluster.gauge(server.id, connections, channels);
        }
        sweep(&server).await;
    }
}

/// Hands over what apps have used; what is not taken goes with the next.
fn report_usage(server: &Server, usage: &UsageHandle) {
    let used = server.with(|shard, _| shard.take_usage());
    if let Err(used) = usage.report(server.id, used) {
        server.with(|shard, _| shard.keep_usage(used));
    }
}

/// Hands over what back ends are to be told, and that it is all.
fn raise(server: &Server) {
    if let Some(webhooks) = &server.settings.webhooks {
        server.with(|shard, now| shard.raise(webhooks, true, now));
    }
}

/// The last of it: what is not taken within [`LAST_EVENTS`] is lost.
async fn raise_all(server: &Server) {
    let started = Instant::now();
    while started.elapsed() < LAST_EVENTS {
        raise(server);
        if !server.with(|shard, _| shard.has_hook_events()) {
            return;
        }
        glommio::timer::sleep(DRAIN_STEP).await;
    }
    log::error!(
        "shard {}: events for webhooks are lost: nobody takes them",
        server.id.0
    );
}

async fn hear_wanted(server: Server, wanted: Inbox<Arc<Wanted>>) {
    loop {
        let wanted = wanted.recv().await;
        server.with(|shard, _| shard.set_wanted(wanted));
    }
}

async fn hear_totals(server: Server, totals: Inbox<AppTotals>) {
    loop {
        let totals = totals.recv().await;
        server.with(|shard, _| shard.set_totals(&totals));
    }
}

/// Answers which members have a connection, on whatever shard.
async fn tell_who_is_there(server: Server, questions: Inbox<WhoIsThere>) {
    loop {
        let question = questions.recv().await;
        let clients = question.members.clone();
        let asked = everywhere::ask(&server, &question.app, Query::Connected { clients }, None);
        let members = asked.await.ok().map(|nodes| {
            let answers = nodes.into_iter().flatten();
            answers
                .flat_map(|answer| match answer {
                    Answer::Connected(members) => members,
                    _ => Vec::new(),
                })
                .collect()
        });
        question.answer(members);
    }
}

async fn hear_registry(server: Server, snapshots: Inbox<Arc<Registry>>) {
    loop {
        let snapshot = snapshots.recv().await;
        server.with(|shard, now| shard.set_registry(snapshot, now));
        sweep(&server).await;
    }
}

/// Applies a change to all whom it concerns, a turn at a time. Tasks that do so at once share the work.
async fn sweep(server: &Server) {
    while server.with(|shard, now| shard.sweep(now)) {
        glommio::executor().yield_now().await;
    }
}

async fn beat(beats: Beats, shard: usize, every: Duration) {
    loop {
        beats.beat(shard);
        glommio::timer::sleep(every).await;
    }
}

/// Ends the shard's connections at a steady pace, then waits until nobody is served any more.
async fn drain(server: Server, rate: u32, deadline: Duration, drained: mpsc::Sender<()>) {
    let started = Instant::now();
    let mut ended = 0;
    while started.elapsed() < deadline && !is_drained(&server, started.elapsed()) {
        let due = started.elapsed().as_secs_f64() * f64::from(rate);
        // Truncation: a fraction of a connection waits for the next step.
        let due = (due as usize + 1).saturating_sub(ended);
        ended += server.with(|shard, now| shard.drain(due, now));
        glommio::timer::sleep(DRAIN_STEP).await;
    }
    // The main thread may have stopped waiting.
    let _ = drained.send(());
}

/// The members that may come back, as soon as what other shards have said of ended connections has arrived.
async fn members_to_keep(server: &Server) -> Vec<KeptMember> {
    let asked = Instant::now();
    while asked.elapsed() < KEEP_GRACE && !server.with(|shard, _| shard.members_are_away()) {
        glommio::timer::sleep(DRAIN_STEP).await;
    }
    server.with(|shard, _| shard.export_members())
}

/// Connections without a request on their way, and without any after [`HEAD_GRACE`], are not waited for: whoever keeps
/// them open meets their end as that of any idle connection.
fn is_drained(server: &Server, since: Duration) -> bool {
    let open = server.with(|shard, _| shard.connections());
    let served = open + server.http.in_flight.get();
    served == 0 && (server.occupancy() == 0 || since >= HEAD_GRACE)
}
