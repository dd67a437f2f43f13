"""Conversations: messages to prompts by a template, generated text to replies, reasoning and tool calls."""
