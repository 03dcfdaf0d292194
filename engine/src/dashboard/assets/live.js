// The overview, kept up to date: the server's numbers for whoever runs it, the apps' for everybody.

import { api, ApiError } from './api.js';
import { LineChart } from './chart.js';

const SERVER_EVERY_MS = 2_000;
const APPS_EVERY_MS = 10_000;
const APPS_MAX = 20;
const WINDOW_MS = 5 * 60_000;

const count = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) { value /= 1024; unit += 1; }
  return `${value >= 100 || Number.isInteger(value) ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

function latency(us) {
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${(us / 1000).toFixed(us < 10_000 ? 1 : 0)} ms`;
  return `${(us / 1e6).toFixed(1)} s`;
}

function rate(value) {
  return value > 0 && value < 10 ? value.toFixed(1) : short.format(Math.round(value));
}

function put(id, value, note) {
  const element = document.getElementById(id);
  if (element && element.textContent !== value) element.textContent = value;
  const beside = document.getElementById(`${id}-note`);
  if (beside && note !== undefined && beside.textContent !== note) beside.textContent = note;
}

const sum = (items, of) => items.reduce((total, item) => total + (of(item) ?? 0), 0);

// The bound of the bucket in which a percentile of the deliveries between two readings lies.
function percentile(bounds, buckets, share) {
  const total = buckets.reduce((all, value) => all + value, 0);
  if (total === 0) return NaN;
  let below = 0;
  for (let index = 0; index < buckets.length; index += 1) {
    below += buckets[index];
    if (below >= total * share) return bounds[Math.min(index, bounds.length - 1)];
  }
  return bounds.at(-1);
}

// Runs a step again and again, not while the page is hidden, and slower while it fails.
function repeat(everyMs, step, onError) {
  let failures = 0;
  const turn = async () => {
    if (!document.hidden) {
      try {
        await step();
        failures = 0;
      } catch (error) {
        failures += 1;
        if (onError(error) === false) return;
      }
    }
    setTimeout(turn, everyMs * Math.min(8, 2 ** failures));
  };
  turn();
}

class Server {
  constructor(root) {
    this.path = root.dataset.nodes;
    this.state = document.getElementById('live-state');
    this.before = null;
    document.getElementById('live-charts').hidden = false;
    const chart = (id, options) =>
      new LineChart(document.getElementById(id), { windowMs: WINDOW_MS, ...options });
    this.messages = chart('c-messages', { title: 'Messages per second', series: ['Published', 'Delivered'], format: rate, least: 10 });
    this.latency = chart('c-latency', { title: 'Delivery latency', series: ['p50', 'p99'], format: latency, least: 100 });
    this.connections = chart('c-connections', {
      title: 'Connections',
      series: ['Connections'],
      format: (value) => short.format(value),
      least: 10,
    });
    this.cpu = chart('c-cpu', { title: 'CPU, in % of a core', series: ['Process'], format: (value) => `${value.toFixed(0)} %`, least: 10 });
    this.say('warn', 'connecting');
  }

  say(tone, text) {
    this.state.className = `badge ${tone}`;
    if (this.state.textContent !== text) this.state.textContent = text;
  }

  async step() {
    const { nodes } = await api('GET', this.path);
    const at = performance.now();
    const now = { at, nodes };
    this.totals(nodes);
    if (this.before) this.rates(this.before, now);
    this.before = now;
    const failing = nodes.some((node) => node.storeFailing);
    if (failing) this.say('bad', 'the store fails');
    else this.say('good', 'live');
  }

  failed(error) {
    if (error instanceof ApiError && (error.status === 401 || error.status === 403)) {
      this.say('bad', 'signed out: load the page again');
      return false;
    }
    this.before = null;
    this.say('bad', 'no contact, trying again');
    return true;
  }

