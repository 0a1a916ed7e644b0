"""Every type that crosses a process boundary or appears in a hook signature.

Higher layers implement the Protocols here; nothing here does work. Import the modules (`dynamo.protocols.llm`, ...),
this package re-exports nothing so that importing one costs only that one.
"""
