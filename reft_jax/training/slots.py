"""Sampling by slots: rows in flight on the devices, of which those that have ended make room for the next ones.

The host decides from the tokens alone, which all processes see, so that all decide alike.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from reft_jax.algorithms.rollout import TOKENS_A_CALL, Admission, Rollout, SamplingParams
from reft_jax.data.batches import PromptBatch, Sequences, bucket
from reft_jax.models.params import Params
from reft_jax.parallel.sharding import named_sharding, to_global
from reft_jax.training.model import Model

Over: TypeAlias = Callable[[np.ndarray, np.ndarray], bool]
"""Whether a response is over by what it says: (tokens of the prompt, tokens of the response so far)."""


def respond(
    model: Model,
    params: Params,
    prompts: PromptBatch[np.ndarray],
    number: int,
    how: SamplingParams,
    samples: int = 1,
    over: Over | None = None,
) -> Rollout[np.ndarray]:
    """Samples a response to each row, the longest prompts first, in the slots that the model has.

    Args:
        model: at work.
        params: as sampling takes them.
        prompts: [B, P] on the host, the same on all processes; filler (problem -1) has an empty response.
        number: step of the random numbers, see `rollout.row_keys`.
        how: tokens are drawn.
        samples: rows next to each other that have the same prompt; as many as go together share its prefill.
        over: says which responses need not go on; asked after each call. Such a one has not `ended`, and has tokens of
            that call behind what made it so.

    Returns:
        Host arrays, the same on all processes.
    """
    return _Flight(model, prompts, samples, over).run(params, number, how)


class _Flight:
    """The host's side of the slots: which row sits where, and what it has said so far.

    Slots are numbered over all blocks; a block is what one device has, or what several hold together.
    """

    def __init__(self, model: Model, prompts: PromptBatch[np.ndarray], samples: int, over: Over | None) -> None:
        self._model, self._prompts, self._samples, self._over = model, prompts, samples, over
        self._sampling = model.sampling
        count, longest = len(prompts.lengths), self._sampling.limits.max_new_tokens
        order = np.argsort(-prompts.lengths, kind="stable")
        self._waiting = collections.deque(order[prompts.problem[order] >= 0].tolist())
        self._row = np.full(self._sampling.slots, -1)  # of each slot; -1 where it is free
        self._drawn = np.zeros(self._sampling.slots, np.int64)  # tokens of each slot's response that are known
        self._responses = np.full((count, longest), model.ids.pad, np.int32)
        self._log_probs = np.zeros((count, longest), self._sampling.wide)
        self._lengths = np.zeros(count, np.int32)
        self._ended = prompts.problem < 0

    def run(self, params: Params, number: int, how: SamplingParams) -> Rollout[np.ndarray]:
        """Samples all rows."""
        compiled = self._model.compiled
        wide = self._sampling.wide.type
        read, draw = self._sampling.step("prefill", how, self._samples), self._sampling.step("decode", how)
        how = dataclasses.replace(how, temperature=wide(how.temperature))
        common: tuple[Any, ...] = (np.int32(self._model.config.seed), np.int32(number), how)
        slots = compiled.get("slots")()
        while self._waiting or np.any(self._row >= 0):
            begun = []
            for places, admission in self._admissions():
                prefill = compiled.get(read, admission.tokens.shape[1])
                slots, *first = prefill(params, slots, self._placed(admission), *common)
                begun.append((places, first))
            slots, *drawn = compiled.get(draw, self._reach())(params, slots, *common)
            for places, first in begun:  # only now, for reading waits for the devices
                used, entry = np.array(places).T
                self._take(used, *(np.asarray(x)[entry, None] for x in first))
            busy = np.flatnonzero(self._row >= 0)
            self._take(busy, *(np.asarray(x)[busy] for x in drawn))
        return self._rollout()

    def _admissions(self) -> Iterator[tuple[list[tuple[int, int]], Admission[np.ndarray]]]:
        """Yields what is read next: pairs of slot and entry, and the arguments; the rows then sit in their slots.

        As long as that fills half of a call, or all that wait, or nothing is in flight.
        """
        blocks, rows = self._sampling.blocks, self._sampling.admission(self._samples)[1]
        while self._waiting:
            free = np.count_nonzero(self._row.reshape(blocks, -1) < 0, axis=1)
            room = int(np.minimum(free, rows).sum())
            if not room or (2 * room < min(blocks * rows, 2 * len(self._waiting)) and np.any(self._row >= 0)):
                return
            yield self._admission()

    def _admission(self) -> tuple[list[tuple[int, int]], Admission[np.ndarray]]:
        blocks, (most_prompts, most_rows) = self._sampling.blocks, self._sampling.admission(self._samples)
        width = bucket(int(self._prompts.lengths[self._waiting[0]]), self._model.config.generation.prompt_buckets)
        size = self._sampling.slots // blocks
        new = Admission(
            tokens=np.full((blocks * most_prompts, width), self._model.ids.pad, np.int32),
            lengths=np.ones(blocks * most_prompts, np.int32),
            source=np.zeros(blocks * most_rows, np.int32),
            slot=np.full(blocks * most_rows, size, np.int32),
            problem=np.zeros(blocks * most_rows, np.int32),
            sample=np.zeros(blocks * most_rows, np.int32),
        )
        places = []
        busy = np.count_nonzero(self._row.reshape(blocks, size) >= 0, axis=1)
        for block in np.argsort(busy, kind="stable").tolist():
            free = np.flatnonzero(self._row[block * size : (block + 1) * size] < 0)
            prompts, last = 0, -1
            for entry, slot in enumerate(free[:most_rows].tolist(), start=block * most_rows):
                row = self._waiting[0] if self._waiting else -1
                problem = int(self._prompts.problem[row])
                if row < 0 or (problem != last and prompts == most_prompts):
                    break
                self._waiting.popleft()
                if problem != last:
                    place, prompts, last = block * most_prompts + prompts, prompts + 1, problem
                    new.tokens[place] = self._prompts.tokens[row, :width]
                    new.lengths[place] = self._prompts.lengths[row]
                new.source[entry], new.slot[entry] = prompts - 1, slot
                new.problem[entry], new.sample[entry] = problem, self._prompts.sample[row]
                self._row[block * size + slot], self._drawn[block * size + slot] = row, 0
                places.append((block * size + slot, entry))
        return places, new

    def _placed(self, admission: Admission[np.ndarray]) -> Admission[Any]:
        """The admission on the devices."""
        mesh, layout = self._model.mesh, self._sampling.policy.layout
        sharding = lambda x: named_sharding(mesh, "batch", *(None,) * (x.ndim - 1), layout=layout)
        shardings = {field.name: sharding(getattr(admission, field.name)) for field in dataclasses.fields(admission)}
        return to_global(admission, Admission(**shardings))

    def _reach(self) -> int:
        """Positions of the cache that a call of `decode` can come to."""
        busy = np.flatnonzero(self._row >= 0)
        places = self._prompts.lengths[self._row[busy]] + np.maximum(self._drawn[busy], 1) - 1
        needed = min(int(places.max()) + TOKENS_A_CALL, self._sampling.positions)
        return min(reach for reach in self._sampling.reaches if reach >= needed)

    def _take(self, slots: np.ndarray, tokens: np.ndarray, log_probs: np.ndarray) -> None:
        """Appends tokens [n, k] to the rows in n slots, each up to its end, and frees the slots of those that end."""
        rows, known, limits = self._row[slots], self._drawn[slots], self._sampling.limits
        ends = np.isin(tokens, limits.ends)
        ending = np.where(ends.any(axis=1), ends.argmax(axis=1) + 1, tokens.shape[1] + 1)
        count = np.minimum(np.minimum(ending, tokens.shape[1]), limits.max_new_tokens - known)
        kept = np.arange(tokens.shape[1]) < count[:, None]
        at = np.repeat(rows, count), (known[:, None] + np.arange(tokens.shape[1]))[kept]
        self._responses[at], self._log_probs[at] = tokens[kept], log_probs[kept]
        self._drawn[slots] = self._lengths[rows] = known + count
        self._ended[rows] = ending <= count
        over = self._ended[rows] | (known + count == limits.max_new_tokens)
        if self._over:
            for i in np.flatnonzero(~over):
                prompt = self._prompts.tokens[rows[i], : self._prompts.lengths[rows[i]]]
                over[i] = self._over(prompt, self._responses[rows[i], : self._lengths[rows[i]]])
        self._row[slots[over]] = -1

    def _rollout(self) -> Rollout[np.ndarray]:
        prompts, longest = self._prompts, self._responses.shape[1]
        tokens = np.pad(prompts.tokens, ((0, 0), (0, longest)), constant_values=self._model.ids.pad)
        columns = np.minimum(prompts.lengths[:, None] + np.arange(longest), tokens.shape[1] - 1)
        shown = np.arange(longest) < self._lengths[:, None]
        np.put_along_axis(tokens, columns, np.where(shown, self._responses, self._model.ids.pad), axis=1)
        sequences = Sequences(tokens, prompts.lengths, self._responses, self._lengths)
        return Rollout(sequences=sequences, log_probs=self._log_probs, ended=self._ended)
