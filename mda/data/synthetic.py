"""Documents generated from seeded templates, with planted and labelled repetition.

Every template draws a small cast of random identifiers and uses each of them many times, so a
model that copies from its own context predicts the document well and one that does not cannot.
`salad` is the counterpart: words drawn independently, nothing to copy.
"""

from collections.abc import Callable, Iterator
from random import Random

from mda.types import Document

_ONSETS = "b c d f g h j k l m n p q r s t v w x z br cl dr fl gr kr pl st tr zw".split()
_VOWELS = "a e i o u ae io ou ee y".split()
_CODAS = " n r s t x k m ld rn st ck".split(" ")


def word(rng: Random, syllables: tuple[int, int] = (1, 3)) -> str:
    """A pronounceable random word; about 10^2 to 10^7 of them, depending on the syllables."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.randint(*syllables))
    )


def identifier(rng: Random) -> str:
    """A random name as programs have them: a word, two words joined, a code, or hex digits."""
    kind = rng.randrange(5)
    if kind == 0:
        return f"{word(rng)}_{word(rng)}"
    if kind == 1:
        return f"{rng.randrange(16**6):06x}"
    if kind == 2:
        return f"{word(rng, (1, 1)).upper()}-{rng.randrange(10_000)}"
    return word(rng, (2, 3))


def xml(rng: Random) -> str:
    """Records under random tag and attribute names, each value from a short list."""
    root, row, *tags = (identifier(rng).lower() for _ in range(rng.randint(4, 6)))
    values = [identifier(rng) for _ in range(rng.randint(4, 8))]
    lines = [f'<?xml version="1.0"?>\n<{root}>']
    for _ in range(rng.randint(6, 20)):
        lines.append(f'  <{row} id="{rng.choice(values)}">')
        lines += [f"    <{tag}>{rng.choice(values)}</{tag}>" for tag in tags]
        lines.append(f"  </{row}>")
    return "\n".join([*lines, f"</{root}>\n"])


def latex(rng: Random) -> str:
    """A tabular whose cells come from a short list of random words and numbers."""
    columns = rng.randint(3, 5)
    cells = [identifier(rng).replace("_", r"\_") for _ in range(rng.randint(5, 10))]
    head = " & ".join(rf"\textbf{{{rng.choice(cells)}}}" for _ in range(columns))
    body = [
        rf"{' & '.join(rng.choice(cells) for _ in range(columns))} \\"
        for _ in range(rng.randint(8, 24))
    ]
    return "\n".join(
        [r"\begin{tabular}{" + "l" * columns + "}", head + r" \\ \hline", *body]
        + [r"\end{tabular}", rf"\label{{tab:{rng.choice(cells)}}}", ""]
    )


def records(rng: Random) -> str:
    """JSON objects that share random keys and draw their values from a short list."""
    keys = [identifier(rng) for _ in range(rng.randint(3, 5))]
    values = [identifier(rng) for _ in range(rng.randint(4, 8))]
    rows = [
        "{" + ", ".join(f'"{key}": "{rng.choice(values)}"' for key in keys) + "}"
        for _ in range(rng.randint(6, 20))
    ]
    return "[\n  " + ",\n  ".join(rows) + "\n]\n"


def log(rng: Random) -> str:
    """Log lines of a few recurring components, messages and request ids."""
    hosts = [identifier(rng) for _ in range(rng.randint(2, 4))]
    events = [" ".join(word(rng) for _ in range(3)) for _ in range(rng.randint(2, 5))]
    requests = [f"{rng.randrange(16**8):08x}" for _ in range(rng.randint(2, 5))]
    clock = rng.randrange(86_400)
    lines = []
    for _ in range(rng.randint(10, 40)):
        clock += rng.randrange(20)
        stamp = f"{clock // 3600 % 24:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}"
        lines.append(
            f"{stamp} {rng.choice(('INFO', 'WARN', 'DEBUG'))} [{rng.choice(hosts)}] "
            f"{rng.choice(events)} request={rng.choice(requests)}"
        )
    return "\n".join([*lines, ""])


def salad(rng: Random) -> str:
    """Words drawn independently: text without repetition to copy."""
    return " ".join(word(rng) for _ in range(rng.randint(60, 200))) + ".\n"


TEMPLATES: dict[str, Callable[[Random], str]] = {
    "xml": xml,
    "latex": latex,
    "json": records,
    "log": log,
    "salad": salad,
}


def generate(
    weights: dict[str, float], n_bytes: int, seed: int, prefix: str = "generated_"
) -> Iterator[Document]:
    """Yield documents labelled `prefix + template` until about `n_bytes` of text are out.

    `weights` maps a template's name to its share of the bytes; every template has its own
    generator, so adding one leaves the others' documents as they were.
    """
    total = sum(weights.values())
    for name, weight in weights.items():
        rng = Random(f"{seed}:{name}")
        left = n_bytes * weight / total
        while left > 0:
            text = TEMPLATES[name](rng)
            left -= len(text.encode())
            yield Document(label=prefix + name, text=text, source=f"template:{name}")
