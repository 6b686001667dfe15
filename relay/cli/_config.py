"""Reading relay.yaml from a file, for every command that takes `-c`: the IO that `relay.config` is handed."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from relay.errors import ConfigError, Problem

if TYPE_CHECKING:
    from relay.config import Config

SECRET_BYTES_MAX = 64 * 1024
"""Longest file that a `<name>_file` option reads; a token has a few thousand bytes."""


def load_config(path: str) -> "Config":
    """Read a configuration file (`-`: standard input). Names of files in it are relative to its folder.

    Raises: ConfigError, also where there is no such file.
    """
    from relay.config import DOCUMENT_BYTES_MAX, load
    from relay.providers import PROVIDERS

    name = "<stdin>" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(DOCUMENT_BYTES_MAX + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(DOCUMENT_BYTES_MAX + 1)
    except FileNotFoundError:
        text = "there is no such file; name one with -c FILE (the project's relay.yaml is a good beginning)"
        raise ConfigError([Problem(path, 0, 0, "", text)]) from None
    except (OSError, ValueError) as error:
        text = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise ConfigError([Problem(path, 0, 0, "", text)]) from None
    folder = Path() if path == "-" else Path(path).parent

    def read_file(wanted: str) -> str:
        with open(folder / wanted, "rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
        if len(content) > SECRET_BYTES_MAX:
            raise OSError(27, f"larger than {SECRET_BYTES_MAX} bytes")
        return content.decode()

    return load(data, name, environ=os.environ, read_file=read_file, providers=PROVIDERS)
