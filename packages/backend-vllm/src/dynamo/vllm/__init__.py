"""vLLM as an engine: ``dynamo serve --backend vllm``, ``python3 -m dynamo.vllm``.

`plugin` registers `engine.VllmEngine`. Nothing here imports vLLM before an engine starts: without it everything but
`start` works, and `installation` says what to install.
"""
