"""Reads reasoning and tool calls out of generated text, while it comes. Used by the frontend, one set per choice.

The formats are plugins (hook `dynamo_register_parsers`); each module shows its own by example. The frontend makes an
:class:`OutputParser` per choice and sends what it gives.
"""

from __future__ import annotations

from dynamo.parsers.output import OutputParser, make_output_parser

__all__ = ["OutputParser", "make_output_parser"]
