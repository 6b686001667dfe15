// The page: takes the stream of events, keeps the parts current, and says so when it cannot.

import { Detail, clock } from "./detail.js";
import { Table } from "./table.js";

const SILENCE_MS = 4000; // the dashboard speaks once a second
const HIDDEN_MS = 30000; // a page that nobody sees gives its connection back: browsers allow six to a server
const ROWS_MS = 5000; // the dashboard has none: what stood is over
const NOTICES_MAX = 200;
const byId = (id) => document.getElementById(id);
const root = document.documentElement;

let offset = 0; // the dashboard's clock minus ours
let heard = 0;
let source = null;
let client = "";
let version = "";
let fresh = true; // the next rows replace all
let lost = false;
let everHeard = false;
let notices = [];
let rate = 0;
let awaited = 0; // since when the first rows of a connection are awaited; 0: they came
let health = { redis: "", relays: [], providers: [], unreadable: 0, refused: 0 };
const now = () => Date.now() + offset;

const table = new Table(
  { scroller: byId("quotes"), table: byId("table"), head: byId("head"), body: byId("body"), empty: byId("empty") },
  { now, open: (row, really) => openRow(row, really), counted },
);
const detail = new Detail(byId("symbol"), { now, markOf: (row) => table.markOf(row) });
window.relayPage = { table, detail }; // for whoever looks at it in the console, and for the tests

// -- the stream of events ----------------------------------------------------------------------------------------------

function connect() {
  source?.close();
  source = new EventSource("/events");
  source.onmessage = (event) => {
    heard = performance.now();
    take(JSON.parse(event.data));
  };
  source.onerror = () => {
    setLost(true);
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1500); // refused: the browser would not try again
  };
}

function take(message) {
  offset = message.now - Date.now();
  if (message.hello) {
    if (version && version !== message.hello) return location.reload(); // another version of this page is served now
    version = message.hello;
    client = message.client;
    fresh = true;
    awaited = performance.now();
    notices = [];
    byId("accounts-button").hidden = !message.accounts;
    if (!table.rows.size) setLost(false);
    return;
  }
  if (fresh && (message.about || !table.rows.size || performance.now() - awaited > ROWS_MS)) {
    // until now the rows of the connection before stood, marked;
    // numbers of rows belong to one run of the dashboard: keep what is looked at by its name
    fresh = false;
    const seen = detail.row;
    table.clear();
    if (message.about) table.about(message.about);
    if (seen) relook(seen);
    setLost(false);
  } else if (message.about) table.about(message.about);
  if (message.rate !== undefined) {
    rate = message.rate;
    banner();
  }
  if (message.gone) table.gone(message.gone);
  if (message.rows) table.update(message.rows);
  if (message.health) showHealth(message.health);
  if (message.notices) showNotices(message.notices);
  if (message.accounts) showAccounts(message.accounts);
  if (message.detail && message.detail.row === detail.row?.id) detail.history(message.detail.items);
  if (message.news && message.news[0] === detail.row?.id) detail.take(message.news[1]);
  if (detail.row) detail.soon();
}

function relook(seen) {
  for (const row of table.rows.values()) {
    if (row.raw === seen.raw && row.provider === seen.provider && row.relay === seen.relay && row.space === seen.space) {
      table.selected = row.id;
      detail.row = null;
      detail.show(row);
      watch(row.id);
      return;
    }
  }
}

function watch(id) {
  const query = new URLSearchParams({ client, row: id == null ? "" : String(id) });
  fetch(`/watch?${query}`, { method: "POST" }).catch(() => {}); // the next hello asks again
}

function setLost(is) {
  if (lost === is && (everHeard || is)) return;
  if (!is) everHeard = true;
  lost = is;
  table.lost = is;
  table.stirred = true;
  table.soon();
  if (detail.row) detail.soon();
  banner();
}

setInterval(() => {
  if (source && source.readyState !== EventSource.CLOSED && heard && performance.now() - heard > SILENCE_MS && !document.hidden) {
    setLost(true);
    heard = performance.now();
    connect();
  }
}, 500);

let hiding = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiding);
  if (document.hidden) {
    hiding = setTimeout(() => {
      source?.close();
      source = null;
    }, HIDDEN_MS);
  } else if (!source) connect();
});

// -- health ------------------------------------------------------------------------------------------------------------

const chips = new Map();

function chip() {
  const root = document.createElement("button");
  root.type = "button";
  root.className = "chip";
  const parts = { root, name: document.createElement("b"), word: document.createElement("span"), rows: document.createElement("small"), reason: document.createElement("span") };
  parts.word.className = "word";
  parts.reason.className = "reason";
  root.append(parts.name, parts.word, parts.rows, parts.reason);
  root.addEventListener("click", () => {
    const field = byId("search");
    field.value = field.value === root.dataset.name ? "" : root.dataset.name;
    table.search(field.value);
  });
  return parts;
}

