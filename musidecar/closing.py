"""What is closed at the end of a `with`."""

from typing import Self


class Closing:
    """A `with` calls its close()."""

    def close(self) -> None:
        """Gives back what it holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
