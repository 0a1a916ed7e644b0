"""The OpenAI-compatible HTTP server: validates, templates, tokenizes, routes, detokenizes and streams."""
