// The table of quotes. Only the rows in sight exist as elements, and only cells whose text changed are written, at most
// once a frame: a thousand symbols cost what two dozen do. Whatever came from outside goes in as text.

import { aligned, compare, spread } from "./decimal.js";

export const VALUES = ["id", "bid", "ask", "last", "what", "ms", "mark", "why", "badge", "gap", "bidSize", "askSize", "gaps", "decimals"];
export const MARKS = {
  live: "live", fallback: "fallback", old: "old", stale: "stale", closed: "closed", halted: "halted", offline: "provider down",
  waiting: "waiting", "no relay": "relay down", "no redis": "Redis down", lost: "page offline",
};
const RANK = ["lost", "no redis", "no relay", "offline", "waiting", "stale", "old", "fallback", "halted", "closed", "live"];
const CALM = new Set(["live", "closed", "halted"]);
const FLASH_MS = 260;
const OVERSCAN = 6;
const COLUMNS = [
  { key: "symbol", title: "Symbol" },
  { key: "name", title: "Name" },
  { key: "bid", title: "Bid", number: true },
  { key: "ask", title: "Ask", number: true },
  { key: "spread", title: "Spread", number: true },
  { key: "last", title: "Last", number: true },
  { key: "age", title: "Age", number: true },
  { key: "state", title: "State" },
  { key: "source", title: "Source" },
];
const MOVING = new Set(["bid", "ask", "spread", "last", "age", "state"]);
const DESCENDING_FIRST = new Set(["bid", "ask", "spread", "last"]);

export function age(ms) {
  const secs = Math.max(0, ms / 1000);
  if (secs < 2) return "now";
  if (secs < 60) return `${Math.floor(secs)} s`;
  if (secs < 3600) return `${Math.floor(secs / 60)} min`;
  if (secs < 172800) return `${Math.floor(secs / 3600)} h`;
  return `${Math.floor(secs / 86400)} d`;
}

export function source(row) {
  return row.venue ? `${row.provider} · ${row.venue}` : row.provider;
}

export class Table {
  constructor(parts, { now, open, counted }) {
    Object.assign(this, parts); // scroller, table, head, body, empty
    this.now = now;
    this.open = open;
    this.counted = counted;
    this.rows = new Map();
    this.view = [];
    this.pool = [];
    this.words = [];
    this.onlyMarked = false;
    this.sort = { key: "symbol", down: false };
    this.selected = null;
    this.lost = false;
    this.stirred = true; // the view must be made anew
    this.due = false;
    this.shownFrom = -1;
    this._head();
    this.top = this._spacer();
    this.bottom = this._spacer();
    this.body.append(this.top, this.bottom);
    this.scroller.addEventListener("scroll", () => this.soon(), { passive: true });
    new ResizeObserver(() => this.soon()).observe(this.scroller);
    this.scroller.addEventListener("keydown", (event) => this._key(event));
    this.body.addEventListener("click", (event) => {
      const line = event.target.closest("tr[data-at]");
      if (line) this._select(Number(line.dataset.at), true);
    });
    setInterval(() => {
      if (MOVING.has(this.sort.key) || this.onlyMarked) this.stirred = true;
      this.soon();
    }, 1000);
  }

  // -- data ----------------------------------------------------------------------------------------------------------

  about(list) {
    for (const fields of list) {
      const row = this.rows.get(fields.id) ?? { flash: {}, values: [], mark: "waiting", badge: "", gap: 0 };
      Object.assign(row, fields);
      row.haystack = [row.symbol, row.name, row.raw, row.provider, row.venue, row.space].join(" ").toLowerCase();
      this.rows.set(row.id, row);
    }
    this.stirred = true;
    this.soon();
  }

  update(list) {
    const at = performance.now();
    for (const values of list) {
      const row = this.rows.get(values[0]);
      if (!row) continue;
      const { bid, ask, last, mark } = row;
      for (let i = 1; i < VALUES.length; i++) row[VALUES[i]] = values[i];
      this._flash(row, "bid", bid, row.bid, at);
      this._flash(row, "ask", ask, row.ask, at);
      this._flash(row, "last", last, row.last, at);
      if (mark !== row.mark) this.stirred = true;
    }
    this.soon();
  }

  _flash(row, key, before, after, at) {
    if (before == null || after == null || before === after) return;
    row.flash[key] = { way: compare(after, before) < 0 ? "down" : "up", until: at + FLASH_MS };
  }

  gone(ids) {
    for (const id of ids) this.rows.delete(id);
    this.stirred = true;
    this.soon();
  }

  clear() {
    this.rows.clear();
    this.stirred = true;
    this.soon();
  }

  markOf(row) {
    return this.lost ? "lost" : row.mark;
  }

  // -- what is seen --------------------------------------------------------------------------------------------------

  search(text) {
    this.words = text.toLowerCase().split(/\s+/).filter(Boolean);
    this.stirred = true;
    this.scroller.scrollTop = 0;
    this.soon();
  }

