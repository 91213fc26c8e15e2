"""How many phantoms of what size: what decides their bytes. Light, so that a command line can offer the presets."""

from dataclasses import dataclass

from chexseg.errors import UsageError

SPLITS = ("train", "valid", "test")
SMALLEST = 32  # pixels: below, a nodule is less than one


@dataclass(frozen=True)
class Spec:
    """What decides the bytes: `size` is the typical longer side in pixels; `cover` gives every run of ten patients all
    tasks."""

    num_train: int
    num_valid: int
    num_test: int
    size: int
    seed: int
    cover: bool = False

    def count(self, split: str) -> int:
        return {"train": self.num_train, "valid": self.num_valid, "test": self.num_test}[split]

    def check(self) -> None:
        """UsageError where the images would show nothing."""
        if self.size < SMALLEST:
            raise UsageError(f"--size {self.size}: at least {SMALLEST} pixels, or nothing can be seen")


PRESETS = {"default": Spec(1200, 90, 150, 350, 0), "tiny": Spec(32, 16, 12, 64, 0, cover=True)}
