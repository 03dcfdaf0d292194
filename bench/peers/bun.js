// Pub/sub on Bun's WebSocket server (uWebSockets): /sub/NAME receives what is sent on /pub/NAME.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2] ?? 0),
  fetch(request, server) {
    const [, kind, topic] = new URL(request.url).pathname.split("/");
    if (server.upgrade(request, { data: { kind, topic } })) return;
    return new Response("WebSocket only", { status: 426 });
  },
  websocket: {
    maxPayloadLength: 1 << 20, backpressureLimit: 64 << 20, idleTimeout: 0, sendPings: false,
    open(ws) { if (ws.data.kind === "sub") ws.subscribe(ws.data.topic); },
    message(ws, message) { ws.publish(ws.data.topic, message); },
  },
});
console.log(`listening on ${server.port}`);
