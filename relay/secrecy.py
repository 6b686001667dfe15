"""Secrets among options: how they are marked, listed and kept out of a repr."""

from typing import Annotated, Any

from msgspec import Meta, inspect

Secret = Annotated[str, Meta(extra={"secret": True}, description="A secret: by ${VAR} or the _file twin.")]
"""Marks an option as a secret: redacted everywhere; `relay.config` gives it a `<name>_file` twin."""


class Redacted:
    """Mixed into a struct that holds secrets: its repr shows `***` in their place, also to rich and to loggers."""

    __slots__ = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        secrets = (*secret_options(type(self)), *secret_maps(type(self)))
        shown = [(name, getattr(self, name)) for name in getattr(self, "__struct_fields__", ())]
        return [(name, "***" if name in secrets and value else value) for name, value in shown]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


def secret_options(options: type[Any]) -> list[str]:
    """Names of the options that are secrets."""
    return _secret(options, inspect.StrType)


def secret_maps(options: type[Any]) -> list[str]:
    """Names of the options that are mappings whose values are secrets."""
    return _secret(options, inspect.DictType)


def _secret(options: type[Any], kind: type[inspect.Type]) -> list[str]:
    found = []
    info = inspect.type_info(options)
    assert isinstance(info, inspect.StructType)
    for item in info.fields:
        kinds = item.type.types if isinstance(item.type, inspect.UnionType) else (item.type,)
        for one in kinds:
            secret = False
            while isinstance(one, inspect.Metadata):
                secret, one = secret or bool((one.extra or {}).get("secret")), one.type
            if secret and isinstance(one, kind):
                found.append(item.name)
    return found
