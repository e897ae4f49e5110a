"""Which numbers may move: one file a method, each a frozen dataclass of its hyper-parameters."""
