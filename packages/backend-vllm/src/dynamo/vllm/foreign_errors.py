"""vLLM's errors in our words, where they enter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dynamo.errors import DynamoError, EngineError, EngineShutdown, InvalidRequest, Overloaded

__all__ = ["translated"]


@contextmanager
def translated(why_dead: Callable[[], str]) -> Iterator[None]:
    """Raise what vLLM raises within as ours; `why_dead` explains an engine that is gone. Imports vLLM.

    Raises:
        InvalidRequest: vLLM refuses the request.
        Overloaded: too much is waiting.
        EngineShutdown: the engine is gone.
        EngineError: the engine failed on this request.
    """
    from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMError
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except DynamoError:
        raise
    except EngineDeadError as error:
        raise EngineShutdown(why_dead()) from error
    except VLLMClientError as error:
        raise InvalidRequest(str(error), param=getattr(error, "parameter", None)) from error
    except GracefulHTTPError as error:  # a limit on what waits, set by a flag of vLLM
        raise Overloaded(str(error), retry_after_seconds=1.0) from error
    except (VLLMError, RuntimeError, AssertionError) as error:
        raise EngineError(f"vLLM failed: {error}") from error
    except (ValueError, TypeError, OverflowError) as error:  # what vLLM's checks leave to its libraries
        raise InvalidRequest(f"vLLM refuses the request: {error}") from error
