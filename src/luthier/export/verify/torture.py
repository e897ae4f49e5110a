"""Texts on which tokenizers differ."""

# ruff: noqa: RUF001, E501

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NUM_RANDOM = 200
LONG = 100_000
MOST_CHARACTERS = 2000
MOST_ADDED = 200
_FIXED = (
    "", "a", "A", "Hello, world!", "hello world", " hello", "hello ", "  hello  world  ", "\thello", "\t\t\thello\t",
    "a\nb", "a\r\nb", "a\rb", "\n", "\n\n", "\n\n\n\n", "\r\n\r\n", " \n ", "\n \n", "a \n\n b", "\v\f", "a\u00a0b",
    "\u00a0", "a\u3000b", "\u3000\u3000", "a\u2003b", "\u2028", "\u2029x", "a\u0085b",
    "3.14159", "1,000,000.00", "-1.5e-10", "0x1F", "1/2", "12:34:56", "2024-02-29", "192.168.0.1", "$1,234.5", "50%",
    "٣٤٥", "१२३", "１２３", "½¾", "²³", "Ⅷ", "1st 2nd 3rd",
    "def f(x):\n    return x ** 2\n", "if (a && b || !c) { d[i++] += 1; }", "for i in range(10):\n\tprint(i)\n",
    "        eight blanks", "#include <stdio.h>\nint main(void) { return 0; }\n", "SELECT * FROM t WHERE a = 'b''c';",
    "a->b; a::b; a<<=1; a>>>b; a===b; a!==b; => |> ??=", "`code` **bold** _it_ ~~x~~ # h\n- item\n1. item\n> q",
    "/* comment */ // more\n", "x = {'a': [1, 2, {'b': None}]}", "\\n \\t \\\\ \\u0041 \\ud83d\\ude00", "\\ud800",
    '{"a": 1, "b": [true, false, null], "c": "\\u00e9\\n"}', "<p class=\"x\">a &amp; b</p>", "<!-- x --><br/>",
    "https://example.org/a/b?c=d&e=f%20g#h", "user.name+tag@example.co.uk", "C:\\Users\\x\\y.txt", "/usr/local/bin",
    "I'm you're he's we've they'd I'll don't can't", "I'M YOU'RE HE'S WE'VE", "I’m don’t it’s", "'tis ''quoted''",
    "rock'n'roll o'clock d'accord l'été", "'s 't 're", "x's'ts", "\"quoted\" «guillemets» „German“ 「日本」",
    "café naïve façade Zürich Ångström", "cafe\u0301 nai\u0308ve A\u030angstro\u0308m", "ﬁ ﬂ ﬀ", "ẞ ß İ ı ǆ", "Ω Ω K K",
    "ŏ̈", "e" + "\u0301" * 50, "\u0301", "a\u0300\u0301\u0302b", "한글", "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "你好，世界！", "我想了解一下机器学习。", "繁體中文測試", "今天天气很好，我们去公园吧", "𠮷野家", "〇一二三", "《书名》“引号”……——",
    "こんにちは、世界。", "カタカナ　ひらがな　漢字", "ｶﾀｶﾅ", "ー〜", "東京タワーは333mです", "안녕하세요 세계", "ㅋㅋㅋ ㅠㅠ",
    "สวัสดีชาวโลก", "ภาษาไทยไม่มีช่องว่าง", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "שלום עולם", "שָׁלוֹם", "नमस्ते दुनिया", "क्षत्रिय ज्ञान",
    "Привет, мир!", "Γειά σου Κόσμε", "ελληνικά", "বাংলা ভাষা", "தமிழ் மொழி", "తెలుగు", "ქართული", "հայերեն", "ភាសាខ្មែរ", "မြန်မာ",
    "ትግርኛ", "ᠮᠣᠩᠭᠣᠯ", "བོད་ཡིག", "Tiếng Việt có dấu", "abc你好def", "Это mixed 文本 with עברית and العربية",
    "hello世界123", "naïve日本語café", "αβγabcабв", "१a२b", "a１b",
    "🙂", "🙂🙂🙂", "👨‍👩‍👧‍👦", "👍🏽 👍🏿", "🇩🇪🇫🇷🇯🇵", "🏳️‍🌈", "❤️", "☺︎", "1️⃣", "🧑🏻‍❤️‍💋‍🧑🏿", "a🙂b", "🙂a🙂", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🪿🫨",
    "a\u200bb", "a\u200cb", "a\u200db", "\ufeffabc", "a\u2060b", "\u200e\u200f", "\u202eabc\u202c", "soft\u00adhyphen",
    "\ue000", "\uf8ff\U000f0000", "\U0010fffd", "\ufffd", "\ufffe", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f",
    "a\x00b", "Ã©", "â€™", "\xc3\x28", "ÿþ",
    "<|endoftext", "<|im_start", "<|im_end|", "< |im_end| >", "<|IM_END|>", "</s", "<s", "< s>", "<pad", "<unk", "[INST",
    "[/INST", "<<SYS>", "<start_of_turn", "<|eot_id", "<bos", "<0x0A>", "▁", "▁a", "a▁b", "Ġ", "Ċ", "ĠĠa", "##a", "</w>",
    "aaaaaaaaaaaaaaaa", "AAAAaaaaAAAA", "camelCaseAndPascalCase", "snake_case_name", "SCREAMING_CASE", "kebab-case-x",
    "....", "!!!???", "----------", "==========", "__init__", "***", "~~~", "a.b.c.d", "(((())))", "[[[]]]", "@#$%^&*",
    "supercalifragilisticexpialidocious", "Donaudampfschifffahrtsgesellschaftskapitän", "pneumonoultramicroscopic",
    "The quick brown fox jumps over the lazy dog.", "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "x\n\n\n    y\n\n\n\n        z\n", "a  b   c    d     e", "\u00e9\u0065\u0301", "ǅ ǈ ǋ", "℡ № ™ ®", "①②③ ㊀ ㋿",
)  # fmt: skip


