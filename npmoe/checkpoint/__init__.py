"""Other people's language models on disk, without PyTorch: `open` a folder, `save_mixtral` one of ours."""

from npmoe.checkpoint.opened import Checkpoint, open
from npmoe.checkpoint.written import save_mixtral

__all__ = ["Checkpoint", "open", "save_mixtral"]
