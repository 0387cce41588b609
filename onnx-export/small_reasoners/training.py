"""Training: AdamW over freshly made problems, seeded, resumable.

Everything that a step draws follows from the seed and the step's number, so that a run that was broken off goes on as if
it had not been.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from . import network
from .network import Parameters, Shape
from .problems import GIST_ID, VOCABULARY, Problem, make_problem, tokens

PAD = 64  # texts are padded to a multiple, so that few shapes are compiled


@dataclass(frozen=True)
class Plan:
    """What decides the weights."""

    shape: Shape = Shape(vocab_size=VOCABULARY)
    seed: int = 1
    steps: int = 6000
    tokens: int = 2048  # of a step, about
    lines: int = 20  # the most of a problem
    growing: float = 0.5  # the share of the steps in which the most grows from 6 to that
    rate: float = 3e-3
    warmup: int = 100
    decay: float = 0.05
    clip: float = 1.0
    drop: float = 0.0  # the share of reasoning entries that vanish at random, per layer and KV head,
    gists: int = 0  # behind each line of the reasoning, from where on they are seen in the line's place (LightThinker),
    drop_from: float = 0.5  # both from this share of the steps on
    window: int = 16  # entries that are this near are always seen

    def most_lines(self, step: int) -> int:
        return round(6 + (self.lines - 6) * min(1.0, step / (self.growing * self.steps)))

    @property
    def trunk(self) -> int:
        """The step up to which plans with another `drop` or other `gists` are the same."""
        return int(self.drop_from * self.steps)

    def rate_at(self, step: int) -> float:
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass
class Batch:
    """Texts: ids [B, T], where their reasoning begins, and how long they are."""

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def padded(problems: list[Problem], gists: int = 0) -> int:
    """The length of the longest text, rounded up."""
    return -(-max(len(tokens(problem, gists)) for problem in problems) // PAD) * PAD


def make_batch(problems: list[Problem], gists: int = 0) -> Batch:
    texts = [tokens(problem, gists) for problem in problems]
    ids = np.zeros((len(texts), padded(problems, gists)), np.int32)
    for row, text in zip(ids, texts):
        row[: len(text)] = text
    return Batch(ids, np.array([len(p.prompt) for p in problems]), np.array([len(text) for text in texts]))


def draw_batch(plan: Plan, step: int) -> Batch:
    """Problems of one size, as many as have `tokens` when they are padded: one number of rows for each length."""
    generator = random.Random(f"{plan.seed} {step}")
    most = plan.most_lines(step)
    lines = generator.randint(5, most)
    problems = [make_problem(generator, lines) for _ in range(8)]
    length = padded(problems, plan.gists)
    while len(problems) < plan.tokens // length:
        problem = make_problem(generator, lines)
        if padded([problem], plan.gists) <= length:
            problems.append(problem)
    problems.sort(key=lambda problem: -padded([problem], plan.gists))
    return make_batch(problems[: max(1, plan.tokens // length)], plan.gists)


def causal(length: int) -> jax.Array:
    return jnp.tril(jnp.ones((length, length), bool))


def visible(batch: dict[str, jax.Array], plan: Plan, key: jax.Array) -> jax.Array:
    """[layers or 1, B or 1, KV heads or 1, T, T]: what is seen. Of the reasoning, entries vanish once they are `window`
    back, and lines once they have gists."""
    shape, (size, length) = plan.shape, batch["ids"].shape
    seen = causal(length)[None, None, None]
    if plan.gists:
        seen = seen & ~summed_up(batch)[None, :, None]
    if not plan.drop:
        return seen
    kept = jax.random.uniform(key, (shape.num_hidden_layers, size, shape.num_key_value_heads, 1, length)) >= plan.drop
    index = jnp.arange(length)
    given = (index[None, :] < batch["begins"][:, None])[None, :, None, None, :]
    near = (index[:, None] - index[None, :] < plan.window)[None, None, None]
    return seen & (kept | given | near)


def summed_up(batch: dict[str, jax.Array]) -> jax.Array:
    """[B, T, T]: whether query i is behind the gists of the line that key j belongs to."""
    ids, index = batch["ids"], jnp.arange(batch["ids"].shape[1])
    gist = ids == GIST_ID
    last = gist & ~jnp.roll(gist, -1, axis=1)
    line = jnp.cumsum(last, axis=1) - last  # the number of lines before, its gists included
    reasoning = (index >= batch["begins"][:, None]) & ~gist
    return reasoning[:, None, :] & (line[:, :, None] > line[:, None, :])


def targets(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The next ids [B, T - 1] and which of them the model is to find: the reasoning and its end, no gists."""
    following, index = batch["ids"][:, 1:], jnp.arange(1, batch["ids"].shape[1])[None]
    counted = (index >= batch["begins"][:, None]) & (index < batch["ends"][:, None])
    return following, counted & (following != GIST_ID)


