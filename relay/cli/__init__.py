"""One small file a command: it reads the config, builds the parts, prints and exits. Nobody else does."""

SUMMARIES = {
    "check": "Show what a relay.yaml would run, or every error in it.",
    "dashboard": "Serve a live page of quotes, trades, bars and health.",
    "health": "Ask a running relay whether it is well, by exit code.",
    "init": "Write a first relay.yaml, by flags or by asking.",
    "journal": "List, print and verify recordings.",
    "normalize": "Turn raw frames of a provider into messages, without Redis.",
    "replay": "Play recordings again, through today's code.",
    "run": "Run the relay.",
    "schema": "Write JSON Schema, AsyncAPI and TypeScript of every message and topic.",
    "sim": "Play a provider's own side of the wire on loopback.",
    "status": "Print how a running relay stands: providers, Redis, topics.",
    "symbols": "List what a provider offers, canonical and raw.",
    "tail": "Follow topics and print their messages.",
    "top": "Watch a running relay live in the terminal.",
}
"""One line a command for `relay --help`; kept here so that the help imports none of them (a test compares)."""
