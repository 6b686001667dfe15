"""Order books: one engine for all providers, driven by what each declares (sequence, checksum, snapshot, depth cut)."""

from relay.books.book import Applied, Book, Checksum, Doubt, level
from relay.books.books import Books, Rules

__all__ = ["Applied", "Book", "Books", "Checksum", "Doubt", "Rules", "level"]
