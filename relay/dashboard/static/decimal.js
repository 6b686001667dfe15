// Exact arithmetic on plain decimal text: no price is ever a float on its way to the screen.

const PLAIN = /^(-?)([0-9]+)(?:\.([0-9]+))?$/;

/** Decimals of a text: how exact the provider was. */
export function decimals(text) {
  const at = text.indexOf(".");
  return at < 0 ? 0 : text.length - at - 1;
}

/** The digits as a BigInt, scaled by 10^places; null for what is no number. */
function scaled(text, places) {
  const parts = PLAIN.exec(text);
  if (!parts) return null;
  const value = BigInt(parts[2] + (parts[3] ?? "").padEnd(places, "0"));
  return parts[1] ? -value : value;
}

function unscaled(value, places) {
  const sign = value < 0n ? "-" : "";
  const digits = (value < 0n ? -value : value).toString().padStart(places + 1, "0");
  return places ? `${sign}${digits.slice(0, -places)}.${digits.slice(-places)}` : sign + digits;
}

/** ask - bid with the decimals of the more exact one; empty where a side is missing. */
export function spread(bid, ask) {
  if (bid == null || ask == null) return "";
  const places = Math.max(decimals(bid), decimals(ask));
  const low = scaled(bid, places);
  const high = scaled(ask, places);
  return low === null || high === null ? "" : unscaled(high - low, places);
}

/** -1, 0 or 1, exactly. */
export function compare(a, b) {
  if (a === b) return 0;
  const point = a.indexOf(".");
  if (a.length === b.length && point === b.indexOf(".") && a[0] !== "-" && b[0] !== "-" && PLAIN.test(a) && PLAIN.test(b))
    return a < b ? -1 : 1; // of one shape: as text, which is what nearly all are
  const places = Math.max(decimals(a), decimals(b));
  const left = scaled(a, places);
  const right = scaled(b, places);
  return left === null || right === null || left === right ? 0 : left < right ? -1 : 1;
}

/** The text with blanks as wide as the digits that others of its kind have behind the point: no digit is made up. */
export function aligned(text, places) {
  const own = decimals(text);
  if (own >= places) return text;
  return text + (own ? "" : "\u2008") + "\u2007".repeat(places - own);
}
