"""Texts to words: Chinese is segmented by jieba, other scripts are split where letters and digits end."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from luthier.core.paths import cache_folder
from luthier.evaluation.metric import missing_library

_CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")
_PARTS = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]+|[^\W_]+")


def is_chinese(text: str) -> bool:
    """Tell whether at least a third of the letters of a text are Chinese.

    >>> is_chinese("你好, world"), is_chinese("你好世界 ok")
    (False, True)
    """
    letters = sum(char.isalpha() for char in text)
    return letters > 0 and 3 * len(_CHINESE.findall(text)) >= letters


def words(text: str) -> list[str]:
    """Return the words of a text in small letters.

    >>> words("Hello, World 42!")
    ['hello', 'world', '42']
    """
    found: list[str] = []
    for part in _PARTS.findall(text.lower()):
        found += jieba().lcut(part) if _CHINESE.match(part) else [part]
    return found


def jieba() -> Any:
    """Return what segments Chinese. Raises DependencyError when the library is missing."""
    try:
        import jieba as library
    except ImportError as error:
        raise missing_library("segmenting Chinese", error) from error
    return _segmenter(library.Tokenizer, library.setLogLevel)


@cache
def _segmenter(make: Any, set_level: Any) -> Any:
    """Return a segmenter that keeps its table in our cache, and not where everybody may write."""
    set_level("ERROR")
    made = make()
    folder = cache_folder("jieba")
    folder.mkdir(parents=True, exist_ok=True)
    made.tmp_dir = str(folder)
    return made