def torture(tokenizer: Any) -> list[str]:
    """Return texts without added tokens in them; the same ones every time."""
    return plain_texts([token.content for token in tokenizer.added_tokens_decoder.values()])


def plain_texts(control: Sequence[str]) -> list[str]:
    """Return the texts that none of `control` stands in."""
    made = [
        *_FIXED,
        *(" " * n for n in range(1, 41)),
        *(" " * n + "x" for n in range(2, 12)),
        *("x" + " " * n for n in range(1, 9)),
        *("\n" * n + "x" for n in range(1, 7)),
        *("".join(str((7 * i + n) % 10) for i in range(n)) for n in range(1, 21)),
        *_random(NUM_RANDOM),
        "a" * 2000,
    ]
    return [text for text in made if not any(token and token in text for token in control)]


def added(tokenizer: Any) -> list[str]:
    """Return texts with each added token alone, glued to text, beside itself, and inside words and blanks."""
    tokens = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.content]
    forms = ("{}", "a{}b", "{}{}", " {} ", "word{}", "{}word", "\n{}\n", "a {} b", "  {}  x")
    # Hundreds of reserved tokens are alike: each alone, the first ones in every surrounding.
    few, rest = tokens[:40], tokens[40:][:: max(1, len(tokens) // MOST_ADDED)]
    return [form.format(*[token] * form.count("{}")) for token in few for form in forms] + rest


def characters(tokenizer: Any) -> list[str]:
    """Return single characters that the vocabulary spells out, at most some thousands."""
    control = {token.content for token in tokenizer.added_tokens_decoder.values()}
    ids = range(0, len(tokenizer), max(1, len(tokenizer) // 20_000))
    texts = tokenizer.batch_decode([[i] for i in ids])
    found = sorted({character for text in texts for character in text} - control)
    return found[:: max(1, len(found) // MOST_CHARACTERS)]


def _random(count: int) -> Iterator[str]:
    """Yield bytes drawn at random and read as UTF-8, and characters drawn from many scripts."""
    draw = random.Random(20)
    blocks = ((32, 127), (160, 591), (880, 1279), (1424, 1791), (2304, 2431), (12352, 12543), (19968, 40869),
              (44032, 55203), (128512, 128591))  # fmt: skip
    for i in range(count):
        if i % 2:
            yield bytes(draw.randrange(256) for _ in range(draw.randrange(1, 24))).decode("utf-8", "replace")
        else:
            yield "".join(chr(draw.randrange(*draw.choice(blocks))) for _ in range(draw.randrange(1, 24)))
