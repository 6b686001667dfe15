// Read one topic by pub/sub, the shortest way, and fill what it loses (reconnects, slowness) from the stream.
// node node_pubsub.mjs [URL] [TOPIC] [ID of the last entry you handled]      (npm install redis)
import { createClient } from "redis";

const [url = "redis://127.0.0.1:6379", topic = "trades.BTC-USD", start] = process.argv.slice(2);
const bus = createClient({ url });
const channel = bus.duplicate(); // a connection that subscribes can do nothing else
for (const one of [bus, channel]) one.on("error", (error) => console.error(error.message)); // both reconnect
await bus.connect();

// nanoseconds exceed 2^53: JSON.parse would round them, so their digits are kept as text, for BigInt
const NANOS = /"(ts_event|ts_recv|start|end|until|from_ns|to_ns|src_seq)":(\d+)/g;
const parse = (data) => JSON.parse(data.replace(NANOS, '"$1":"$2"'));
const split = (id) => id.split("-").map(BigInt);
const behind = ([ms, seq], [lastMs, lastSeq]) => ms > lastMs || (ms === lastMs && seq > lastSeq);

let last = split(start ?? (await bus.xRevRange(topic, "+", "-", { COUNT: 1 }))[0]?.id ?? "0-0");
let run;

function handle(message) {
  last = [BigInt(message.ts_recv) / 1_000_000n, BigInt(message.seq)];
  run = message.run;
  console.log(last.join("-"), message.type, message.price ?? "");
}

async function catchUp() {
  for (;;) {
    const entries = await bus.xRange(topic, `(${last.join("-")}`, "+", { COUNT: 1000 });
    if (entries.length === 0) return;
    for (const { message: fields } of entries) {
      const message = parse(fields.data);
      if (message.run === run && BigInt(message.seq) !== last[1] + 1n) {
        console.log("gap: entries were trimmed before they were read");
      }
      handle(message);
    }
  }
}

// one thing after another: a message that arrives during a repair waits for it
let work = Promise.resolve();
const next = (what) => (work = work.then(what).catch((error) => console.error(error.message)));

async function pushed(data) {
  const message = parse(data);
  if (!behind([BigInt(message.ts_recv) / 1_000_000n, BigInt(message.seq)], last)) return; // had from the stream
  if (message.run === run && BigInt(message.seq) === last[1] + 1n) handle(message);
  else await catchUp(); // a hole, or a new run of the relay; the stream has this message too
}

channel.on("ready", () => next(catchUp)); // after every reconnect
await channel.connect();
await channel.subscribe(topic, (data) => next(() => pushed(data)));
next(catchUp); // what came before the subscription
setInterval(() => next(catchUp), 2000); // quiet: was something stored and not published?
