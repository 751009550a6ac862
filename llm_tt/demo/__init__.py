"""Where the demo model lies. Nothing heavy is imported here.

`language` writes the sentences, `tokenizer` cuts them, `train` makes the model, `evaluation` asks it and `card`
describes it.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR"]
