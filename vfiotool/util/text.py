"""Text from outside that is shown to the user."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text for a single line of a terminal: each character that is not printable becomes a ``?``.

    Names of processes, volumes and mount points, and captures of other machines, can contain control
    characters that move the cursor or change the terminal's state.
    """
    return "".join(character if character.isprintable() else "?" for character in text)
