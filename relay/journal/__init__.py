"""IO: files of recorded raw frames, out and in.

A file is zstd frames of JSON lines (`zstdcat FILE | jq`), each zstd frame independent and behind a small skippable
frame that says what it holds, so that a torn tail or a flipped bit costs the one zstd frame that was hit and never
goes unnoticed. `blocks` knows the bytes of a file, `writer` records in a thread of its own, `reader` finds and reads.
"""

from relay.journal.blocks import Block, Damage, read_blocks
from relay.journal.reader import JournalFile, Overview, Run, files_of, is_journal, overview, read_records, runs_of
from relay.journal.writer import Batch, Journal, JournalSettings

__all__ = [
    "Batch",
    "Block",
    "Damage",
    "Journal",
    "JournalFile",
    "JournalSettings",
    "Overview",
    "Run",
    "files_of",
    "is_journal",
    "overview",
    "read_blocks",
    "read_records",
    "runs_of",
]
