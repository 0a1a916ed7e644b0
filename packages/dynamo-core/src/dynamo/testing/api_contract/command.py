"""``dynamo conformance api``: does the engine still have what a plugin uses of it?"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import click
import msgspec

from dynamo.errors import ConfigError
from dynamo.testing.api_contract.adapter_uses import adapter_uses
from dynamo.testing.api_contract.check import check_contract
from dynamo.testing.api_contract.contract import CONTRACT_FILE, Contract, load_contract, write_contract
from dynamo.testing.report import render_result

__all__ = ["api", "package_folder", "regenerated"]


@click.command()
@click.argument("package")
@click.option("--wheel", type=click.Path(exists=True, path_type=Path), help="A wheel of the engine, or a directory.")
@click.option("--installed", is_flag=True, help="Check the engine that is installed here; it is not imported.")
@click.option("--write", is_flag=True, help="Make the contract anew from the plugin's source; keeps `by_hand`.")
@click.option("--engine", help="With --write, for a first contract: the engine's module.")
@click.option("--engine-version", help="With --write: the version that the plugin is written for.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def api(
    package: str,
    wheel: Path | None,
    installed: bool,
    write: bool,
    engine: str | None,
    engine_version: str | None,
    as_json: bool,
) -> None:
    """Check what PACKAGE (dynamo.vllm) uses of its engine against the engine's source, without importing it.

    Every attribute, keyword and field that the plugin's source touches is looked up in a wheel or in what is installed.
    Exit status 1 means that something is missing. Names and signatures are checked, not behaviour.
    """
    if not (wheel or installed or write) or (wheel and installed):
        raise click.UsageError("Give one of --wheel and --installed, or --write.")
    folder = package_folder(package)
    file = folder / CONTRACT_FILE
    if write:
        contract = regenerated(folder, _started(file, engine), version=engine_version)
        write_contract(file, contract)
        click.echo(f"{file}: {len(contract.uses)} uses, {len(contract.by_hand)} by hand")
    if not (wheel or installed):
        return
    contract = load_contract(file)
    place = wheel or _installed(contract.engine)
    report = check_contract(contract, place, package)
    if as_json:
        click.echo(report.to_json())
    else:
        for result in report.results:
            if result.status == "failed":
                click.echo(render_result(result))
        click.echo(f"{package} with {place.name}, written for {contract.engine} {contract.version}: {report.summary()}")
    if not report.passed:
        sys.exit(1)


def package_folder(package: str) -> Path:
    """Where the modules of `package` lie.

    Raises:
        ConfigError: it is not installed here, or not a package.
    """
    try:
        found = importlib.util.find_spec(package)
    except ImportError:
        found = None
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"there is no package {package!r} here", hint="name a plugin's package, such as dynamo.vllm")
    return Path(next(iter(found.submodule_search_locations)))


def regenerated(folder: Path, contract: Contract, *, version: str | None = None) -> Contract:
    """`contract` with what the source in `folder` uses now."""
    found = adapter_uses(folder, contract.engine)
    return msgspec.structs.replace(
        contract, version=version or contract.version, uses=found.uses, environment=found.environment
    )


def _started(file: Path, engine: str | None) -> Contract:
    if file.exists():
        return load_contract(file)
    if engine is None:
        raise ConfigError(f"there is no contract at {file} yet", hint="name the engine's module with --engine")
    return Contract(engine, "")


def _installed(engine: str) -> Path:
    found = importlib.util.find_spec(engine)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(f"{engine} is not installed here", hint="install it, or name a wheel with --wheel")
    return Path(next(iter(found.submodule_search_locations))).parent
