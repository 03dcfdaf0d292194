//! What one shard's thread does from its start to its end.

use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use glommio::channels::channel_mesh::{Full, MeshBuilder};
use glommio::net::TcpListener;
use shardwire_proto::auth::registry::Registry;
use shardwire_proto::ids::{Placement, ShardId};
use shardwire_proto::record::StoreReply;
use shardwire_proto::shard::{Options, Shard, ShardConfig};
use shardwire_proto::ws::{DecoderConfig, Role};
use socket2::Socket;

use crate::config::Config;
use crate::conn::head::read_head_by;
use crate::http::{AdminSettings, AdminStart, HttpSettings, Stage, serve_admin};
use crate::registry::RegistryHandle;
use crate::shard::inbox::Inbox;
use crate::shard::{Batch, Server, Settings, ShardRuntime, read_clock};
use crate::store::StoreHandle;
use crate::sys;
use crate::usage::{AppTotals, UsageHandle};

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
    pub(super) options: Options,
    pub(super) seed: u64,
    pub(super) clock: Instant,
    pub(super) connections_max: usize,
    pub(super) cors_origins: Vec<String>,
    pub(super) listener: Socket,
    /// The admin listener, on the first shard.
    pub(super) admin: Option<Socket>,
    pub(super) admin_start: AdminStart,
    pub(super) store: StoreHandle,
    /// What the store answers.
    pub(super) replies: Inbox<StoreReply>,
    /// None where this is the only shard.
    pub(super) mesh: Option<MeshBuilder<Batch, Full>>,
    pub(super) orders: Inbox<Control>,
    /// Told when the shard serves.
    pub(super) up: mpsc::Sender<()>,
    /// Told when it is drained.
    pub(super) drained: mpsc::Sender<()>,
}

/// Orders of the main thread.
pub(super) enum Control {
    Reconfigure {
        options: Arc<Options>,
        config: Arc<Config>,
    },
    /// Accept no more and end connections, so many a second.
    Drain {
        rate: u32,
        deadline: Duration,
    },
    Stop,
}

/// Pace of a drain's steps.
const DRAIN_STEP: Duration = Duration::from_millis(20);

pub(super) async fn run(plan: Plan) {
    let settings = Settings {
        decoder: DecoderConfig {
            message_bytes_max: plan.options.limits.inbound_message_bytes_max,
            role: Role::Server,
            tolerate_unmasked_control: true,
        },
        handshake_deadline: Duration::from_millis(plan.options.limits.handshake_deadline_ms),
        connections_max: plan.connections_max,
        store: Some(plan.store),
        registry: Some(plan.registry.clone()),
        usage: Some(plan.usage.clone()),
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
    let mut core = Shard::new(config, read_clock(plan.clock));
    core.set_totals(&plan.used);
    core.meet_planned_apps();
    let server = ShardRuntime::new(plan.id, core, settings, Rc::new(http), plan.clock);
    if let Some(mesh) = plan.mesh {
        match mesh.join().await {
            Ok((senders, receivers)) => server.connect_mesh(senders, receivers),
            Err(error) => {
                log::error!("shard {}: cannot join the mesh: {error}", plan.id.0);
                return;
            }
        }
    }
    glommio::spawn_local(server.clone().run_turns()).detach();
    glommio::spawn_local(server.clone().hear_store(plan.replies)).detach();
    glommio::spawn_local(hear_registry(server.clone(), plan.snapshots)).detach();
    glommio::spawn_local(hear_totals(server.clone(), plan.totals)).detach();
    glommio::spawn_local(tick(server.clone(), plan.registry, plan.usage.clone())).detach();
    let accepting =
        glommio::spawn_local(server.clone().accept(sys::glommio_listener(plan.listener)));
    let started_ms = server.now().unix_ms;
    let admin = AdminSettings::new(plan.admin_start, shards, Stage::Serving, started_ms);
    let admin = Rc::new(admin);
    if let Some(listener) = plan.admin {
        let listener = sys::glommio_listener(listener);
        glommio::spawn_local(accept_admin(server.clone(), listener, admin.clone())).detach();
    }
    // What the core has to say to its peers already.
    server.with(|_, _| ());
    // The main thread waits for it.
    let _ = plan.up.send(());
    let mut accepting = Some(accepting);
    loop {
        match plan.orders.recv().await {
            Control::Reconfigure { options, config } => {
                *admin.config.borrow_mut() = config;
                server.with(|shard, now| shard.set_options((*options).clone(), now));
                sweep(&server).await;
            }
            Control::Drain { rate, deadline } => {
                server.with(|shard, _| shard.start_drain());
                server.http.stage.set(Stage::Draining);
                admin.stage.set(Stage::Draining);
                if let Some(task) = accepting.take() {
                    task.cancel().await;
                }
                glommio::spawn_local(drain(server.clone(), rate, deadline, plan.drained.clone()))
                    .detach();
            }
            Control::Stop => {
                // The last of it: connections have ended by now.
                report_usage(&server, &plan.usage);
                return;
            }
        }
    }
}

async fn accept_admin(server: Server, listener: TcpListener, settings: Rc<AdminSettings>) {
    loop {
        let (server, settings) = (server.clone(), settings.clone());
        match listener.accept().await {
            Ok(mut stream) => glommio::spawn_local(async move {
                let Some(_place) = settings.occupy() else {
                    return;
                };
                let deadline = server.settings.handshake_deadline;
                if let Some(head) = read_head_by(&server, &mut stream, deadline).await {
                    serve_admin(stream, head, server, settings).await;
                }
            })
            .detach(),
            Err(error) => {
                log::warn!("admin: accept failed: {error}");
                glommio::timer::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
    }
}

async fn tick(server: Server, registry: RegistryHandle, usage: UsageHandle) {
    loop {
        glommio::timer::sleep(Duration::from_secs(1)).await;
        let uses = server.with(|shard, now| {
            shard.tick(now);
            shard.take_key_uses()
        });
        registry.note_uses(uses);
        report_usage(&server, &usage);
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

async fn hear_totals(server: Server, totals: Inbox<AppTotals>) {
    loop {
        let totals = totals.recv().await;
        server.with(|shard, _| shard.set_totals(&totals));
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

/// Ends the shard's connections at a steady pace, then waits until the last has gone.
async fn drain(server: Server, rate: u32, deadline: Duration, drained: mpsc::Sender<()>) {
    let until = Instant::now() + deadline;
    let started = Instant::now();
    let mut ended = 0usize;
    while Instant::now() < until && server.occupancy() > 0 {
        let due = started.elapsed().as_secs_f64() * f64::from(rate);
        // Truncation: a fraction of a connection waits for the next step.
        let due = (due as usize + 1).saturating_sub(ended);
        server.with(|shard, now| shard.drain(due, now));
        ended += due;
        glommio::timer::sleep(DRAIN_STEP).await;
    }
    // The main thread may have stopped waiting.
    let _ = drained.send(());
}
