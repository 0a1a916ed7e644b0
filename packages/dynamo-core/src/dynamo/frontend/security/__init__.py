"""Who may use this frontend, how much, and how the connection is protected.

`dynamo.frontend.app` makes one `Security` and one `Cors`, and wraps every route handler with them: a handler that runs
has passed both. What a request may use further in (its models, its tokens) is read from `current_identity`.
"""

from dynamo.frontend.security.admission import Security, create_security
from dynamo.frontend.security.cors import Cors
from dynamo.frontend.security.identity import ANONYMOUS, AdminRequired, Identity, current_identity, run_as
from dynamo.frontend.security.tls import TlsFiles

__all__ = [
    "ANONYMOUS",
    "AdminRequired",
    "Cors",
    "Identity",
    "Security",
    "TlsFiles",
    "create_security",
    "current_identity",
    "run_as",
]