def run(parameters: Parameters, shape: Shape, batch: dict[str, jax.Array], seen: jax.Array) -> jax.Array:
    """Logits [B, T - 1, vocabulary] of the next ids."""
    positions = jnp.broadcast_to(jnp.arange(batch["ids"].shape[1]), batch["ids"].shape)
    return network.logits(parameters, shape, batch["ids"], positions, seen)[:, :-1]


def loss(parameters: Parameters, batch: dict[str, jax.Array], plan: Plan, key: jax.Array) -> jax.Array:
    """Mean negative log likelihood of the reasoning's tokens."""
    scores = jax.nn.log_softmax(run(parameters, plan.shape, batch, visible(batch, plan, key)))
    following, counted = targets(batch)
    picked = jnp.take_along_axis(scores, following[..., None], -1)[..., 0]
    return -jnp.sum(picked * counted) / jnp.sum(counted)


State = dict[str, Parameters]


@partial(jax.jit, static_argnames="plan", donate_argnames="state")
def update(state: State, batch: dict[str, jax.Array], plan: Plan, step: jax.Array, rate: jax.Array):
    """One step of AdamW; norms are not decayed."""
    key = jax.random.fold_in(jax.random.key(plan.seed), step)
    value, gradients = jax.value_and_grad(loss)(state["weights"], batch, plan, key)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in gradients.values()))
    scale = jnp.minimum(1.0, plan.clip / (norm + 1e-9))
    first, second, count = 0.9, 0.98, step + 1.0
    new: State = {"weights": {}, "mean": {}, "square": {}}
    for name, weight in state["weights"].items():
        gradient = gradients[name] * scale
        mean = new["mean"][name] = first * state["mean"][name] + (1 - first) * gradient
        square = new["square"][name] = second * state["square"][name] + (1 - second) * gradient**2
        move = mean / (1 - first**count) / (jnp.sqrt(square / (1 - second**count)) + 1e-8)
        move += plan.decay * weight if weight.ndim > 1 else 0.0
        new["weights"][name] = weight - rate * move
    return new, value


@partial(jax.jit, static_argnames="plan")
def right(parameters: Parameters, plan: Plan, batch: dict[str, jax.Array]) -> jax.Array:
    """Which texts greedy decoding writes without an error: with the full cache, or with gists in the place of lines.

    Given the right text so far, the likeliest token is always the right one: so greedy decoding gives that text.
    """
    following, counted = targets(batch)
    seen = visible(batch, replace(plan, drop=0.0), jax.random.key(0))
    best = jnp.argmax(run(parameters, plan.shape, batch, seen), -1)
    return jnp.all((best == following) | ~counted, axis=1)


def arrays(batch: Batch) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value) for name, value in vars(batch).items()}


