"""The contract's file: JSON beside the plugin's modules, made by `adapter_uses` and reviewed like code."""

from __future__ import annotations

from pathlib import Path

import msgspec

from dynamo.errors import ConfigError

__all__ = ["CONTRACT_FILE", "Contract", "Use", "load_contract", "write_contract"]

#: Name of the contract in a plugin's package.
CONTRACT_FILE = "api_contract.json"


class Use(msgspec.Struct, omit_defaults=True, frozen=True, order=True):
    """One thing of the engine that the adapter touches."""

    path: str
    """``module:Name`` and steps from there: ``.attribute``, ``()`` for what a call gives, ``[]`` for an element."""
    keywords: tuple[str, ...] = ()
    """Of a call: arguments that are passed by name."""
    positional: int = 0
    """Of a call: how many arguments are passed by position."""


class Contract(msgspec.Struct):
    """Everything that one plugin uses of one engine."""

    engine: str
    """Top-level module of the engine."""
    version: str
    """The version that the plugin is written for."""
    environment: list[str] = []
    """Environment variables of the engine that the plugin sets or reads."""
    uses: list[Use] = []
    """Generated."""
    by_hand: list[Use] = []
    """What cannot be seen in the source, such as keys of dictionaries that become arguments; kept when the rest is
    generated anew."""


def load_contract(path: Path) -> Contract:
    """Read a contract.

    Raises:
        ConfigError: there is none, or it is not one.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contract)
    except (OSError, ValueError) as error:
        hint = "`dynamo conformance api MODULE --write` makes it"
        raise ConfigError(f"no contract can be read from {path}: {error}", hint=hint) from error


def write_contract(path: Path, contract: Contract) -> None:
    """Write a contract so that changes show in a diff line by line."""
    contract.uses.sort()
    contract.environment.sort()
    path.write_bytes(msgspec.json.format(msgspec.json.encode(contract), indent=1) + b"\n")
