"""The text side of serving: chat templates, tokenizing, streaming detokenization, and the files that they need.

A frontend makes one :class:`TextModel` per model, and per stream one :class:`Detokenizer`::

    text_model = TextModel.from_directory(path)
    prompt = text_model.template.render(messages)
    token_ids = await text_model.tokenizer.encode_async(prompt)
    detokenizer = Detokenizer(text_model.tokenizer, stop_strings=["END"], prompt_tail=token_ids[-8:])
    text = detokenizer.feed(output.token_ids)
"""

from dynamo.preprocessor.artifacts import ArtifactCache, artifact_of, collect
from dynamo.preprocessor.chat_template import ChatTemplate
from dynamo.preprocessor.detokenizer import Detokenizer
from dynamo.preprocessor.messages import normalise_messages
from dynamo.preprocessor.model_files import MODEL_FILES
from dynamo.preprocessor.stop_strings import StopStrings
from dynamo.preprocessor.template_budget import TemplateLimits
from dynamo.preprocessor.text_model import TextModel
from dynamo.preprocessor.tokenizer import Tokenizer, TokenPiece

__all__ = [
    "MODEL_FILES",
    "ArtifactCache",
    "ChatTemplate",
    "Detokenizer",
    "StopStrings",
    "TemplateLimits",
    "TextModel",
    "TokenPiece",
    "Tokenizer",
    "artifact_of",
    "collect",
    "normalise_messages",
]
