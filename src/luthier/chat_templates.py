"""Chat templates and conversations, under the import path that scripts use."""

from luthier.core.log import setup
from luthier.facade.chat import CHAT_TEMPLATES, get_chat_template, remove_special_tokens
from luthier.facade.chat_own import apply_chat_template
from luthier.facade.chat_responses import train_on_responses_only
from luthier.facade.rows import standardize_data_formats, standardize_sharegpt, to_sharegpt
from luthier.facade.tokens import add_new_tokens

__all__ = [
    "CHAT_TEMPLATES",
    "add_new_tokens",
    "apply_chat_template",
    "get_chat_template",
    "remove_special_tokens",
    "standardize_data_formats",
    "standardize_sharegpt",
    "to_sharegpt",
    "train_on_responses_only",
]

setup()  # scripts call nothing that would
