// Made by `relay schema`; do not edit. What the relay publishes, as JSON.parse gives it.
// A field that is absent is unknown; there are no nulls. Fields that are not here may come: ignore them.

/** Plain decimal text with the provider's digits: no exponent, trailing zeros kept; Number() would lose some. */
export type Decimal = string;

/**
 * Nanoseconds since 1970-01-01 UTC. They exceed Number.MAX_SAFE_INTEGER: what JSON.parse gives is up to 128 ns off.
 * Exact: BigInt of the digits in the text, see docs/consuming.md.
 */
export type Nanos = number;

/** [price, size]; size "0" removes the level in a delta. */
export type Level = [price: Decimal, size: Decimal];

/** Best bid and ask. At least one of bid, ask and mid is there; `mid` comes only from REST fallbacks. */
export interface Quote {
  /** Kind of the message. */
  type: "quote";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Best bid; absent: none or unknown. Price in units of the quote asset, plain decimal text. */
  bid?: Decimal;
  /** Best ask; absent: none or unknown. Price in units of the quote asset, plain decimal text. */
  ask?: Decimal;
  /** Size at the best bid. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  bid_size?: Decimal;
  /** Size at the best ask. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  ask_size?: Decimal;
  /** Price of the last trade, where the quote carries it. Price in units of the quote asset, plain decimal text. */
  last?: Decimal;
  /** Middle price, only from a REST fallback. Price in units of the quote asset, plain decimal text. */
  mid?: Decimal;
}

/** One execution. */
export interface Trade {
  /** Kind of the message. */
  type: "trade";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Price of the execution. Price in units of the quote asset, plain decimal text. */
  price: Decimal;
  /** Size of the execution. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  size?: Decimal;
  /** The aggressor's side. */
  side?: "buy" | "sell";
  /** The provider inferred the side. */
  side_estimated?: boolean;
  /** The provider's trade id. */
  id?: string;
}

/** Open, high, low, close of one interval; the same bar may come again until `closed` is true. */
export interface Bar {
  /** Kind of the message. */
  type: "bar";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Length of the bar: 1s, 1m, 1h, 1d ... */
  interval: string;
  /** First ns of the interval, since 1970 UTC. */
  start: Nanos;
  /** First ns behind the interval, since 1970 UTC. */
  end: Nanos;
  /** First price. Price in units of the quote asset, plain decimal text. */
  open: Decimal;
  /** Highest price. Price in units of the quote asset, plain decimal text. */
  high: Decimal;
  /** Lowest price. Price in units of the quote asset, plain decimal text. */
  low: Decimal;
  /** Last price so far. Price in units of the quote asset, plain decimal text. */
  close: Decimal;
  /** Traded volume. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  volume?: Decimal;
  /** Number of price changes, where the volume is a count. */
  ticks?: number;
  /** Number of trades. */
  trades?: number;
  /** Volume-weighted average price. Price in units of the quote asset, plain decimal text. */
  vwap?: Decimal;
  /** True: final. False: the interval still runs, or may be corrected. */
  closed: boolean;
}

/** Replaces the whole book of its topic. */
export interface BookSnapshot {
  /** Kind of the message. */
  type: "book_snapshot";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Bids, highest price first. [[price, size], ...], best first; size 0 removes a level. */
  bids: Level[];
  /** Asks, lowest price first. [[price, size], ...], best first; size 0 removes a level. */
  asks: Level[];
  /** Levels a side the book is cut to; absent: the whole book. */
  depth?: number;
  /** The provider's number of the book before this one. */
  prev_seq?: number;
  /** The provider's checksum of the book. */
  checksum?: number;
}

/** Changes the book of its topic: the absolute new size of each level; 0 removes it. */
export interface BookDelta {
  /** Kind of the message. */
  type: "book_delta";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Bids, highest price first. [[price, size], ...], best first; size 0 removes a level. */
  bids: Level[];
  /** Asks, lowest price first. [[price, size], ...], best first; size 0 removes a level. */
  asks: Level[];
  /** Levels a side the book is cut to; absent: the whole book. */
  depth?: number;
  /** The provider's number of the update before this one. */
  prev_seq?: number;
  /** The provider's checksum of the book after this update. */
  checksum?: number;
}

