"""Binance's symbols: `BTCUSDT` has no separator, so where it parts is looked up and never guessed.

The venue's own list (`exchangeInfo`) is the word. Without it a symbol parts only where both halves are assets that we
know to be Binance's, in one way: a pair of two listed assets has that very symbol, and no other pair can have it too.
Everything else stays whole.
"""

from collections.abc import Mapping

from relay import symbols

RAW_STAR = "*"
"""Stands for every symbol where there is no configuration (`relay normalize`)."""
QUOTES = frozenset(
    "USDT USDC FDUSD TUSD BUSD USDP USD1 USDS DAI USD BTC ETH BNB XRP TRX DOGE EUR EURI TRY BRL GBP AUD RUB UAH "
    "ZAR PLN RON ARS JPY MXN CZK COP NGN IDR IDRT BIDR BKRW BVND VAI AEUR DOT".split()
)
"""Assets that pairs are quoted in, or were."""
ASSETS = QUOTES | frozenset(
    "1INCH AAVE ACH ADA ALGO ALICE ANKR APE API3 APT AR ARB ATOM AUDIO AVAX AXL AXS BAL BAT BCH BICO BLUR BONK "
    "CAKE CELO CELR CFX CHR CHZ CKB COMP COTI CRV CTSI CVX DASH DCR DEXE DODO DYDX DYM EGLD EIGEN ENA ENJ ENS ETC "
    "ETHFI FET FIL FLOKI FLOW FLUX FXS GALA GAS GLM GLMR GMT GMX GNO GRT HBAR HIGH HOT ICP ICX ID ILV IMX INJ "
    "IOST IOTA IOTX JASMY JOE JST JTO JUP KAVA KDA KNC KSM LDO LINK LPT LRC LSK LTC LUNA LUNC MAGIC MANA MANTA "
    "MASK MINA MKR MOVR NEAR NEO NMR NOT OCEAN OGN OM OMG ONDO ONE ONT OP ORDI OXT PAXG PENDLE PEOPLE PEPE PHA "
    "POL PYTH QNT QTUM RAY RENDER RNDR ROSE RPL RSR RUNE RVN SAND SATS SEI SHIB SKL SLP SNX SOL SSV STORJ STRK "
    "STX SUI SUPER SUSHI SXP TAO THETA TIA TON TRB TRUMP TWT UMA UNI VET VIRTUAL WAVES WAXP WBETH WBTC WIF WLD "
    "WOO XEC XEM XLM XMR XTZ XVG YFI ZEC ZEN ZIL ZK ZRO ZRX".split()
)
"""Assets that we know to be Binance's; the list over REST knows all."""


def to_symbol(raw: str) -> tuple[str, str | None]:
    """`BTCUSDT` to `BTC-USDT`; what does not part in one known way stays whole. No frame names a venue."""
    raw = raw.upper()
    halves = split(raw)
    return (symbols.escape(raw) if halves is None else symbols.pair(*halves)), None


def split(raw: str) -> tuple[str, str] | None:
    """Part an upper-case symbol into two known assets; None where there is no way, or more than one."""
    found = None
    for at in range(1, len(raw)):
        if raw[at:] in QUOTES and raw[:at] in ASSETS:
            if found is not None:
                return None
            found = (raw[:at], raw[at:])
    return found


def to_raw(symbol: str) -> str:
    """`BTC-USDT` to `BTCUSDT`: joining is always right. Raises: ValueError where it is no pair and no whole name."""
    base, dash, quote = symbol.partition("-")
    if not base or (dash and not quote) or "-" in quote:
        raise ValueError(f"{symbol!r} is no pair of two assets, such as BTC-USDT")
    return symbols.unescape(base) + (symbols.unescape(quote) if quote else "")


def named(raw: str, pairs: Mapping[str, tuple[str, str]]) -> tuple[str, str | None]:
    """As `to_symbol`, by the venue's own list where it has the symbol."""
    halves = pairs.get(raw)
    return to_symbol(raw) if halves is None else (symbols.pair(*halves), None)