def exactness(parameters: Parameters, plan: Plan, lines: int, count: int, seed: str) -> float:
    """The share of `count` problems of so many lines whose whole reasoning is right."""
    generator = random.Random(seed)
    problems = [make_problem(generator, lines) for _ in range(count)]
    batches = (make_batch(problems[at : at + 10], plan.gists) for at in range(0, count, 10))
    found = [right(parameters, plan, arrays(batch)) for batch in batches]
    return float(jnp.concatenate(found).mean())


def exact(folder: Path, problems: list[Problem], gists: int) -> float:
    """The share of problems whose whole reasoning the model of a Hugging Face folder writes right, lines having gone
    once they have gists."""
    config = json.loads((folder / "config.json").read_text())
    plan = Plan(Shape(**{field.name: config[field.name] for field in fields(Shape)}), gists=gists)
    weights = {name: jnp.asarray(value) for name, value in load_file(folder / "model.safetensors").items()}
    batches = [make_batch(problems[at : at + 10], gists) for at in range(0, len(problems), 10)]
    return float(jnp.concatenate([right(weights, plan, arrays(batch)) for batch in batches]).mean())


def begin(plan: Plan) -> State:
    weights = network.initialize(plan.shape, plan.seed)
    zeros = lambda: {name: jnp.zeros_like(value) for name, value in weights.items()}
    return {"weights": weights, "mean": zeros(), "square": zeros()}


def save(path: Path, state: State, step: int, seconds: float, plan: Plan) -> None:
    """Replaces the checkpoint at once, or not at all."""
    new = path.with_suffix(".new.npz")
    flat = {f"{part}/{name}": np.asarray(value) for part, values in state.items() for name, value in values.items()}
    np.savez(new, **flat, step=step, seconds=seconds, plan=json.dumps(asdict(plan)))
    os.replace(new, path)


def load(path: Path, plan: Plan) -> tuple[State, int, float]:
    state: State = {"weights": {}, "mean": {}, "square": {}}
    with np.load(path) as file:
        if json.loads(str(file["plan"])) != asdict(plan):
            raise SystemExit(f"{path}: expected a checkpoint of {asdict(plan)}, found one of {file['plan']}")
        for key in file.files:
            part, _, name = key.partition("/")
            if name:
                state[part][name] = jnp.asarray(file[key])
        return state, int(file["step"]), float(file["seconds"])


def train(
    plan: Plan, checkpoint: Path, trunk: Path, say=print, save_every: float = 60.0, limit: float = math.inf
) -> Parameters | None:
    """Trains to the end, from the checkpoint if there is one, else from the trunk if there is one.

    None if it stopped before, after `limit` seconds: the checkpoint has what was reached.
    """
    plain = replace(plan, drop=0.0, gists=0)
    if checkpoint.exists():
        state, step, before = load(checkpoint, plan)
    elif trunk.exists():
        state, step, before = load(trunk, plain)
    else:
        state, step, before = begin(plan), 0, 0.0
    start = saved = time.monotonic()
    while step < plan.steps:
        now = plain if step < plan.trunk else plan
        batch = arrays(draw_batch(now, step))
        state, value = update(state, batch, now, jnp.float32(step), jnp.float32(plan.rate_at(step)))
        step += 1
        seconds = before + time.monotonic() - start
        if step % 25 == 0:
            most = plan.most_lines(step)
            say(f"step {step} of {plan.steps}, {seconds:.0f} s, up to {most} lines: loss {float(value):.4f}")
        if step % 250 == 0 or step == plan.steps:
            shares = [f"{n}: {exactness(state['weights'], now, n, 40, 'watch'):.2f}" for n in (max(5, plan.lines // 2), plan.lines)]
            say(f"step {step}: reasoning without an error, by lines: {', '.join(shares)}")
        if step == plan.trunk and not trunk.exists():
            save(trunk, state, step, seconds, plain)
        if time.monotonic() - saved > save_every or step == plan.steps:
            save(checkpoint, state, step, seconds, plan)
            saved = time.monotonic()
            if step < plan.steps and saved - start > limit:
                return None
    return state["weights"]