  totals(nodes) {
    const shards = nodes.flatMap((node) => node.shards);
    put('t-connections', count.format(sum(shards, (shard) => shard.connections)));
    put('t-slow', count.format(sum(shards, (shard) => shard.slowConsumers)));
    put('t-memory', bytes(sum(nodes, (node) => node.residentBytes)));
  }

  rates(before, now) {
    const seconds = (now.at - before.at) / 1000;
    let [published, delivered, cpu] = [0, 0, 0];
    const bounds = now.nodes[0]?.latencyBoundsUs ?? [];
    const buckets = new Array(bounds.length + 1).fill(0);
    now.nodes.forEach((node, index) => {
      const old = before.nodes.find((other) => other.pid === node.pid && other.startedMs === node.startedMs);
      if (!old) return;
      cpu += ((node.cpuSeconds ?? 0) - (old.cpuSeconds ?? 0)) / seconds;
      for (const shard of node.shards) {
        const was = old.shards.find((other) => other.shard === shard.shard);
        if (!was?.up || !shard.up) continue;
        const per = (name) => Math.max(0, shard[name] - was[name]) / seconds;
        published += per('published');
        delivered += per('deliveries');
        shard.delivery.buckets.forEach((value, at) => {
          buckets[at] += Math.max(0, value - (was.delivery.buckets[at] ?? 0));
        });
        this.row(`${index}-${shard.shard}`, shard, per);
      }
    });
    const time = Date.now();
    const [p50, p99] = [0.5, 0.99].map((share) => percentile(bounds, buckets, share));
    this.messages.push(time, [published, delivered]);
    this.latency.push(time, [p50, p99]);
    this.connections.push(time, [sum(now.nodes.flatMap((node) => node.shards), (shard) => shard.connections)]);
    this.cpu.push(time, [cpu * 100]);
    put('t-in', rate(published), 'per second');
    put('t-out', rate(delivered), 'per second');
    put('t-latency', Number.isFinite(p99) ? latency(p99) : '–', 'to the kernel, now');
  }

  row(id, shard, per) {
    const row = document.querySelector(`tr[data-shard="${id}"]`);
    if (!row) return;
    const cells = {
      connections: count.format(shard.connections),
      channels: count.format(shard.channels),
      subscriptions: count.format(shard.subscriptions),
      published: rate(per('published')),
      deliveries: rate(per('deliveries')),
      cpu: (per('cpuSeconds') * 100).toFixed(0),
      outbox: bytes(shard.outboxBytes),
    };
    for (const [name, text] of Object.entries(cells)) {
      const cell = row.querySelector(`[data-cell="${name}"]`);
      if (cell && cell.textContent !== text) cell.textContent = text;
    }
  }
}

class Apps {
  constructor(rows) {
    this.rows = rows;
    this.base = new URL('../../api/apps/', import.meta.url).pathname;
  }

  async step() {
    const totals = { connections: 0, channels: 0, today: 0 };
    for (const row of this.rows) {
      const usage = await api('GET', `${this.base}${encodeURIComponent(row.dataset.app)}/usage?step=minute`);
      const cells = { connections: usage.connections, channels: usage.channels, today: usage.messagesToday };
      for (const [name, value] of Object.entries(cells)) {
        totals[name] += value ?? 0;
        const cell = row.querySelector(`[data-cell="${name}"]`);
        if (cell && value !== undefined) cell.textContent = count.format(value);
      }
    }
    if (document.getElementById('live-apps')) {
      put('t-connections', count.format(totals.connections));
      put('t-channels', count.format(totals.channels));
      put('t-today', count.format(totals.today));
    }
  }
}

const server = document.getElementById('live');
if (server) {
  const view = new Server(server);
  repeat(SERVER_EVERY_MS, () => view.step(), (error) => view.failed(error));
}
const rows = [...document.querySelectorAll('tr[data-app]')];
if (rows.length > 0 && rows.length <= APPS_MAX) {
  const view = new Apps(rows);
  repeat(APPS_EVERY_MS, () => view.step(), (error) => !(error instanceof ApiError && error.status < 500));
}
