"""The select service: chooses workers for programs that send the requests themselves, over HTTP and nothing else.

People put ``python3 -m dynamo.frontend.select`` beside the vLLM or SGLang servers that they already run: it is told of
them by HTTP or by a file, follows their KV events (`listener`), books what it is told to reserve (`reservations`), and
decides as a frontend would (`dynamo.router`). No runtime, no discovery, no request passes through it.
"""
