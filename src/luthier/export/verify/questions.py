"""What a file is asked when nothing else is given: short questions in several languages."""

# ruff: noqa: RUF001, E501

QUESTIONS = (
    "What is the capital of France? Answer with one word.",
    "Say yes.",
    "What is 7 + 5? Answer with the number only.",
    "Name three colours.",
    "Translate 'good morning' into German.",
    "Write one sentence about the sea.",
    "Is water wet? Answer yes or no.",
    "Spell the word cat.",
    "What day comes after Monday?",
    "Repeat after me: the quick brown fox jumps over the lazy dog.",
    "Write a Python function that adds two numbers.",
    "你好，请用一句话介绍一下北京。",
    "Quelle est la couleur du ciel ?",
    "¿Cuántas patas tiene un perro?",
    "Give me a JSON object with the key name and the value Ada.",
    "Who wrote Romeo and Juliet?",
    "Finish the sentence: Once upon a time",
    "List the numbers from one to five, separated by commas.",
    "Explain in one sentence why the sky is blue.",
    "Thank you, that is all. Goodbye!",
)
"""Questions to a model that chats."""

BEGINNINGS = (
    "The capital of France is", "Once upon a time there was a", "Water boils at", "def add(a, b):\n    return",
    "The three primary colours are", "In the year 1969,", "1, 2, 3, 4,", "She opened the door and", "北京是中国的",
    "Der Himmel ist", "La plus grande ville de", "The sun rises in the", '{"name": "Ada", "age":', "To be or not to be,",
    "import numpy as", "A dog is an animal that", "The quick brown fox", "E = mc", "Dear Sir or Madam,",
    "The meaning of life is",
)  # fmt: skip
"""Text to go on with, for a model that does not chat."""
