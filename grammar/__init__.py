"""Constraints of outputs, and the formats of chats, tool calls and reasoning."""
