"""What the parts of the runtime that keep something in etcd share: addresses, a connection, and a prefix followed.

Used by etcd discovery and by the remote configuration. The client library is optional: ``dynamo-core[etcd]``. Import
the modules; this package re-exports nothing, so that naming one of them loads no gRPC.
"""
