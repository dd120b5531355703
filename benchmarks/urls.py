"""What the load asks for: 10,000 URLs, each as likely as any other.

They look as those of a web application do: most name a thing by words and numbers, a quarter has a query, one in
twenty has percent-encoded characters in its path. Drawn uniformly they repeat less than the traffic of most sites,
and they are more than l7lb remembers of anything; so what it gains by remembering is not flattered.
"""

from __future__ import annotations

import random
from pathlib import Path
from urllib.parse import quote

COUNT = 10_000
SEED = 1
TEXT = (
    "about account archive article basket blue book calendar category city contact cover design detail edit event "
    "family forum gallery garden green group guide help history image index item kitchen latest library list market "
    "member message music new news notes offer order page people photo place press product profile question report "
    "review search season series shop small status story summer support team topic travel update user video weather"
)
WORDS = TEXT.split()
ACCENTED = ("café", "größe", "niño", "два слова", "très bien", "a b")


def one(chance: random.Random, number: int) -> str:
    """The URL of that number; the numbers make all different."""
    words = [chance.choice(WORDS) for _ in range(chance.randint(1, 4))]
    kind = chance.random()
    if kind < 0.05:
        return f"/{words[0]}/{quote(chance.choice(ACCENTED))}/{number}"
    if kind < 0.30:
        return f"/{'/'.join(words)}?id={number}&sort={chance.choice(WORDS)}&page={chance.randint(1, 20)}"
    if kind < 0.50:
        return f"/static/{'-'.join(words)}.{number:08x}.{chance.choice(('js', 'css', 'png', 'svg'))}"
    return f"/{words[0]}/{number}/{'-'.join(words)}"


def urls() -> list[str]:
    """All of them, the same each time."""
    chance = random.Random(SEED)
    return [one(chance, number) for number in range(COUNT)]


def write(folder: Path) -> Path:
    """A file with one a line, in a folder; made where it is missing."""
    path = folder / "urls"
    if not path.exists():
        path.write_text("\n".join(urls()) + "\n")
    return path
