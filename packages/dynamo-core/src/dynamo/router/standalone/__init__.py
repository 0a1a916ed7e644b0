"""The router in a process of its own, before the workers of one endpoint: ``python3 -m dynamo.router``."""
