// Read one topic by its stream. Not run by our tests unless Jedis is at hand (redis.clients:jedis:5.2.0 or newer).
// java -cp 'jedis.jar:...' Reader.java [URL] [TOPIC] [ID of the last entry you handled]

import java.util.List;
import java.util.Map;
import redis.clients.jedis.JedisPooled;
import redis.clients.jedis.StreamEntryID;
import redis.clients.jedis.exceptions.JedisConnectionException;
import redis.clients.jedis.params.XReadParams;
import redis.clients.jedis.resps.StreamEntry;

public class Reader {
  public static void main(String[] args) throws InterruptedException {
    String url = args.length > 0 ? args[0] : "redis://127.0.0.1:6379";
    String topic = args.length > 1 ? args[1] : "trades.BTC-USD";
    try (JedisPooled bus = new JedisPooled(url)) {
      StreamEntryID last;
      if (args.length > 2) {
        last = new StreamEntryID(args[2]);
      } else { // what is new from now on; not "$", which would lose what comes between two calls
        List<StreamEntry> newest = bus.xrevrange(topic, (StreamEntryID) null, null, 1);
        last = newest.isEmpty() ? new StreamEntryID("0-0") : newest.get(0).getID();
      }
      XReadParams params = XReadParams.xReadParams().count(500).block(1000); // below Jedis's time-out of 2 s
      while (true) {
        List<Map.Entry<String, List<StreamEntry>>> found;
        try {
          found = bus.xread(params, Map.of(topic, last));
        } catch (JedisConnectionException away) {
          Thread.sleep(200); // go on behind `last` when it is back
          continue;
        }
        if (found == null) continue;
        for (StreamEntry entry : found.get(0).getValue()) {
          System.out.println(entry.getID() + " " + entry.getFields().get("data")); // JSON; a long holds nanoseconds
          last = entry.getID(); // save it with your result, to go on from here after a restart
        }
      }
    }
  }
}
