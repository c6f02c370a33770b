"""Which word pieces to keep: the choice behind `prune.vocabulary`.

Nothing is learned here: every piece that is kept has a trained row in the table already.
"""

from __future__ import annotations

import heapq
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

from edgesdk.wordpiece import WordPiece, split

Characters = Literal["ascii", "scripts", "all"]


def base_pieces(tokenizer: WordPiece, words: Iterable[str], characters: Characters) -> set[str]:
    """Special tokens, and the single characters of the old vocabulary (alone, and with `##` where a word can go on
    with them) that are in `alphabet`. Words over them are never [UNK]."""
    wanted = alphabet(tokenizer, words, characters)
    kept = set(tokenizer.special)
    for character in wanted:
        if character in tokenizer.pieces:
            kept.add(character)
        # Punctuation is a word by itself: its `##` piece can never be used.
        if tokenizer.prefix + character in tokenizer.pieces and len(tokenizer.words(f"a{character}a")) == 1:
            kept.add(tokenizer.prefix + character)
    return kept


def alphabet(tokenizer: WordPiece, words: Iterable[str], characters: Characters) -> set[str]:
    """Characters that have a piece of their own in the old vocabulary and are

    - ASCII, in the words, or quotation marks, dashes and the ellipsis, which keyboards put in for ASCII (`ascii`),
    - or letters of a script that a letter of the words belongs to (`scripts`),
    - or any (`all`).
    """
    prefix = tokenizer.prefix
    single = {piece.removeprefix(prefix) for piece in tokenizer.pieces if len(piece.removeprefix(prefix)) == 1}
    seen = set().union(*words) if words else set()
    scripts = {_script(character) for character in seen} - {None}

    def wanted(character: str) -> bool:
        if characters == "all" or character.isascii() or character in seen or character == "…":
            return True
        if unicodedata.category(character) in ("Pi", "Pf", "Pd"):
            return True
        return characters == "scripts" and _script(character) in scripts

    return {character for character in single if wanted(character)}


def _script(character: str) -> str | None:
    """The script of a letter: the first word of its Unicode name; None for what is no plain letter."""
    if unicodedata.category(character) not in ("Ll", "Lu", "Lo"):
        return None
    return unicodedata.name(character, "").partition(" ")[0] or None


def frequent(tokenizer: WordPiece, counts: Mapping[str, int], base: set[str], size: int) -> set[str]:
    """`base` and the pieces that the old tokenizer uses most on words with `counts`, `size` in all; then lower ids."""
    uses: Counter[str] = Counter()
    for word, count in counts.items():
        for piece in split(word, tokenizer.pieces, tokenizer.prefix):
            uses[piece] += count
    order = sorted((piece for piece in uses if piece not in base), key=lambda p: (-uses[p], tokenizer.ids[p]))
    return filled(tokenizer, base | set(order[: size - len(base)]), size)


def rebuilt(tokenizer: WordPiece, counts: Mapping[str, int], base: set[str], size: int) -> set[str]:
    """`base` and the pieces with which words with `counts` become fewest tokens, `size` in all.

    From the whole vocabulary downwards (as unigram vocabularies are made, Kudo 2018, arXiv:1804.10959): the piece in
    use whose words grow least without it goes, and they are split anew, until `size` pieces are in use. What else is
    in the old vocabulary serves as a replacement: where "transferring" goes, "transfer" and "##ring" may come.
    """
    return filled(tokenizer, _Shrinking(tokenizer, counts, base).down_to(size), size)


def filled(tokenizer: WordPiece, kept: set[str], size: int) -> set[str]:
    """`kept`, and pieces of the lowest ids until there are `size`: vocabularies are sorted by frequency. Reserved
    pieces like [unused7] come last."""
    others = [piece for piece in tokenizer.tokens if piece and piece not in kept]
    others.sort(key=lambda piece: piece.startswith("[") and piece.endswith("]") and len(piece) > 2)
    return kept | set(others[: max(0, size - len(kept))])


class _Shrinking:
    """Pieces in use besides the base (`users`: piece → words), with what it would cost to do without each: Σ count ·
    (pieces more) over its words; `growth` holds the addends, word → piece → tokens."""

    def __init__(self, tokenizer: WordPiece, counts: Mapping[str, int], base: set[str]) -> None:
        self.tokenizer, self.base = tokenizer, base
        self.available = set(tokenizer.pieces)
        self.counts: dict[str, int] = {}
        self.growth: dict[str, dict[str, int]] = {}
        self.users: defaultdict[str, set[str]] = defaultdict(set)
        self.cost: Counter[str] = Counter()
        self.heap: list[tuple[int, int, str]] = []
        characters = base - tokenizer.special
        assert characters <= self.available
        for word, count in counts.items():
            # What is [UNK] with single characters alone might become it: such words have no say.
            if split(word, characters, tokenizer.prefix):
                self.counts[word] = count
                self._enter(word)
        for piece in self.users:
            self._push(piece)

    def down_to(self, size: int) -> set[str]:
        """Base and the pieces that are left in use."""
        while len(self.base) + len(self.users) > size:
            cost, _, piece = heapq.heappop(self.heap)
            if piece in self.users and cost == self.cost[piece]:
                self._remove(piece)
        return self.base | set(self.users)

    def _remove(self, piece: str) -> None:
        self.available.discard(piece)
        touched: set[str] = set()
        for word in sorted(self.users[piece]):
            touched.update(self.growth[word])
            self._leave(word)
            self._enter(word)
            touched.update(self.growth[word])
        for changed in touched & set(self.users):
            self._push(changed)

    def _enter(self, word: str) -> None:
        pieces = split(word, self.available, self.tokenizer.prefix)
        self.growth[word] = {}
        for piece in set(pieces) - self.base:
            longer = split(word, self.available, self.tokenizer.prefix, without=piece)
            self.growth[word][piece] = self.counts[word] * (len(longer) - len(pieces))
            self.cost[piece] += self.growth[word][piece]
            self.users[piece].add(word)

    def _leave(self, word: str) -> None:
        for piece, growth in self.growth[word].items():
            self.cost[piece] -= growth
            self.users[piece].discard(word)
            if not self.users[piece]:
                del self.users[piece]

    def _push(self, piece: str) -> None:
        """Of equal cost, the piece with the higher id (the rarer one) goes first."""
        heapq.heappush(self.heap, (self.cost[piece], -self.tokenizer.ids[piece], piece))