/** A reference value that nobody can trade at. */
export interface Rate {
  /** Kind of the message. */
  type: "rate";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Exchange rate, mark price, index level or funding rate. */
  kind: "exchange" | "funding" | "index" | "mark";
  /** The value: units of the quote asset, or a fraction for funding. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  value: Decimal;
}

/** Sensitivities of an option. */
export interface Greeks {
  /** Kind of the message. */
  type: "greeks";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Change of the price per unit of the underlying. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  delta?: Decimal;
  /** Change of delta per unit of the underlying. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  gamma?: Decimal;
  /** Change of the price by time, provider scale. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  theta?: Decimal;
  /** Change of the price by volatility, provider scale. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  vega?: Decimal;
  /** Change of the price by interest, provider scale. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  rho?: Decimal;
  /** Implied volatility, as the provider scales it. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  iv?: Decimal;
}

/** What is known of a symbol. Precisions are numbers of decimals. */
export interface Instrument {
  /** Kind of the message. */
  type: "instrument";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol: string;
  /** The provider's own spelling. */
  raw_symbol: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** Base asset. */
  base?: string;
  /** Quote asset. */
  quote?: string;
  /** Full name. */
  name?: string;
  /** Class as the provider names it. */
  asset_class?: string;
  /** Decimals of a price. */
  price_precision?: number;
  /** Decimals of a size. */
  size_precision?: number;
  /** Least step of a price. Price in units of the quote asset, plain decimal text. */
  tick_size?: Decimal;
  /** Whether it can be traded now. */
  active?: boolean;
}

/** State of one order of an account. */
export interface Order {
  /** Kind of the message. */
  type: "order";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol?: string;
  /** The provider's own spelling. */
  raw_symbol?: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** The account's label in relay.yaml. */
  account: string;
  /** The provider's id of the order. */
  order_id: string;
  /** State in our words. */
  state: "cancelled" | "filled" | "open" | "partially_filled" | "pending" | "rejected" | "unknown";
  /** The provider's own state. */
  state_raw?: string;
  /** Side of the order. */
  side?: "buy" | "sell";
  /** Kind of order as the provider names it: limit, market ... */
  kind?: string;
  /** Limit price. Price in units of the quote asset, plain decimal text. */
  price?: Decimal;
  /** Ordered size. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  size?: Decimal;
  /** Executed so far. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  filled?: Decimal;
  /** Average price of what was executed. Price in units of the quote asset, plain decimal text. */
  average_price?: Decimal;
  /** Why it was refused or cancelled, in the provider's words. */
  reason?: string;
}

/** Size held of one symbol; negative is short. */
export interface Position {
  /** Kind of the message. */
  type: "position";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol?: string;
  /** The provider's own spelling. */
  raw_symbol?: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** The account's label in relay.yaml. */
  account: string;
  /** Size held; negative is short. Amount in units of the base asset (shares, contracts, coins), plain decimal text. */
  size: Decimal;
  /** Average price of entry. Price in units of the quote asset, plain decimal text. */
  average_price?: Decimal;
  /** Unrealized profit, in the account's currency. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  unrealized?: Decimal;
}

/** Money of an account in one currency. */
export interface Balance {
  /** Kind of the message. */
  type: "balance";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol?: string;
  /** The provider's own spelling. */
  raw_symbol?: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** The account's label in relay.yaml. */
  account: string;
  /** Code of the currency. */
  currency: string;
  /** All of it, in that currency. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  total?: Decimal;
  /** What is free to use, in that currency. Plain decimal text: the provider's digits, no exponent, trailing zeros kept. */
  available?: Decimal;
}

/** What an account stream says and has no struct yet, whole. */
export interface Account {
  /** Kind of the message. */
  type: "account";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol?: string;
  /** The provider's own spelling. */
  raw_symbol?: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** The account's label in relay.yaml. */
  account: string;
  /** pnl, watchlist, news, ... */
  kind: string;
  /** The provider's JSON, whole. */
  data: unknown;
}

/** An in-band notice. Fields as they apply to `event`. */
export interface Status {
  /** Kind of the message. */
  type: "status";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol?: string;
  /** The provider's own spelling. */
  raw_symbol?: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** What happened; the other fields apply as it needs them. */
  event: "authenticated" | "closed" | "degraded" | "fresh" | "gap" | "handover" | "market" | "notice" | "opened" | "quota" | "recovered" | "refused" | "renewed" | "resync" | "stale" | "stopped" | "subscribed" | "unsubscribed";
  /** The channel it concerns. */
  channel?: string;
  /** The topic it concerns. */
  topic?: string;
  /** The provider's code, or ours. */
  code?: string;
  /** The provider's words, or ours, on one line. */
  text?: string;
  /** What the relay does about it. */
  action?: string;
  /** When it ends, ns since 1970 UTC. */
  until?: Nanos;
  /** market: trading is open. */
  open?: boolean;
  /** market: trading is halted. */
  halted?: boolean;
  /** gap: why messages are missing. */
  reason?: "beyond_retention" | "decode_error" | "disconnect" | "handover_uncertain" | "overflow" | "provider_notice" | "relay_down" | "resync" | "sequence_jump" | "sequence_reset" | "spool_corrupt";
  /** gap: first missing provider number. */
  first_missing?: number;
  /** gap: last missing provider number. */
  last_missing?: number;
  /** gap: how many are missing; absent where unknown. */
  missing?: number;
  /** gap: last good message, ns since 1970 UTC. */
  from_ns?: Nanos;
  /** gap: first message behind the hole, ns since 1970 UTC. */
  to_ns?: Nanos;
}

/** A frame, or a part of one, that could not be used; kept in the dead-letter topic. */
export interface Reject {
  /** Kind of the message. */
  type: "reject";
  /** The provider's name in relay.yaml; in statuses of the relay itself, the relay's name. */
  provider: string;
  /** Canonical symbol, such as EUR-USD. */
  symbol?: string;
  /** The provider's own spelling. */
  raw_symbol?: string;
  /** Where it happened, when the provider says so. */
  venue?: string;
  /** The provider's time, ns since 1970 UTC; absent where it gives none. */
  ts_event?: Nanos;
  /** When the relay read the frame, ns since 1970 UTC. */
  ts_recv: Nanos;
  /** Ms since 1970 of this relay's start; a change restarts `seq`. */
  run: number;
  /** Number within run and topic, from 1, without holes. */
  seq: number;
  /** The provider's own number, where it numbers messages. */
  src_seq?: number;
  /** Absent means live. */
  origin?: "backfill" | "replay" | "rest" | "simulated";
  /** What is wrong, from a closed list. */
  reason: "bad_field" | "bad_number" | "bad_symbol" | "bad_time" | "internal" | "missing_field" | "not_json" | "not_object" | "not_text" | "too_deep" | "too_large" | "unknown_type";
  /** What is wrong, in words. */
  detail?: string;
  /** First 1,000 bytes of the frame as text, secrets redacted. */
  frame?: string;
  /** Set when it came from an account endpoint. */
  account?: string;
}

/** Tell them apart by `type`. */
export type Message =
  | Quote
  | Trade
  | Bar
  | BookSnapshot
  | BookDelta
  | Rate
  | Greeks
  | Instrument
  | Order
  | Position
  | Balance
  | Account
  | Status
  | Reject;
