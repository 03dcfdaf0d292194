// A client of the server's own protocol: connects, comes back by itself, and resumes where it was.

const PING_EVERY_MS = 30_000;
const WAIT_MS_MAX = 30_000;
const TRIES_MAX = 10;
// Close codes after which coming back makes no sense: disabled, quota, expired, ended by an administrator.
const FINAL_CODES = new Set([4000, 4003, 4004, 4009, 4010]);

function resumeToken(channels, lastTs) {
  const bytes = new TextEncoder().encode(JSON.stringify({ channels, lastTs }));
  return btoa(String.fromCharCode(...bytes)).replaceAll('+', '-').replaceAll('/', '_').replace(/=+$/, '');
}

// Events: `state` (detail: { state, text }), `frame` (detail: { way: 'in' | 'out', frame }), `channels`.
// States: idle, connecting, open, waiting, ended.
export class Client extends EventTarget {
  // credential(): a promise of { key } or { token }, asked for at each connection.
  constructor(url, credential, { echo = true } = {}) {
    super();
    Object.assign(this, { url, credential, echo });
    this.channels = new Set();
    this.lastTs = 0;
    this.tries = 0;
    this.wasOpen = false;
    this.isWanted = false;
    this.socket = null;
    this.turn = 0;
  }

  get isOpen() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  async connect() {
    this.isWanted = true;
    const turn = ++this.turn;
    this.say('connecting', 'connecting');
    let credential;
    try {
      credential = await this.credential();
    } catch (error) {
      if (turn === this.turn) this.end(error.message);
      return;
    }
    if (turn !== this.turn) return;
    const url = new URL(this.url);
    for (const [name, value] of Object.entries(credential)) url.searchParams.set(name, value);
    if (!this.echo) url.searchParams.set('echo', 'false');
    const socket = new WebSocket(url);
    this.socket = socket;
    const isCurrent = () => socket === this.socket;
    socket.addEventListener('open', () => isCurrent() && this.opened());
    socket.addEventListener('message', (event) => isCurrent() && this.received(event.data));
    socket.addEventListener('close', (event) => isCurrent() && this.closed(event));
  }

  disconnect() {
    this.isWanted = false;
    this.turn += 1;
    const socket = this.stop();
    socket?.close(1000);
    this.end('not connected');
  }

  // Ends the connection and comes back, as after a failure of the network.
  reconnect() {
    const socket = this.stop();
    socket?.close(1000);
    this.connect();
  }

  stop() {
    clearInterval(this.pinging);
    clearTimeout(this.waiting);
    const { socket } = this;
    this.socket = null;
    return socket;
  }

  opened() {
    this.tries = 0;
    this.wasOpen = true;
    this.say('open', 'connected');
    this.pinging = setInterval(() => this.send({ action: 'ping' }), PING_EVERY_MS);
    const channels = [...this.channels];
    if (this.lastTs > 0 && channels.length > 0) {
      this.send({ action: 'resume', resumeToken: resumeToken(channels, this.lastTs) });
    } else {
      for (const channel of channels) this.send({ action: 'subscribe', channel });
    }
  }

  received(text) {
    let frame;
    try { frame = JSON.parse(text); } catch { return; }
    if (frame.action === 'message' && Number.isFinite(frame.timestamp)) {
      this.lastTs = Math.max(this.lastTs, frame.timestamp);
    } else if (frame.action === 'subscribed') {
      this.channels.add(frame.channel);
      this.dispatchEvent(new Event('channels'));
    } else if (frame.action === 'unsubscribed') {
      this.channels.delete(frame.channel);
      this.dispatchEvent(new Event('channels'));
    }
    this.dispatchEvent(new CustomEvent('frame', { detail: { way: 'in', frame } }));
  }

  closed({ code, reason }) {
    this.stop();
    const why = reason ? `${code} ${reason}` : `${code}`;
    if (!this.isWanted) return;
    if (FINAL_CODES.has(code)) return this.end(`ended by the server: ${why}`);
    if (!this.wasOpen) return this.end('refused, or the server cannot be reached');
    if (this.tries >= TRIES_MAX) return this.end(`gave up after ${TRIES_MAX} tries`);
    const wait = Math.min(WAIT_MS_MAX, 1000 * 2 ** this.tries) * (0.75 + Math.random() / 2);
    this.tries += 1;
    this.say('waiting', `lost (${why}), back in ${Math.ceil(wait / 1000)} s`);
    this.waiting = setTimeout(() => this.connect(), wait);
  }

  end(text) {
    this.isWanted = false;
    this.say('ended', text);
  }

  say(state, text) {
    this.dispatchEvent(new CustomEvent('state', { detail: { state, text } }));
  }

  // False where there is no connection.
  send(frame) {
    if (!this.isOpen) return false;
    this.socket.send(JSON.stringify(frame));
    this.dispatchEvent(new CustomEvent('frame', { detail: { way: 'out', frame } }));
    return true;
  }
}
