// One symbol: its facts, a chart of the stream's last entries, its trades and bars. All text goes in as text.

import { aligned, compare, decimals, spread } from "./decimal.js";
import { MARKS, age, source } from "./table.js";

const POINTS_MAX = 600;
const REDRAW_MS = 300; // chart and tables; the facts above them follow every frame
const TRADES_MAX = 60;
const BARS_MAX = 40;
const SVG = "http://www.w3.org/2000/svg";

const two = (number) => String(number).padStart(2, "0");
export function clock(ms) {
  const date = new Date(ms);
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

function element(name, text, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

export class Detail {
  constructor(root, { now, markOf }) {
    this.root = root;
    this.now = now;
    this.markOf = markOf;
    this.row = null;
    this.find = (name) => root.querySelector(`[data-part=${name}]`);
    this.due = false;
    this.drawn = this.later = 0;
    this.reset();
    new ResizeObserver(() => this.soon()).observe(this.find("chart"));
    setInterval(() => this.row && this.soon(), 1000);
  }

  reset() {
    this.points = [];
    this.breaks = [];
    this.trades = [];
    this.bars = new Map();
    this.fresh = true;
    this.loaded = false;
    this.drawn = 0; // another symbol is drawn at once
  }

  show(row) {
    if (this.row === row) return;
    this.row = row;
    this.reset();
    this.soon();
  }

  history(items) {
    this.reset();
    this.loaded = true;
    this.take(items);
  }

  take(items) {
    for (const item of items) {
      const [kind, ms] = item;
      if (kind === "q") this.points.push({ ms, bid: item[2], ask: item[3], last: item[4] });
      else if (kind === "t") this.trades.push({ ms, price: item[2], size: item[3], side: item[4], estimated: item[5], venue: item[6] });
      else if (kind === "b") {
        const [, start, interval, open, high, low, close, volume, closed] = item;
        this.bars.set(`${interval} ${start}`, { start, interval, open, high, low, close, volume, closed });
      } else if (kind === "s" && (item[2] === "gap" || item[2] === "stale")) this.breaks.push({ ms, event: item[2] });
    }
    if (this.points.length > POINTS_MAX) this.points.splice(0, this.points.length - POINTS_MAX);
    if (this.trades.length > 300) this.trades.splice(0, this.trades.length - 300);
    if (this.breaks.length > 60) this.breaks.splice(0, this.breaks.length - 60);
    if (this.bars.size > 4 * BARS_MAX) {
      const keys = [...this.bars.keys()];
      for (const key of keys.slice(0, keys.length - 2 * BARS_MAX)) this.bars.delete(key);
    }
    this.fresh = true;
    this.soon();
  }

  soon() {
    if (this.due) return;
    this.due = true;
    requestAnimationFrame(() => {
      this.due = false;
      this.draw();
    });
  }

  draw() {
    const row = this.row;
    if (!row || this.root.hidden) return;
    const places = row.decimals ?? 0;
    const show = (text) => (text == null ? "–" : aligned(text, places));
    const mark = this.markOf(row);
    this.text("symbol", row.symbol);
    this.text("name", row.name || source(row));
    this.text("mark", MARKS[mark] ?? mark);
    this.find("mark").className = `mark m-${mark.replace(" ", "-")}`;
    this.text("badge", row.badge === "sim" ? "simulated price" : row.badge === "REST" ? "fallback price over REST" : row.badge ?? "");
    this.find("badge").hidden = !row.badge;
    this.find("badge").dataset.kind = row.badge ?? "";
    this.text("why", mark === "lost" ? "the page has lost the dashboard; these are the last known values" : row.why ?? "");
    this.text("bid", show(row.bid));
    this.text("bidSize", row.bidSize ?? "");
    this.text("ask", show(row.ask));
    this.text("askSize", row.askSize ?? "");
    this.text("spread", spread(row.bid, row.ask) || "–");
    this.text("last", row.last == null ? "–" : row.last);
    this.text("what", row.last == null ? "last" : row.what || "last");
    this.text("age", row.ms ? age(this.now() - row.ms) : "–");
    this.text("gaps", row.gaps ? String(row.gaps) : "none");
    this.text("source", `${source(row)} · ${row.raw}`);
    if (!this.fresh) return;
    const wait = this.drawn + REDRAW_MS - performance.now();
    if (wait > 0) {
      this.later ||= setTimeout(() => {
        this.later = 0;
        this.soon();
      }, wait);
      return;
    }
    this.drawn = performance.now();
    this.fresh = false;
    this.chart();
    this.tables();
  }

  text(name, value) {
    const part = this.find(name);
    if (part.textContent !== value) part.textContent = value;
  }

  // -- the chart -----------------------------------------------------------------------------------------------------

  series() {
    if (this.points.length > 1) return this.points;
    if (this.trades.length > 1) return this.trades.map((trade) => ({ ms: trade.ms, bid: null, ask: null, last: trade.price }));
    return [...this.bars.values()].map((bar) => ({ ms: bar.start, bid: null, ask: null, last: bar.close }));
  }

  chart() {
    const place = this.find("chart");
    const width = place.clientWidth || 360;
    const height = place.clientHeight || 150;
    const points = this.series();
    const drawing = document.createElementNS(SVG, "svg");
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("role", "img");
    let label = "No chart: fewer than two prices read yet";
    const values = [];
    for (const point of points) for (const key of ["bid", "ask", "last"]) if (usable(point, key)) values.push(point[key]);
    if (points.length > 1 && values.length > 1) {
      let low = values[0];
      let high = values[0];
      for (const value of values) {
        if (compare(value, low) < 0) low = value;
        if (compare(value, high) > 0) high = value;
      }
      const [bottom, top] = [Number(low), Number(high)];
      const pad = (top - bottom) * 0.08 || Math.abs(top) * 0.001 || 1;
      const margin = Math.min(width / 3, 14 + 7 * Math.max(low.length, high.length));
      const from = points[0].ms;
      const span = Math.max(1, points[points.length - 1].ms - from);
      const x = (ms) => 2 + ((ms - from) / span) * (width - margin - 4);
      const y = (value) => 8 + ((top + pad - value) / (top - bottom + 2 * pad)) * (height - 30);
      for (const value of top === bottom ? [high] : [high, low]) {
        this.stroke(drawing, `M0 ${y(Number(value))}H${width - margin}`, "grid");
        this.label(drawing, width - margin + 6, y(Number(value)) + 4, value, "start");
      }
      for (const { ms, event } of this.breaks) {
        if (ms >= from) this.stroke(drawing, `M${x(ms).toFixed(1)} 4V${height - 20}`, `break ${event}`);
      }
      for (const key of ["last", "ask", "bid"]) {
        let path = "";
        for (const point of points) {
          if (!usable(point, key)) continue;
          const across = x(point.ms).toFixed(1);
          const up = y(Number(point[key])).toFixed(1);
          path += path ? `H${across}V${up}` : `M${across} ${up}`;
        }
        if (path) this.stroke(drawing, path, key);
      }
      this.label(drawing, 2, height - 4, clock(from), "start");
      this.label(drawing, width - margin, height - 4, clock(from + span), "end");
      const key = ["bid", "last", "ask"].find((name) => points.some((point) => usable(point, name)));
      const end = points.findLast((point) => usable(point, key));
      label = `Chart of ${this.row.symbol}, ${points.length} values from ${clock(from)} to ${clock(from + span)}: lowest ${low}, highest ${high}, ${key} now ${end[key]}`;
      if (this.breaks.length) label += `, ${this.breaks.length} gaps or stale times`;
    } else if (!this.loaded) label = "Chart: loading";
    else this.label(drawing, width / 2, height / 2, "fewer than two prices read yet", "middle");
    drawing.setAttribute("aria-label", label);
    place.replaceChildren(drawing);
  }

  stroke(drawing, path, kind) {
    const line = document.createElementNS(SVG, "path");
    line.setAttribute("d", path);
    line.setAttribute("class", `line ${kind}`);
    drawing.append(line);
  }

  label(drawing, x, y, text, anchor) {
    const label = document.createElementNS(SVG, "text");
    label.setAttribute("x", String(x));
    label.setAttribute("y", String(y));
    label.setAttribute("text-anchor", anchor);
    label.textContent = text;
    drawing.append(label);
  }

  // -- trades and bars -----------------------------------------------------------------------------------------------

  tables() {
    const trades = this.trades.slice(-TRADES_MAX).reverse();
    const most = (list, get) => list.reduce((found, one) => Math.max(found, get(one) == null ? 0 : decimals(get(one))), 0);
    const priceAt = most(trades, (trade) => trade.price);
    const sizeAt = most(trades, (trade) => trade.size);
    this.find("trades").replaceChildren(
      ...trades.map((trade) => {
        const line = document.createElement("tr");
        const side = element("td", (trade.side ?? "–") + (trade.estimated ? " (est.)" : ""), trade.side ?? "");
        line.append(
          element("td", clock(trade.ms)),
          element("td", aligned(trade.price, priceAt), "n"),
          element("td", trade.size == null ? "–" : aligned(trade.size, sizeAt), "n"),
          side,
        );
        return line;
      }),
    );
    this.find("noTrades").hidden = trades.length > 0;
    this.find("tradeTable").hidden = trades.length === 0;
    const bars = [...this.bars.values()].sort((a, b) => b.start - a.start).slice(0, BARS_MAX);
    this.find("bars").replaceChildren(
      ...bars.map((bar) => {
        const line = document.createElement("tr");
        if (!bar.closed) line.className = "running";
        line.append(element("td", clock(bar.start).slice(0, 5)), element("td", bar.interval));
        for (const key of ["open", "high", "low", "close"]) line.append(element("td", bar[key], "n"));
        line.title = bar.closed ? "" : "This bar still runs";
        return line;
      }),
    );
    this.find("noBars").hidden = bars.length > 0;
    this.find("barTable").hidden = bars.length === 0;
  }
}

/** `last` of a quote that has a bid or ask would only be in the way of those. */
function usable(point, key) {
  return point[key] != null && (key !== "last" || (point.bid == null && point.ask == null));
}
