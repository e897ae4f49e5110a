"""The loop: windows, one division, step, evaluate, save. Objectives are arguments; nothing here knows one."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from luthier.core.errors import Interrupted, TrainingError
from luthier.core.faults import fault_point
from luthier.core.log import logger
from luthier.kernels.cpu import Heap
from luthier.models.noise import EmbeddingNoise
from luthier.runs.store import RunStore, list_checkpoints
from luthier.training.checkpoint import Checkpoint, newest_good, prune, write_checkpoint
from luthier.training.merit import merit, reads_of_evaluation, token_accuracy
from luthier.training.metrics import Means, Progress, gap_to_engine, peak_memory_bytes
from luthier.training.optim import is_of_critic, learning_parameters, make_optimizer, make_schedule, same_rate
from luthier.training.reference import STREAM
from luthier.training.state import TrainState, Updates, read_state, write_state
from luthier.training.window import mean_log_ratio, with_same

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from luthier.config.training import TrainConfig
    from luthier.core.batch import PackedBatch, Scores
    from luthier.core.protocols import Objective
    from luthier.data.loader import Loader, MapLoader, Window
    from luthier.models.policy import Policy
    from luthier.models.reference import Reference
    from luthier.training.stop import StopFlag

ROWS_NAMED = 16


class Trainer:
    """Runs optimizer steps of one objective on one policy."""

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        config: TrainConfig,
        *,
        rate_of: Callable[[str, float], float] = same_rate,
        accelerator: Any,
        loader: Loader,
        eval_loader: MapLoader | None,
        run: RunStore,
        save_model: Callable[[Path], None],
        stop: StopFlag,
        identity: dict[str, Any],
        reference: Reference | None = None,
        evaluator: Callable[[], dict[str, float]] | None = None,
        updates_per_step: int = 1,
        quiet: bool = False,
    ) -> None:
        self.objective, self.config, self.accelerator = objective, config, accelerator
        self.loader, self.eval_loader, self.run, self.stop = loader, eval_loader, run, stop
        self.save_model, self.reference = save_model, reference
        if config.neftune_noise_alpha:
            policy.noise = EmbeddingNoise(policy.model, config.neftune_noise_alpha)
        if reference is not None and "distribution" in objective.needs:
            policy.compared = reference.head
        self.parameters = learning_parameters(policy)
        self.total_steps = total_steps(config, loader)
        self.eval_parts = {} if eval_loader is None else {"": eval_loader}
        self.evaluate = evaluator or (None if eval_loader is None else self.evaluate_rows)
        """Returns metrics on held-out rows, where there are some."""
        updates = self.total_steps * updates_per_step
        # The raw optimizer steps: accelerate's wrapper skips steps silently when it sees a gradient overflow.
        self.optimizer = make_optimizer(config, self.parameters, rate_of, model=policy)
        self.policy, _ = accelerator.prepare(policy, self.optimizer)
        self.schedule = make_schedule(config, self.optimizer, updates)
        self.updates = Updates(self.parameters, self.optimizer, self.schedule, updates, updates_per_step, identity)
        self.state = TrainState()
        self.progress = Progress(self.total_steps, quiet=quiet or not accelerator.is_main_process)
        self.means = Means()
        self.heap = Heap() if config.memory_budget is None else Heap(growth=1.1)
        self.seconds_training = 0.0
        self.ended_epoch = False
        """A pass over the data ended in the last step."""

    # ---- the story

    def fit(self, resume: Checkpoint | None = None) -> TrainState:
        """Train until the last step, an early stop, or a stop signal; a checkpoint stands at the end."""
        if resume is not None:
            self.state = read_state(resume, self.updates)
            logger.info("resumed from %s", resume.path.name)
        self._status("running")
        self.policy.train()
        if self.config.eval_on_start and self.state.step == 0:
            self._evaluate()
        windows = self.loader.windows(self.state.cursor)
        while self.state.step < self.total_steps:
            self._step(windows)
            if self._is_due(self.config.eval_strategy, self.config.eval_steps) and not self._is_early():
                self._evaluate()
                if self._is_over():
                    break
            if self._is_due(self.config.save_strategy, self.config.save_steps) or self.stop.save_now:
                self.stop.save_now = False
                self.save()
            self.leave_if_stopped()
        self.progress.finish()
        if self.config.save_strategy != "no" and self.state.step:
            self.save()
        return self.state

    def _step(self, windows: Iterator[Window]) -> None:
        began = time.perf_counter()
        window = next(windows)
        ready = time.perf_counter()
        self.means.add(
            {name: (torch.tensor(total), torch.tensor(count)) for name, (total, count) in window.metrics.items()}
        )
        self.means.raise_to(window.peaks)
        values = {"learning_rate": self.schedule.get_last_lr()[0]}
        for batches in window.updates:
            values = self.train_step(self.annotate_window(batches), only_critic=window.only_critic)
        for _ in range(self.updates.updates_per_step - len(window.updates)):
            self.schedule.step()  # the rate follows steps, also those that have nothing to learn from
        seconds = time.perf_counter() - began
        if "rollouts" in self.objective.needs:
            values["seconds_learning"] = round(time.perf_counter() - ready, 4)
        state = self.state
        self.ended_epoch = int(window.epoch) > int(state.epoch)
        state.step, state.cursor, state.epoch = state.step + 1, window.next, window.epoch
        tokens = int(self._sum(torch.tensor(float(sum(batch.segment_tokens for batch in window.batches)))))
        state.tokens += tokens
        self.seconds_training += seconds
        self.heap.tidy()
        fault_point("train.step")
        self._log(values, tokens, seconds)

    # ---- the arithmetic

    def annotate_window(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """Annotate the batches of one update, with what all of them together tell."""
        here = [self.annotate(batch) for batch in batches]
        if "center" in self.objective.needs:
            return with_same(here, "center", mean_log_ratio(self.policy, here, self._sum))
        return self._with_baseline(here) if "baseline" in self.objective.needs else here

    def _with_baseline(self, batches: Sequence[PackedBatch]) -> list[PackedBatch]:
        """Add the tag "baseline": the mean log-ratio of mismatched answers, at least 0 (arXiv:2402.01306)."""
        asides = [self.annotate(batch.aside) for batch in batches if batch.aside is not None]
        return with_same(batches, "baseline", mean_log_ratio(self.policy, asides, self._sum).clamp(min=0))

    def annotate(self, batch: PackedBatch) -> PackedBatch:
        """Move a batch to the device and add what the objective needs and the rows do not bring."""
        here = batch.to(self.accelerator.device)
        if "reference" in self.objective.needs and STREAM not in here.streams:
            assert self.reference is not None, "the objective needs a reference"
            here = here.with_stream(STREAM, self.reference.logp(here))
        if "distribution" in self.objective.needs:
            assert self.reference is not None, "the objective needs a reference"
            here = here.with_stream("ref_hidden", self.reference.hidden(here))
        return here

    def train_step(self, batches: Sequence[PackedBatch], *, only_critic: bool = False) -> dict[str, float]:
        """One optimizer update from every batch; the result does not depend on how they are split.

        `only_critic`: parameters of the policy keep their values.

        Returns grad_norm and the learning rate that was used. Raises TrainingError, with the weights as they were, when
        the loss or the gradient is not finite.
        """
        acc = self.accelerator
        count = self._sum(torch.stack([self.objective.count(batch) for batch in batches]).sum()).clamp(min=1)
        suspects: list[str] = []
        for batch in batches:
            last = batch is batches[-1]
            with nullcontext() if last else acc.no_sync(self.policy):
                total, metrics, peaks = self._total(batch)
                acc.backward(total * acc.num_processes / count)  # DDP averages over ranks; undo it
            self.means.add(metrics)
            self.means.raise_to(peaks)
            if not torch.isfinite(total):
                suspects += batch.origins
        if only_critic:
            for name, parameter in self.parameters.items():
                parameter.grad = parameter.grad if is_of_critic(name) else None
        norm = acc.clip_grad_norm_(list(self.parameters.values()), self.config.max_grad_norm or math.inf)
        if not math.isfinite(float(norm)) or suspects:
            self._refuse(float(norm), suspects or [origin for batch in batches for origin in batch.origins])
        learning_rate = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {"grad_norm": float(norm), "learning_rate": learning_rate}

    def _total(
        self, batch: PackedBatch
    ) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]], Mapping[str, Tensor | float]]:
        """Return the sum that is learned from, metrics as (sum, count), and largest values.

        What the model says of itself holds for an average token, so it counts as often as the objective counts in this
        batch: after the one division a window has the mean of its batches, weighted by what they hold.
        """
        scores: Scores = self.policy(batch, reads=self.objective.reads)
        loss, count = self.objective(scores, batch), self.objective.count(batch)
        metrics = {"loss": (loss.total, count), **loss.metrics}
        metrics |= {name: (value * count, count) for name, value in scores.metrics.items()}
        gap, largest_gap = gap_to_engine(scores, batch)
        metrics |= gap
        peaks = {**loss.peaks, **largest_gap}
        if scores.balance is None:
            return loss.total, metrics, peaks
        metrics["moe_aux_loss"] = (scores.balance * count, count)
        return loss.total + self.config.moe_aux_loss_coef * scores.balance * count, metrics, peaks

    def _refuse(self, norm: float, rows: Sequence[str]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        good = next(iter(list_checkpoints(self.run.path)), None)
        named = ", ".join(dict.fromkeys(rows[:ROWS_NAMED]))
        raise TrainingError(
            f"step {self.state.step + 1}: the loss or gradient is not finite (norm {norm}); "
            "the weights were left as they were. "
            f"Rows: {named}. Last checkpoint: {good or 'none'}. Look at these rows, or lower learning_rate",
            code="nonfinite",
        )

    def _sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value.to(self.accelerator.device), reduction="sum")

    # ---- evaluation

    @torch.no_grad()
    def evaluate_rows(self) -> dict[str, float]:
        """Return loss and metrics on the evaluation rows, each one mean over all of them; and the loss of each part."""
        means, parts = Means(), {name: Means() for name in self.eval_parts}
        reads = reads_of_evaluation(self.config, self.objective)
        self.policy.eval()
        for name, loader in self.eval_parts.items():
            for batch in self._until_stopped(loader.batches()):
                (here,) = self.annotate_window([batch])
                scores, count = self.policy(here, reads=reads), self.objective.count(here)
                loss = self.objective(scores, here)
                means.add({"loss": (loss.total, count), **loss.metrics, **token_accuracy(scores, here)})
                parts[name].add({"loss": (loss.total, count)})
        self.policy.train()
        means.agree(gather_object)
        found = means.take(self._sum)
        if len(parts) > 1:
            found |= {f"{name}_loss": each.take(self._sum)["loss"] for name, each in parts.items()}
        return found

    def _until_stopped(self, batches: Iterator[PackedBatch]) -> Iterator[PackedBatch]:
        for batch in batches:
            if self.stop and self.accelerator.num_processes == 1:
                self.leave_if_stopped()
            yield batch

    def _evaluate(self) -> None:
        if self.evaluate is None:
            return
        values = {f"eval_{name}": value for name, value in self.evaluate().items()}
        state, (name, worth) = self.state, merit(self.config, values)
        state.last_eval_loss = values.get("eval_loss")
        self.run.event("eval", step=state.step, epoch=round(state.epoch, 4), **values)
        self.accelerator.log(values, step=state.step)
        logger.info("step %d  %s %.4f", state.step, name, values[name])
        if worth < state.best_loss:
            state.best_loss, state.best_step, state.evaluations_without_gain = worth, state.step, 0
            if self.config.load_best_model_at_end:
                self.save()
        else:
            state.evaluations_without_gain += 1

    def _is_over(self) -> bool:
        patience = self.config.early_stopping_steps
        if patience and self.state.evaluations_without_gain >= patience:
            logger.info(
                "stopped early: no better eval_loss in %d evaluations; best at step %d", patience, self.state.best_step
            )
            return True
        return False

    # ---- saving and leaving

    def save(self) -> Path:
        """Write a checkpoint of this step and prune old ones."""
        state = self.state
        target = self.run.path / f"checkpoint-{state.step}"
        if self.accelerator.is_main_process:
            began = time.perf_counter()
            size = sum(p.numel() * p.element_size() for p in self.parameters.values())
            needed = size * (1 if self.config.save_only_model else 3)
            write_checkpoint(self.run.path, state.step, self._write, needed_bytes=needed)
            best = self.run.path / f"checkpoint-{state.best_step}" if self.config.load_best_model_at_end else None
            prune(self.run.path, self.config.save_total_limit, best)
            self.run.event(
                "checkpoint", step=state.step, path=target.name, seconds=round(time.perf_counter() - began, 3)
            )
            self._status("running", checkpoint=target.name)
        self.accelerator.wait_for_everyone()
        return target

    def _write(self, folder: Path) -> None:
        self.save_model(folder)
        if not self.config.save_only_model:
            write_state(folder, self.state, self.updates)

    def leave_if_stopped(self) -> None:
        """Save and raise Interrupted when a signal asks for it."""
        stopped = torch.tensor(float(bool(self.stop)))
        if self.accelerator.num_processes > 1:
            stopped = self._sum(stopped.to(self.accelerator.device))
        if float(stopped) == 0:
            return
        self.progress.finish()
        number = int(self.stop.exit_signal)
        if self.config.save_strategy == "no" or self.config.save_only_model:
            kept = "no checkpoint, because the settings keep none that can be resumed"
        else:
            kept = f"{self.save().name} was written; go on with --resume auto"
        self._status("stopped", stop_reason=f"signal {number}")
        raise Interrupted(f"stopped at step {self.state.step} of {self.total_steps}: {kept}", signal_number=number)

    # ---- bookkeeping

    def _is_due(self, strategy: str | None, every: int) -> bool:
        if strategy == "epoch":
            return self.ended_epoch
        if strategy == "no":
            return False
        return self.state.step % every == 0

    def _is_early(self) -> bool:
        """Tell whether evaluation waits: `eval_delay` counts epochs or steps, as eval_strategy does."""
        here = self.state.epoch if self.config.eval_strategy == "epoch" else self.state.step
        return here < self.config.eval_delay

    def _log(self, values: dict[str, float], tokens: int, seconds: float) -> None:
        state = self.state
        first = self.config.logging_first_step and state.step == 1
        due = self._is_due(self.config.logging_strategy, self.config.logging_steps)
        if not (due or first or state.step == self.total_steps):
            return
        self.means.agree(gather_object)
        means = {"loss": math.nan, **self.means.take(self._sum), **self.means.peaks(self.accelerator.gather)}
        state.last_loss = means["loss"]
        line = {
            **means,
            **values,
            "tokens": state.tokens,
            "tokens_per_second": round(tokens / seconds, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            "seconds": round(seconds, 4),
        }
        self.run.event("train", step=state.step, epoch=round(state.epoch, 4), **line)
        self.accelerator.log({key: line[key] for key in (*means, *values, "tokens_per_second")}, step=state.step)
        self.progress.update(state.step, line)
        self._status("running", every_seconds=1.0)

    def _status(self, state: str, *, every_seconds: float = 0.0, **facts: Any) -> None:
        if not self.accelerator.is_main_process:
            return
        now = time.monotonic()
        if every_seconds and now - getattr(self, "_status_at", 0.0) < every_seconds:
            return
        self._status_at = now
        here = {"step": self.state.step, "total": self.total_steps, "epoch": round(self.state.epoch, 4), **facts}
        self.run.set_status(state, **here)


def total_steps(config: TrainConfig, loader: Loader) -> int:
    """Return the optimizer steps of a run."""
    if config.max_steps > 0:
        return config.max_steps
    assert loader.steps_per_epoch is not None
    return max(1, math.ceil(config.num_train_epochs * loader.steps_per_epoch))


def best_checkpoint(run: Path, step: int) -> Path | None:
    """Return the checkpoint of the best step, or the newest good one."""
    path = run / f"checkpoint-{step}"
    if path.is_dir():
        return path
    good = newest_good(run)
    return good.path if good else None