  _arrange() {
    let marked = 0;
    const view = [];
    for (const row of this.rows.values()) {
      const calm = CALM.has(this.markOf(row));
      if (!calm) marked++;
      if (this.onlyMarked && calm) continue;
      if (this.words.every((word) => row.haystack.includes(word))) view.push(row);
    }
    const { key, down } = this.sort;
    const by = this._order(key);
    const sign = down ? -1 : 1;
    view.sort((a, b) => by(a, b, sign) || (a.symbol < b.symbol ? -1 : a.symbol > b.symbol ? 1 : a.id - b.id));
    this.view = view;
    this.stirred = false;
    this.table.setAttribute("aria-rowcount", String(view.length + 1));
    this.empty.hidden = view.length > 0;
    this.empty.textContent = this.rows.size
      ? "Nothing matches. Clear the search, or show all."
      : "No quotes yet. They appear as soon as a relay publishes some.";
    this.counted(this.rows.size, marked, view.length);
  }

  _order(key) {
    const text = (get) => (a, b, sign) => {
      const x = get(a), y = get(b);
      return (x === "") - (y === "") || sign * (x < y ? -1 : x > y ? 1 : 0);
    };
    const number = (get) => (a, b, sign) => {
      const x = get(a), y = get(b);
      return (x === "") - (y === "") || sign * (Number(x) - Number(y) || 0);
    };
    switch (key) {
      case "symbol": return text((row) => row.symbol);
      case "name": return text((row) => row.name.toLowerCase());
      case "source": return text(source);
      case "spread": return number((row) => spread(row.bid, row.ask));
      case "age": return number((row) => -row.ms);
      case "state": return number((row) => RANK.indexOf(this.markOf(row)));
      default: return number((row) => row[key] ?? "");
    }
  }

