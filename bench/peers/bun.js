// Pub/sub on Bun's WebSocket server (uWebSockets): /sub/NAME receives what is sent on /pub/NAME; /echo/NAME
// sends and receives, its own messages too.
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
    open(ws) { if (ws.data.kind !== "pub") ws.subscribe(ws.data.topic); },
    message(ws, message) { server.publish(ws.data.topic, message); },
  },
});
console.log(`listening on ${server.port}`);
