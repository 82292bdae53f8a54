// WebSocket echo on /ws, server-sent events on /events, and the protocol of a request on anything else; on $PORT of $POD_IP.
const http = require("http");
const { WebSocketServer } = require("ws");

const server = http.createServer((request, response) => {
  if (request.url.startsWith("/events")) {
    response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
    let count = 0;
    const timer = setInterval(() => {
      response.write(`id: ${count}\ndata: ${process.env.POD_NAME}\n\n`);
      if (++count === 5) {
        clearInterval(timer);
        response.end();
      }
    }, 200);
    request.on("close", () => clearInterval(timer));
    return;
  }
  response.end(`HTTP/${request.httpVersion} ${process.env.POD_NAME} ${request.headers["x-forwarded-for"] ?? ""}\n`);
});
const sockets = new WebSocketServer({ server, path: "/ws" });
sockets.on("connection", (socket) => {
  socket.send(`hello from ${process.env.POD_NAME}`);
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
server.listen(Number(process.env.PORT), process.env.POD_IP);
process.on("SIGTERM", () => {
  for (const socket of sockets.clients) socket.close(1001, "going away");
  server.close(() => process.exit(0));
});