function showHealth(found) {
  health = found;
  const many = health.relays.length > 1;
  const known = new Set();
  for (const one of health.providers) {
    const key = JSON.stringify([one.space, one.relay, one.name]);
    known.add(key);
    if (!chips.has(key)) chips.set(key, chip());
    const { root, name, word, rows, reason } = chips.get(key);
    const state = health.redis ? "unknown" : one.state;
    root.dataset.state = state;
    root.dataset.name = one.name;
    name.textContent = one.space + one.name + (many ? ` (${one.relay})` : "");
    word.textContent = (one.connections > 1 ? `${state} ${one.open}/${one.connections}` : state) + (one.market ? `, market ${one.market}` : "");
    const parts = [`${one.rows} symbol${one.rows === 1 ? "" : "s"}`];
    if (one.stale) parts.push(`${one.stale} not live`);
    if (one.gaps) parts.push(`${one.gaps} gap${one.gaps === 1 ? "" : "s"}`);
    rows.textContent = parts.join(" · ");
    reason.textContent = ["open", "unknown"].includes(state) ? "" : one.text;
    reason.hidden = !reason.textContent;
    const about = [one.text, one.since ? `since ${clock(one.since)}` : "", one.until ? `until ${clock(one.until)}` : "", one.missing ? `${one.missing} messages missing` : ""];
    root.title = about.filter(Boolean).join(", ");
  }
  for (const [key, { root }] of chips) {
    if (!known.has(key)) {
      root.remove();
      chips.delete(key);
    }
  }
  const place = byId("providers");
  [...known].forEach((key, at) => {
    const { root } = chips.get(key);
    if (place.children[at] !== root) place.insertBefore(root, place.children[at] ?? null);
  });
  banner();
}

function banner() {
  const words = [];
  if (lost) words.push(everHeard ? "The page has lost the dashboard and tries again. These are the last known values." : "The dashboard does not answer yet.");
  else if (health.redis) words.push(`Redis cannot be read: ${health.redis}. These are the last known values.`);
  else {
    for (const relay of health.relays) {
      const name = relay.space + relay.name;
      if (relay.missed) words.push(`Relay ${name} does not run. Its last known values stand.`);
      else for (const text of relay.degraded) words.push(`Relay ${name}: ${text}.`);
    }
    if (health.refused) words.push("There are more symbols than this page shows.");
  }
  const text = words.slice(0, 3).join(" ");
  const place = byId("banner");
  if (place.textContent !== text) place.textContent = text;
  place.hidden = !text;
  const state = lost ? "lost" : health.redis || health.relays.some((relay) => relay.missed) ? "bad" : "ok";
  const link = byId("link");
  link.dataset.state = everHeard ? state : "wait";
  const busy = rate >= 1 ? `${rate.toLocaleString("en")} updates/s` : "quiet";
  const said = { lost: "page offline", bad: "last known values", ok: busy }[state];
  byId("link-text").textContent = everHeard ? said : "connecting";
}

let saidMarked = -1;
function counted(all, marked, shown) {
  const number = (value) => value.toLocaleString("en");
  byId("all").textContent = shown === all || table.onlyMarked ? `${number(all)} symbol${all === 1 ? "" : "s"}` : `${number(shown)} of ${number(all)}`;
  byId("marked").textContent = `${number(marked)} not live`;
  byId("marked").dataset.some = marked ? "yes" : "no";
  document.title = marked ? `(${marked}) relay` : "relay";
  if (marked !== saidMarked && all) {
    saidMarked = marked;
    clearTimeout(counted.later);
    counted.later = setTimeout(() => (byId("said").textContent = marked ? `${marked} of ${all} symbols are not live` : `all ${all} symbols are live`), 1500);
  }
}

// -- the side ----------------------------------------------------------------------------------------------------------

function showNotices(list) {
  notices = notices.concat(list).slice(-NOTICES_MAX);
  if (!byId("notices").hidden) drawNotices();
}

function drawNotices() {
  byId("no-notices").hidden = notices.length > 0;
  byId("notice-list").replaceChildren(
    ...notices
      .slice()
      .reverse()
      .map((notice) => {
        const line = document.createElement("li");
        line.dataset.event = notice.event;
        const time = document.createElement("time");
        time.textContent = clock(notice.ms);
        const word = document.createElement("b");
        word.textContent = notice.event;
        const who = document.createElement("span");
        who.className = "who";
        who.textContent = [notice.provider, notice.about].filter(Boolean).join(" · ");
        const text = document.createElement("span");
        text.className = "text";
        text.textContent = notice.text;
        line.append(time, word, who, text);
        return line;
      }),
  );
}

