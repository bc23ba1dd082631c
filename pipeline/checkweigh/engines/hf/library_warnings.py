"""What libraries warn of while a model is loaded: every text is read, and one that says the model is another refuses.

transformers, torch, bitsandbytes and accelerate warn through logging or the warnings module, some for every layer
and call. Each text reaches the log once.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers

from checkweigh.errors import BadInput, CheckweighError

# What a text says of a model that is not the one in the files, or of a setting that had no effect.
TELLING = re.compile(
    r"ignor|replac|overrid|overwrit|newly initiali[sz]ed|random|dequanti|fall(s|ing|en)? ?back|unrecogni[sz]|"
    r"fail|missing|unexpected|mismatch|corrupt|incorrect|unused|will be used|"
    r"(not|n't) (be |been |being )?(used|loaded|tied?|applied|supported|found|valid|converted)",
    re.IGNORECASE,
)
# Texts with such words that say nothing of the model, and why.
HARMLESS = (
    # Of the generation config nothing but the ids that end a reply is used.
    r"generation flags are not valid and may be ignored",
    # Both tensors are loaded; the effective configuration says that the head is not tied.
    r"both are present in the checkpoints with different values, so we will NOT tie",
    # A faster kernel that would be fetched from a hub; bitsandbytes computes the same without it.
    r"Failed to load CPU \w+ from kernels-community",
    # A recurrent layer without its fused kernel.
    r"falling back to its reference PyTorch implementation.* This is correct",
    # The loss is computed in training only.
    r"`loss_type=.*` was set in the config but it is unrecognized",
)

LATER = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)


class _Ear(logging.Handler):
    """Hears every warning, and writes each text to the log once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.listeners: list[list[str]] = []
        self.written: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """A warning by way of logging."""
        self.hear(record.name, record.getMessage())

    def show(self, message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        """A warning by way of the warnings module. What only speaks of later versions is not judged."""
        self.hear(category.__name__, str(message), judged=not issubclass(category, LATER))

    def hear(self, source: str, text: str, *, judged: bool = True) -> None:
        """Keep a text for those who listen, and write it to the log unless it was written before."""
        for heard in self.listeners:
            heard += [text] * judged
        if text not in self.written:
            self.written.add(text)
            print(f"[{source}] {text}", file=sys.stderr, flush=True)


EAR = _Ear()


def listen() -> None:
    """From here on every warning is heard. Nothing in the environment can turn one off."""
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    transformers.logging.disable_default_handler()  # it would write every text a second time
    for name in ("", "transformers", "torch"):  # the latter two do not hand their records up
        logger = logging.getLogger(name)
        if EAR not in logger.handlers:
            logger.addHandler(EAR)
    for handler in list(logging.getLogger("torch").handlers):  # as transformers' own
        if type(handler) is logging.StreamHandler:
            logging.getLogger("torch").removeHandler(handler)
    warnings.showwarning = EAR.show
    warnings.simplefilter("always")


@contextmanager
def judged(where: str) -> Iterator[None]:
    """Judge what is warned of inside. BadInput with every telling text, which also replaces a library's own error."""
    heard: list[str] = []
    with warnings.catch_warnings():
        listen()
        EAR.listeners.append(heard)
        try:
            yield
        except CheckweighError:
            raise
        except Exception as error:
            _refuse(where, heard, error)
            raise
        finally:
            EAR.listeners.remove(heard)
        _refuse(where, heard, None)
    warnings.showwarning = EAR.show
    warnings.simplefilter("default")


def telling(text: str) -> bool:
    """Whether a warning says that something of the model was left out or changed."""
    return TELLING.search(text) is not None and not any(re.search(known, text) for known in HARMLESS)


def _refuse(where: str, heard: list[str], error: Exception | None) -> None:
    told = list(dict.fromkeys(text.strip() for text in heard if telling(text)))
    if told:
        raise BadInput(
            "\n".join(f"{where}: while it was loaded a library warned: {text}" for text in told)
        ) from error