  sortBy(key) {
    const same = this.sort.key === key;
    this.sort = { key, down: same ? !this.sort.down : DESCENDING_FIRST.has(key) };
    for (const cell of this.head.cells) {
      const now = cell.dataset.key === key;
      if (now) cell.setAttribute("aria-sort", this.sort.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    this.stirred = true;
    this.soon();
  }

  _head() {
    for (const { key, title, number } of COLUMNS) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.dataset.key = key;
      cell.className = `c-${key}${number ? " n" : ""}`;
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = title;
      button.addEventListener("click", () => this.sortBy(key));
      cell.append(button);
      this.head.append(cell);
    }
    this.head.cells[0].setAttribute("aria-sort", "ascending");
  }

  _spacer() {
    const line = document.createElement("tr");
    line.className = "spacer";
    line.setAttribute("aria-hidden", "true");
    const cell = document.createElement("td");
    cell.colSpan = COLUMNS.length;
    line.append(cell);
    return line;
  }

  _line() {
    const line = document.createElement("tr");
    const cells = {};
    for (const { key, number } of COLUMNS) {
      const cell = document.createElement(key === "symbol" ? "th" : "td");
      if (key === "symbol") cell.scope = "row";
      cell.className = `c-${key}${number ? " n" : ""}`;
      cells[key] = { cell, text: document.createElement("span"), shown: null, way: "" };
      cell.append(cells[key].text);
      line.append(cell);
    }
    cells.symbol.text.className = "symbol";
    const under = document.createElement("span");
    under.className = "under";
    cells.symbol.cell.append(under);
    const tag = document.createElement("span");
    tag.className = "what";
    cells.last.cell.prepend(tag);
    const state = cells.state.cell;
    cells.state.text.className = "mark";
    const badge = document.createElement("span");
    const gap = document.createElement("span");
    badge.className = "badge";
    gap.className = "badge gap";
    gap.textContent = "gap";
    state.append(badge, gap);
    return { line, cells, under, tag, badge, gap, row: null, at: -1, mark: null, under_: null, tag_: null, badge_: null, gap_: null, why: null };
  }

  _height() {
    return parseFloat(getComputedStyle(this.table).getPropertyValue("--row")) || 34;
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
    if (this.stirred) this._arrange();
    const height = this._height();
    const total = this.view.length;
    const fit = Math.ceil(this.scroller.clientHeight / height) + 2 * OVERSCAN;
    const count = Math.min(total, fit);
    const first = Math.max(0, Math.min(Math.floor(this.scroller.scrollTop / height) - OVERSCAN, total - count));
    while (this.pool.length < count) {
      const made = this._line();
      this.pool.push(made);
      this.bottom.before(made.line);
    }
    while (this.pool.length > count) this.pool.pop().line.remove();
    if (this.top.dataset.h !== String(first)) {
      this.top.dataset.h = String(first);
      this.top.firstChild.style.height = `${first * height}px`;
    }
    const rest = String(total - first - count);
    if (this.bottom.dataset.h !== rest) {
      this.bottom.dataset.h = rest;
      this.bottom.firstChild.style.height = `${Number(rest) * height}px`;
    }
    const now = this.now();
    const at = performance.now();
    let flashing = false;
    for (let i = 0; i < count; i++) {
      flashing = this._write(this.pool[i], this.view[first + i], first + i, now, at) || flashing;
    }
    if (flashing && !this.cooling) {
      this.cooling = setTimeout(() => {
        this.cooling = 0;
        this.soon();
      }, FLASH_MS / 2);
    }
  }

  _write(made, row, index, now, at) {
    const { line, cells } = made;
    const other = made.row !== row;
    made.row = row;
    if (made.at !== index) {
      made.at = index;
      line.dataset.at = String(index);
      line.id = `row-${index}`;
      line.setAttribute("aria-rowindex", String(index + 2));
    }
    const mark = this.markOf(row);
    const selected = row.id === this.selected;
    const style = `m-${mark.replace(" ", "-")}${CALM.has(mark) ? "" : " marked"}${selected ? " selected" : ""}`;
    if (made.mark !== style) {
      made.mark = style;
      line.className = style;
      if (selected) line.setAttribute("aria-selected", "true");
      else line.removeAttribute("aria-selected");
    }
    const places = row.decimals ?? 0;
    const number = (text) => (text == null ? "–" : aligned(text, places));
    put(cells.symbol, row.symbol);
    put(cells.name, row.name);
    put(cells.bid, number(row.bid), true);
    put(cells.ask, number(row.ask), true);
    put(cells.spread, spread(row.bid, row.ask) || "–", true);
    put(cells.last, number(row.last), true);
    put(cells.age, row.ms ? age(now - row.ms) : "–");
    put(cells.state, MARKS[mark] ?? mark);
    put(cells.source, source(row));
    const under = row.name ? `${row.name} · ${source(row)}` : source(row);
    if (made.under_ !== under) made.under.textContent = made.under_ = under;
    const tag = row.last != null && row.what !== "last" && row.what !== "trade" ? row.what : "";
    if (made.tag_ !== tag) made.tag.textContent = made.tag_ = tag;
    if (made.badge_ !== row.badge) {
      made.badge.textContent = made.badge_ = row.badge;
      made.badge.hidden = !row.badge;
      made.badge.dataset.kind = row.badge;
    }
    if (made.gap_ !== row.gap) {
      made.gap_ = row.gap;
      made.gap.hidden = !row.gap;
    }
    const why = this.lost ? "the page has lost the dashboard" : row.why || "";
    if (made.why !== why) {
      made.why = why;
      cells.state.cell.title = why;
    }
    let flashing = false;
    for (const key of ["bid", "ask", "last"]) {
      const flash = row.flash[key];
      const way = flash && flash.until > at ? flash.way : "";
      if (way) flashing = true;
      if (cells[key].way !== way || other) {
        cells[key].way = way;
        cells[key].cell.classList.toggle("up", way === "up");
        cells[key].cell.classList.toggle("down", way === "down");
      }
    }
    return flashing;
  }

  // -- keys ----------------------------------------------------------------------------------------------------------

  indexOfSelected() {
    return this.view.findIndex((row) => row.id === this.selected);
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button")) return;
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this._height()) - 2);
    if (this.stirred) this.draw(); // what is chosen is chosen in what is about to be seen
    const at = this.indexOfSelected();
    const moves = { ArrowDown: at + 1, j: at + 1, ArrowUp: at - 1, k: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: this.view.length - 1 };
    if (event.key === "Enter" || event.key === " ") {
      if (at >= 0) this._select(at, true);
    } else if (event.key in moves && this.view.length) {
      this._select(Math.max(0, Math.min(this.view.length - 1, moves[event.key])), false);
    } else return;
    event.preventDefault();
  }

  _select(index, open) {
    if (this.stirred) this.draw();
    const row = this.view[index];
    if (!row) return;
    this.selected = row.id;
    const height = this._height();
    const head = this.head.getBoundingClientRect().height;
    const { scrollTop, clientHeight } = this.scroller;
    if (index * height < scrollTop) this.scroller.scrollTop = index * height;
    else if ((index + 1) * height + head > scrollTop + clientHeight)
      this.scroller.scrollTop = (index + 1) * height + head - clientHeight;
    this.draw();
    this.scroller.setAttribute("aria-activedescendant", `row-${index}`);
    this.open(row, open);
  }

  deselect() {
    this.selected = null;
    this.scroller.removeAttribute("aria-activedescendant");
    this.soon();
  }
}

const LONG = 9; // digits beyond this are set smaller, and wrapped rather than cut
const LONGER = 12;

function put(slot, text, number = false) {
  if (slot.shown === text) return;
  slot.text.textContent = slot.shown = text;
  const size = !number || text.length <= LONG ? "" : text.length <= LONGER ? "long" : "long longer";
  if (size !== (slot.size ?? "")) slot.text.className = slot.size = size;
}
