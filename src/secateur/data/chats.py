"""Conversations as people have them, and what a model's chat template makes of them.

A chat is a list of messages, ``{"role": …, "content": …}``, or ``{"from": …, "value": …}`` as ShareGPT has it. The
template is a program in Jinja that comes with the tokenizer; transformers runs it in Jinja's sandbox.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from secateur.errors import InputError, naming

Chat = Sequence[Mapping[str, Any]]
Row = str | Chat

# The columns that hold chats, wherever they are.
COLUMNS = ("messages", "conversations")
# So many columns an error names.
_FEW = 20
# ShareGPT's names of those who speak, where the templates' are others.
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
# Some templates ask what day it is. The same chats are to be the same text on any, so that it is always this one.
_TODAY = {"%d": "26", "%m": "07", "%b": "Jul", "%B": "July", "%Y": "2024", "%a": "Fri", "%A": "Friday"}
_REPLACED = "".join(f"|replace('{sign}', '{meant}')" for sign, meant in _TODAY.items())
_TELLING_THE_DAY = f"{{%- macro strftime_now(format) -%}}{{{{ format{_REPLACED} }}}}{{%- endmacro +%}}"


class Templated(Protocol):
    """What is needed of a tokenizer that renders chats."""

    chat_template: Any

    def get_chat_template(self) -> str:
        """The template that is meant, if there are several."""

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """The text of one chat."""


def row_of(where: str, record: Mapping[str, Any], column: str) -> Row:
    """The text or the chat in ``column`` of one row; an empty text where there is nothing.

    Raises:
        InputError: when it is neither; ``where`` names the row.
    """
    if column not in record:
        held = ", ".join(map(repr, [*record][:_FEW])) or "none"
        raise InputError(f"{where}: no text in {column!r}: the columns are {held}")
    value = record[column]
    if isinstance(value, str):
        return value
    if not value and isinstance(value, list | None):
        return ""
    if not isinstance(value, list):
        raise InputError(f"{where}: no text in {column!r}, nor a chat")
    return [_message(f"{where}, message {number} of {column!r}", each) for number, each in enumerate(value, 1)]


def _message(where: str, message: Any) -> dict[str, Any]:
    """One message with ``role`` and ``content``, and whatever else the template may know of it."""
    if isinstance(message, dict):
        if "from" in message:
            role, content = message["from"], message.get("value")
            message = {"role": _ROLES.get(str(role), role), "content": content}
        if isinstance(message.get("role"), str) and isinstance(message.get("content"), str):
            return message
    raise InputError(f"{where}: it needs a text as 'role' and one as 'content', or as 'from' and 'value'")


def characters(row: Row) -> str:
    """All that is said in a row, one thing after the other."""
    return row if isinstance(row, str) else "".join(message["content"] for message in row)


def render(chats: Sequence[Chat], tokenizer: Templated, source: str) -> list[str]:
    """The text that the template of ``tokenizer`` makes of each chat, with the special tokens that it writes.

    Raises:
        InputError: when there is no template, or it refuses a chat of ``source``.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{source} holds chats, and the model's tokenizer has no chat template to make text of them: give text, "
            "another column (--column), or the chat model's tokenizer"
        )
    texts = []
    for number, chat in enumerate(chats, 1):
        with naming(f"{source}, chat {number},", "is none that the model's chat template takes"):
            template = _TELLING_THE_DAY + tokenizer.get_chat_template()
            texts.append(tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False))
    return texts
