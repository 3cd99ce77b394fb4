"""Small tasks in characters, made by a seed: a model of two layers learns them in minutes, and JAX verifies them.

    arithmetic   12+7=      19          a sum of two numbers of up to `digits` digits
    modular      3+5=       1           a sum modulo `modulus`
    sorting      3142>      1234        `size` digits in rising order
    copying      badc>      badc        `size` letters again
    countdown    2 3 5:13=  2*5+3       the numbers, each once, with + - * make the target

Every problem occurs once, in training or held out. Each comes with a demonstration.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from polopt.data.dataset import DataError
from polopt.data.language import LanguageTask
from polopt.data.prompts import at_least, make_prompts, on_device, padded
from polopt.data.tokenizer import CharacterTokenizer
from polopt.data.verifiers import Answer, Countdown, Goal, Matches

DIGITS = "0123456789"
MOST_DRAWS = 100  # how often, for each problem that is wanted, one is drawn before the space counts as used up
DEFAULT = (512, 128)  # problems to learn from and held out, where there are as many


class Problem(NamedTuple):
    """A prompt and its right completion, and for countdown the numbers and the target."""

    prompt: str
    answer: str
    numbers: tuple[int, ...] = ()
    target: int = 0


class Space(NamedTuple):
    """All problems of a task: how to draw one, how many there are (or a bound), the alphabet, the most characters of an answer, and countdown's
    largest number."""

    draw: Callable[[np.random.Generator], Problem]
    size: int
    alphabet: str
    longest: int
    largest: int = 0


def arithmetic(digits: int = 2) -> Space:
    """a+b= for a and b of up to `digits` digits."""
    at_least("digits", digits, 1)

    def draw(rng):
        a, b = rng.integers(10**digits, size=2).tolist()
        return Problem(f"{a}+{b}=", str(a + b))

    return Space(draw, 10 ** (2 * digits), DIGITS + "+=", digits + 1)


def modular(modulus: int = 23) -> Space:
    """a+b= modulo `modulus`."""
    at_least("modulus", modulus, 2)

    def draw(rng):
        a, b = rng.integers(modulus, size=2).tolist()
        return Problem(f"{a}+{b}=", str((a + b) % modulus))

    return Space(draw, modulus**2, DIGITS + "+=", len(str(modulus - 1)))


def sorting(size: int = 5) -> Space:
    """`size` digits in rising order."""
    at_least("size", size, 1)

    def draw(rng):
        digits = "".join(str(d) for d in rng.integers(10, size=size))
        return Problem(f"{digits}>", "".join(sorted(digits)))

    return Space(draw, 10**size, DIGITS + ">", size)


def copying(size: int = 5, letters: int = 8) -> Space:
    """`size` of the first `letters` letters, again."""
    at_least("size", size, 1)
    if not 1 <= letters <= 26:
        raise DataError(f"letters is {letters}, but a whole number from 1 to 26 is expected; give one.")
    alphabet = "abcdefghijklmnopqrstuvwxyz"[:letters]

    def draw(rng):
        text = "".join(alphabet[i] for i in rng.integers(letters, size=size))
        return Problem(f"{text}>", text)

    return Space(draw, letters**size, alphabet + ">", size)


def countdown(numbers: int = 3, largest: int = 9, target: int = 99) -> Space:
    """`numbers` numbers from 1 to `largest` that make a number from 0 to `target` by + - *, each used once."""
    at_least("numbers", numbers, 2)
    at_least("largest", largest, 1)
    at_least("target", target, 1)
    if largest**numbers >= 2**30 or target >= 2**30:
        raise DataError(
            f"Products of {numbers} numbers up to {largest}, and targets up to {target}, must stay below 2^30; take fewer or smaller ones."
        )

    def draw(rng):
        while True:
            chosen = (1 + rng.integers(largest, size=numbers)).tolist()
            operators = rng.choice(list("+-*"), size=numbers - 1)
            expression = str(chosen[0]) + "".join(f"{o}{n}" for o, n in zip(operators, chosen[1:]))
            value = evaluate(expression)
            if 0 <= value <= target:
                given = tuple(sorted(chosen))
                return Problem(f"{' '.join(map(str, given))}:{value}=", expression, given, value)

    size = math.comb(largest + numbers - 1, numbers) * (target + 1)
    return Space(draw, size, DIGITS + "+-* :=", numbers * len(str(largest)) + numbers - 1, largest)


def evaluate(expression: str) -> int:
    """The value of an expression of whole numbers, + - and *."""
    total = 0
    for term in expression.replace("-", "+-").split("+"):
        if term:
            factors = term.removeprefix("-").split("*")
            total += (-1 if term.startswith("-") else 1) * math.prod(map(int, factors))
    return total


SPACES: dict[str, Callable[..., Space]] = {
    "arithmetic": arithmetic,
    "modular": modular,
    "sorting": sorting,
    "copying": copying,
    "countdown": countdown,
}


def make(name: str, *, count: int | None, held_out: int | None, seed: int, steps: int, model: Any, **options) -> LanguageTask:
    """A synthetic task: `count` problems to learn from and `held_out` others, both by default as many as there are, up to 512 and 128."""
    space = SPACES[name](**options)
    wanted = tuple(default if given is None else given for given, default in zip((count, held_out), DEFAULT))
    if count is None and held_out is None and sum(wanted) > space.size:
        held = max(1, space.size // 5)
        wanted = space.size - held, held
    for what, given in zip(("count", "held_out"), wanted):
        at_least(what, given, 1)
    problems = _drawn(name, space, sum(wanted), seed, exact=count is not None or held_out is not None)
    learnt = round(len(problems) * wanted[0] / sum(wanted))
    tokenizer = CharacterTokenizer(space.alphabet)
    stop = tokenizer.stop
    prompts = [tokenizer.encode(p.prompt) for p in problems]
    answers = [tokenizer.encode(p.answer) for p in problems]
    if space.largest:
        facts = Goal(np.array([p.target for p in problems], np.int32), _counts([p.numbers for p in problems], space.largest))
        verifier = Countdown(tokenizer.encode("0")[0], tuple(tokenizer.encode("+-*")), stop)
    else:
        facts, verifier = Answer(*padded(answers, width=space.longest)), Matches(stop)
    whole = on_device(make_prompts(prompts, facts=facts, demonstrations=[[*a, *stop] for a in answers]))
    return LanguageTask(
        model=model,
        prompts=whole.take(slice(0, learnt)),
        held_out=whole.take(slice(learnt, None)),
        verifier=verifier,
        steps=steps,
        length=space.longest + 1,
        stop=stop,
        tokenizer=tokenizer,
        name=name,
    )


def _drawn(name: str, space: Space, wanted: int, seed: int, exact: bool) -> list[Problem]:
    """Different problems, as many as are wanted, or all that draws find where that is fewer and `exact` is off."""
    rng = np.random.default_rng(seed)
    found: dict[str, Problem] = {}
    for _ in range(MOST_DRAWS * wanted):
        if len(found) == wanted:
            break
        problem = space.draw(rng)
        found.setdefault(problem.prompt, problem)
    if len(found) < wanted and exact:
        raise DataError(
            f"{name} has only about {len(found)} different problems, but {wanted} are asked for; ask for fewer, or make the problems larger."
        )
    return list(found.values())


def _counts(numbers, largest: int) -> np.ndarray:
    counts = np.zeros((len(numbers), largest + 1), np.int32)
    for row, given in zip(counts, numbers):
        for number, often in Counter(given).items():
            row[number] = often
    return counts
