"""Decides for each request, before its handler runs, whose it is and whether that key may make it now."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dynamo.errors import DynamoError
from dynamo.frontend.security.identity import Identity, run_as
from dynamo.frontend.security.keys import ApiKey, KeyTable, credential, named_by_hash, read_key_file
from dynamo.frontend.security.rate_limits import Budget
from dynamo.frontend.security.watching import FileWatch
from dynamo.frontend.security.windows import MemoryWindows, SqliteWindows, WindowStore
from dynamo.frontend.settings import FrontendSettings
from dynamo.runtime.http import Exchange, RouteHandler

__all__ = ["Security", "create_security"]

logger = logging.getLogger(__name__)


class Security:
    """Checks API keys and their limits; about 5 us per request.

    Args:
        fixed: keys that never change.
        file: a file of further ones, followed for changes.
        windows: where limits are counted.
        clock: Unix time in seconds.

    Raises:
        ConfigError: the file is wrong, or two keys are alike.
    """

    def __init__(
        self,
        fixed: Sequence[ApiKey],
        file: Path | None,
        windows: WindowStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._fixed = fixed
        self._file = file
        self._windows = windows
        self._clock = clock
        self._loaded: tuple[KeyTable, dict[str, Identity]] = (KeyTable(()), {})
        self.watch = FileWatch([file], self._load, "API keys", threaded=True) if file is not None else None
        """Follows the file; None without one."""
        self._load()

    def admit(self, exchange: Exchange, *, metered: bool) -> Identity:
        """Whose request this is; a `metered` one is paid for, and its answer tells the key's limits.

        Raises:
            Unauthorized: no key, or a wrong one.
            RateLimited: a limit of the key is used up.
        """
        table, identities = self._loaded
        identity = identities[table.find(credential(exchange.headers)).name]
        budget = identity.budget
        if metered and budget is not None:
            try:
                budget.admit()
            finally:
                exchange.extra_head += budget.headers()
        return identity

    def unmetered(self, name: str) -> Identity | None:
        """The key of this name, for work that its limits per minute do not count; None when there is none."""
        identity = self._loaded[1].get(name)
        return None if identity is None else identity.unmetered()

    def guard(self, handler: RouteHandler, *, metered: bool) -> RouteHandler:
        """`handler`, called for admitted requests only, in the name of their key."""

        def admitted(exchange: Exchange) -> None:
            try:
                identity = self.admit(exchange, metered=metered)
            except DynamoError as error:
                exchange.respond_error(error, {"www-authenticate": "Bearer"} if error.http_status == 401 else None)
                return
            run_as(identity, handler, exchange)

        return admitted

    def close(self) -> None:
        """Free the counters' file."""
        self._windows.close()

    def _load(self) -> None:
        """Read the file. After the start it runs in a thread: both tables change in one assignment."""
        keys = [*self._fixed, *(read_key_file(self._file) if self._file is not None else ())]
        if not keys:
            logger.warning("%s holds no API keys: every request is refused", self._file)
        self._loaded = (KeyTable(keys), {key.name: self._identity(key) for key in keys})

    def _identity(self, key: ApiKey) -> Identity:
        limited = key.requests_per_minute is not None or key.tokens_per_minute is not None
        if not limited:
            return Identity(key.name, key.models, admin=key.admin)
        budget = Budget(key.name, key.requests_per_minute, key.tokens_per_minute, self._windows, self._clock)
        return Identity(key.name, key.models, budget, admin=key.admin)


def create_security(settings: FrontendSettings, state_directory: Path) -> Security | None:
    """What `settings` ask for; None: everybody may use this frontend.

    Raises:
        ConfigError: the key file is wrong, or the counters' file cannot be opened.
    """
    given = [secret.get_secret_value() for secret in settings.api_key]
    if given:
        logger.warning("other users of this machine can read --api-key; use DYN_API_KEYS or --api-key-file")
    fixed = named_by_hash([*given, *settings.api_keys])
    if not fixed and not settings.api_key_file:
        return None
    windows: WindowStore
    if settings.rate_limit_store == "sqlite":
        windows = SqliteWindows(state_directory / "frontend" / "rate-windows.sqlite")
    else:
        windows = MemoryWindows()
    try:
        return Security(fixed, Path(settings.api_key_file) if settings.api_key_file else None, windows)
    except DynamoError:
        windows.close()
        raise
