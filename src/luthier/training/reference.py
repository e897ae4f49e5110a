"""Score every row with the reference once, before the first step, and keep the numbers in a file.

Shapes: T tokens of all segments.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from luthier.core.errors import Interrupted
from luthier.core.log import logger
from luthier.core.paths import replacing
from luthier.data.loader import Layout
from luthier.data.pack import plan_batches

if TYPE_CHECKING:
    from pathlib import Path

    from luthier.data.store import UnitStore
    from luthier.models.reference import Reference
    from luthier.training.stop import StopFlag

STREAM = "ref_logp"
SECONDS_BETWEEN_LINES = 30.0


def attach_reference(
    store: UnitStore, reference: Reference, file: Path, *, rows_per_batch: int, accelerator: Any, stop: StopFlag
) -> None:
    """Give every unit of `store` the stream "ref_logp", from `file` or else computed and kept there.

    Raises Interrupted when a stop signal came in.
    """
    kept = _read(file, len(store.weight))
    if kept is not None:
        logger.info("reference: log-probabilities of %d rows (from the cache)", len(store))
        store.streams[STREAM] = kept
        return
    began = time.monotonic()
    logger.info("reference: scoring %d rows once", len(store))
    logp_T = _score(store, reference, rows_per_batch, accelerator, stop)
    logger.info("reference: took %.1f s", time.monotonic() - began)
    if accelerator.is_main_process:
        with replacing(file) as temporary:
            save_file({STREAM: logp_T}, temporary)
    store.streams[STREAM] = logp_T


def _read(file: Path, num_tokens: int) -> np.ndarray | None:
    if not file.exists():
        return None
    try:
        kept = load_file(file)[STREAM]
        if len(kept) == num_tokens:
            return kept
        problem = f"{len(kept)} numbers for {num_tokens} tokens"
    except (OSError, KeyError, SafetensorError) as error:
        problem = str(error)
    logger.warning("cache of the reference %s is damaged (%s) and made again", file, problem)
    return None


def _score(store: UnitStore, reference: Reference, rows_per_batch: int, accelerator: Any, stop: StopFlag) -> np.ndarray:
    """Return log-probabilities, [T], 0 where nothing is predicted; processes share the batches."""
    logp_T = np.zeros(len(store.weight), dtype=np.float32)
    plan, size = plan_batches([1] * len(store), rows_per_batch, None), accelerator.num_processes
    layout = Layout(rows_per_batch=rows_per_batch, rank=accelerator.process_index, num_ranks=size)
    said = time.monotonic()
    for start in range(0, len(plan), size):
        _leave_if_stopped(accelerator, stop)
        group = plan[start : start + size]
        (batch,) = layout.share([[store[i] for i in rows] for rows in group])
        for part, aside in ((batch, False), (batch.aside, True)):
            if part is None:
                continue
            logp_N = reference.logp(part.to(accelerator.device)).float().cpu().numpy()
            if len(logp_N):
                logp_T[np.concatenate([store.predicted(i, aside=aside) for i in group[layout.rank]])] = logp_N
        if time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            logger.info("reference: %d of %d rows", group[-1][-1] + 1, len(store))
    if size == 1:
        return logp_T
    return accelerator.reduce(torch.from_numpy(logp_T).to(accelerator.device), reduction="sum").cpu().numpy()


def _leave_if_stopped(accelerator: Any, stop: StopFlag) -> None:
    stopped = torch.tensor(float(bool(stop)))
    if accelerator.num_processes > 1:
        stopped = accelerator.reduce(stopped.to(accelerator.device), reduction="sum")
    if float(stopped):
        raise Interrupted(
            "stopped while the reference scored the rows: nothing was trained yet", signal_number=int(stop.exit_signal)
        )
