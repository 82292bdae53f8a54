// Opens a WebSocket, waits for the greeting, has three messages echoed (text, 100 KiB binary, ping) and closes. Prints JSON.
const { WebSocket } = require("ws");

const started = Date.now();
const socket = new WebSocket(process.argv[2]);
const big = Buffer.alloc(100 * 1024, "x");
const seen = { opened: 0, greeting: "", text: false, binary: false, pong: false, code: 0 };
const fail = (why) => {
  console.log(JSON.stringify({ ...seen, error: why }));
  process.exit(1);
};
setTimeout(() => fail("not done within 20 s"), 20_000);
socket.on("error", (error) => fail(error.message));
socket.on("open", () => {
  seen.opened = Date.now() - started;
  socket.send("text");
  socket.send(big);
  socket.ping();
});
socket.on("pong", () => (seen.pong = true));
socket.on("message", (data, isBinary) => {
  if (isBinary) seen.binary = data.equals(big);
  else if (!seen.greeting) seen.greeting = data.toString();
  else seen.text = data.toString() === "text";
  if (seen.binary && seen.text) setTimeout(() => socket.close(1000), seen.pong ? 0 : 200);
});
socket.on("close", (code) => {
  seen.code = code;
  console.log(JSON.stringify(seen));
  process.exit(seen.text && seen.binary && seen.pong && code === 1000 ? 0 : 1);
});
