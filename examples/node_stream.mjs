// Read one topic by its stream: nothing is missed, however slow you are, up to the stream's length.
// node node_stream.mjs [URL] [TOPIC] [ID of the last entry you handled]      (npm install redis)
import { createClient } from "redis";

const [url = "redis://127.0.0.1:6379", topic = "trades.BTC-USD", start] = process.argv.slice(2);
const bus = createClient({ url });
bus.on("error", (error) => console.error(error.message)); // it reconnects by itself
await bus.connect();

// nanoseconds exceed 2^53: JSON.parse would round them, so their digits are kept as text, for BigInt
const NANOS = /"(ts_event|ts_recv|start|end|until|from_ns|to_ns|src_seq)":(\d+)/g;
const parse = (data) => JSON.parse(data.replace(NANOS, '"$1":"$2"'));

let last = start ?? (await bus.xRevRange(topic, "+", "-", { COUNT: 1 }))[0]?.id ?? "0-0";
let run, seq;
for (;;) {
  let found;
  try {
    found = await bus.xRead({ key: topic, id: last }, { COUNT: 500, BLOCK: 2000 });
  } catch {
    await new Promise((done) => setTimeout(done, 200)); // the server is away: go on behind `last` when it is back
    continue;
  }
  for (const { messages } of found ?? []) {
    for (const { id, message: fields } of messages) {
      const message = parse(fields.data);
      if (message.run === run && message.seq !== seq + 1) {
        console.log("gap", message.seq - seq - 1, "entries were trimmed before they were read");
      }
      ({ run, seq } = message);
      console.log(id, message.type, message.price ?? ""); // numbers are text, use a decimal library
      last = id; // save it with your result, to go on from here after a restart
    }
  }
}
