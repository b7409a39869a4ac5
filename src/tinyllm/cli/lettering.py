"""How wide a text is, so that boxes can be made to fit before anything is drawn.

The widths are those of Open Sans, which the pictures ask for first; each text is then told to take exactly the
width that was reckoned with, so it fits its box in whatever font a viewer has.
"""

from __future__ import annotations

import unicodedata

#: Advance widths of the characters from space to `~`, in thousandths of the font's size.
_ADVANCES = (
    *(260, 264, 398, 646, 572, 827, 729, 219, 295, 295, 551, 572, 259, 322, 263, 367, 572, 572, 572, 572, 572, 572),
    *(572, 572, 572, 572, 263, 263, 572, 572, 572, 432, 896, 632, 646, 630, 726, 556, 516, 727, 737, 279, 269, 612),
    *(522, 899, 753, 778, 602, 778, 617, 548, 551, 729, 596, 923, 578, 559, 572, 327, 367, 327, 572, 438, 277, 556),
    *(612, 479, 612, 562, 336, 543, 613, 252, 252, 525, 252, 926, 613, 602, 612, 612, 409, 477, 356, 613, 500, 775),
    *(523, 501, 469, 375, 549, 375, 572),
)
_BOLD = 1.06


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """The width of `text` in a font of `size`, in the unit of `size`. Zero for an empty text."""
    thousandths = sum(map(_advance, text))
    return round(thousandths / 1_000 * size * (_BOLD if bold else 1), 1)


def _advance(character: str) -> int:
    number = ord(character) - ord(" ")
    if 0 <= number < len(_ADVANCES):
        return _ADVANCES[number]
    if unicodedata.combining(character) or unicodedata.category(character) in ("Cf", "Mn", "Me"):
        return 0
    # What fills a square in East Asian type, does so in any font; other scripts are about as wide as small Latin.
    return 1_000 if unicodedata.east_asian_width(character) in "WF" else 620
