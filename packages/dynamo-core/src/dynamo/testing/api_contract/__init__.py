"""What an engine plugin uses of its engine: a contract that is checked against the engine's source, never imported.

`adapter_uses` reads the plugin and makes the contract, `engine_source` reads the engine, `check` compares them;
``dynamo conformance api`` runs it.
"""

from dynamo.testing.api_contract.adapter_uses import adapter_uses
from dynamo.testing.api_contract.check import check_contract
from dynamo.testing.api_contract.contract import Contract, Use, load_contract, write_contract

__all__ = ["Contract", "Use", "adapter_uses", "check_contract", "load_contract", "write_contract"]
