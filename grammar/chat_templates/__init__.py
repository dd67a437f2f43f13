"""Chat templates that take the place of a tokenizer's own: built in, or from JSON and Jinja files."""

from .conversation import ConversationTemplate
from .read import ChatTemplate, read_chat_template

__all__ = ["ChatTemplate", "ConversationTemplate", "read_chat_template"]