const ACCOUNT_FIELDS = [
  "symbol", "side", "kind", "state", "price", "size", "filled", "average_price", "unrealized", "currency", "total",
  "available", "reason", "data", "order_id",
];
function showAccounts(list) {
  byId("no-accounts").hidden = list.length > 0;
  byId("account-list").replaceChildren(
    ...list
      .slice(-300)
      .reverse()
      .map((one) => {
        const line = document.createElement("li");
        const time = document.createElement("time");
        time.textContent = clock(one.ms);
        const word = document.createElement("b");
        word.textContent = one.type;
        const who = document.createElement("span");
        who.className = "who";
        who.textContent = `${one.provider} · ${one.account}`;
        const text = document.createElement("span");
        text.className = "text";
        text.textContent = ACCOUNT_FIELDS.filter((key) => one[key] !== undefined).map((key) => `${key.replace("_", " ")} ${one[key]}`).join(" · ");
        line.append(time, word, who, text);
        return line;
      }),
  );
}

function side(which) {
  for (const id of ["symbol", "notices", "accounts"]) byId(id).hidden = id !== which;
  for (const id of ["notices", "accounts"]) byId(`${id}-button`).setAttribute("aria-expanded", String(which === id && document.body.classList.contains("side-open")));
  if (which === "notices") drawNotices();
  if (which === "symbol") detail.soon();
  byId("side").scrollTop = 0;
}

function openSide(which) {
  document.body.classList.add("side-open");
  side(which);
}

function closeSide() {
  const was = document.body.classList.contains("side-open") || detail.row;
  document.body.classList.remove("side-open");
  if (detail.row) {
    detail.show(null);
    watch(null);
    table.deselect();
  }
  side("notices");
  return was;
}

function openRow(row, really) {
  const other = detail.row !== row;
  detail.show(row);
  if (other) watch(row.id);
  if (really) {
    openSide("symbol");
    if (narrow.matches) byId("close").focus();
  } else side("symbol");
}

const narrow = window.matchMedia("(max-width: 1000px)");
byId("close").addEventListener("click", () => {
  closeSide();
  byId("quotes").focus({ preventScroll: true });
});
for (const which of ["notices", "accounts"]) {
  byId(`${which}-button`).addEventListener("click", () => {
    if (document.body.classList.contains("side-open") && !byId(which).hidden) closeSide();
    else openSide(which);
  });
}

// -- tools -------------------------------------------------------------------------------------------------------------

const THEMES = { auto: "Auto", light: "Light", dark: "Dark" };
const THEME_WORDS = { auto: "as the system", light: "light", dark: "dark" };
let theme = "auto";
try {
  theme = localStorage.getItem("theme") ?? "auto";
} catch {} // storage may be off
function setTheme(to) {
  theme = to in THEMES ? to : "auto";
  root.dataset.theme = theme;
  byId("theme").textContent = THEMES[theme];
  byId("theme").setAttribute("aria-label", `Colours: ${THEME_WORDS[theme]}`);
  try {
    localStorage.setItem("theme", theme);
  } catch {}
}
setTheme(theme);
function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(theme) + 1) % names.length]);
}
byId("theme").addEventListener("click", nextTheme);

function onlyMarked(is) {
  table.onlyMarked = is;
  byId("all").setAttribute("aria-pressed", String(!is));
  byId("marked").setAttribute("aria-pressed", String(is));
  table.stirred = true;
  byId("quotes").scrollTop = 0;
  table.soon();
}
byId("all").addEventListener("click", () => onlyMarked(false));
byId("marked").addEventListener("click", () => onlyMarked(true));

const field = byId("search");
field.addEventListener("input", () => table.search(field.value));
field.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    field.value = "";
    table.search("");
    field.blur();
    event.stopPropagation();
  } else if (event.key === "ArrowDown" || event.key === "Enter") {
    byId("quotes").focus();
    if (table.view.length && table.indexOfSelected() < 0) table._select(0, event.key === "Enter");
    event.preventDefault();
  }
});
const help = byId("help");
byId("help-button").addEventListener("click", () => help.showModal());

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.key === "Escape") {
    if (closeSide()) byId("quotes").focus({ preventScroll: true });
    return;
  }
  if (event.target.closest("input")) return;
  const actions = {
    "/": () => {
      field.focus();
      field.select();
    },
    "?": () => help.showModal(),
    t: nextTheme,
    m: () => onlyMarked(!table.onlyMarked),
    n: () => byId("notices-button").click(),
  };
  if (event.key in actions) {
    actions[event.key]();
    event.preventDefault();
  } else if (["ArrowDown", "ArrowUp", "j", "k"].includes(event.key) && event.target === document.body) {
    byId("quotes").focus();
    table._key(event);
  }
});

connect();
