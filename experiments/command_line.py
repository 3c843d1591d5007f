"""What the commands share: exit codes, one-sentence errors, and a quiet console."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from losses.weighted_sum import NonFiniteLossError

EXIT_PARTIAL = 1
"""Some files of a batch failed; the others are done."""
EXIT_INPUT = 2
"""Nothing could be done with what was given."""

USER_ERRORS = (ValueError, OSError, NonFiniteLossError)


@contextmanager
def user_errors() -> Iterator[None]:
    """End the process with one sentence and EXIT_INPUT for errors in what the user gave; SR_TRACEBACK=1 shows all."""
    try:
        yield
    except USER_ERRORS as error:
        if os.environ.get("SR_TRACEBACK"):
            raise
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT) from None


def sentence_of(error: BaseException) -> str:
    """An error's own message, also where a data loader's worker has wrapped it in its traceback.

    >>> sentence_of(ValueError("Caught ValueError in DataLoader worker process 0.\\nOriginal ...\\nValueError: a: no"))
    'a: no'
    """
    message = str(error)
    if "in DataLoader worker process" not in message.partition("\n")[0]:
        return message
    return message.rstrip().rsplit("\n", 1)[-1].partition(": ")[2] or message


def quiet() -> None:
    """Silence what libraries say about themselves; their errors and our own messages stay."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights are local paths: no library asks a hub
    for name in ("lightning.pytorch", "lightning.fabric", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Flux's norms keep fp32 weights under autocast: torch takes an unfused kernel and says so in every process.
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # the frozen base
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # on a resume
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # ours is, by its batch sampler
    warnings.filterwarnings("ignore", category=FutureWarning)
