"""Where the demo model, its fine-tuned sibling and their data lie. Nothing heavy is imported here.

`language` writes the sentences, `tokenizer` cuts them, `train` makes the model, `evaluation` asks it and `card`
describes it; `pair` makes, asks and describes the sibling.
"""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
ADAPTER_DIR: Path = Path(__file__).parent / "tuned"
DATA_DIR: Path = Path(__file__).parent / "data"

__all__ = ["ADAPTER_DIR", "DATA_DIR", "MODEL_DIR"]
