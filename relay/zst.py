"""zstd: the standard library's where it has one (3.14), its backport elsewhere."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["zstd"]
