"""Stores of maps, training sets and relation labels that point elsewhere, declare what they do not hold, or lie."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from tests.hostile.cases import REFUSED, SAFE, SAME, Case
from tests.hostile.sandbox import put
from tests.hostile.world import IDS, copy_of

# Kind, command that reads it, file, its datasets and the one of texts.
FILES = (
    ("saliency store", "masks_of_maps", "run/cams/saliency.h5", ("ids", "maps", "probabilities", "sizes"), "ids"),
    ("train_set", "pseudo", "run/hdf5_files/train_set", ("cxr_base_names", "cxr_images", "cxr_cams"), "cxr_base_names"),
    ("ir_labels", "relations", "run/hdf5_files/ir_labels", ("ir_labels",), None),
)


def edit(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    """A change of the opened file."""

    def changed(path: Path) -> None:
        with copy_of(path) as file:
            change(file)

    return changed


def swapped(name: str, make: Callable[[h5py.File, np.ndarray], object]) -> Callable[[Path], None]:
    """Another dataset of this name, made from the values of the first."""

    def change(file: h5py.File) -> None:
        values = file[name][()]
        del file[name]
        make(file, values)

    return edit(change)


def as_dataset(name: str, values: Callable[[np.ndarray], np.ndarray], **options) -> Callable[[Path], None]:
    return swapped(name, lambda file, old: file.create_dataset(name, data=values(old), **options))


def external_link(name: str, path: Path) -> None:
    with h5py.File(path.with_name("other.h5"), "w") as other:
        with h5py.File(path) as file:
            file.copy(name, other)
    swapped(name, lambda file, _: file.__setitem__(name, h5py.ExternalLink("other.h5", name)))(path)


def soft_link(name: str, path: Path) -> None:
    def make(file, values):
        file["elsewhere"] = values
        file[name] = h5py.SoftLink("/elsewhere")

    swapped(name, make)(path)


def raw_storage(name: str, target: str, path: Path) -> None:
    def make(file, values):
        size = values.size * max(values.dtype.itemsize, 1)
        kind = values.dtype if values.dtype != object else "S8"
        file.create_dataset(name, values.shape, kind, external=[(target, 0, size)])

    swapped(name, make)(path)


def virtual(name: str, path: Path) -> None:
    def make(file, values):
        kind = values.dtype if values.dtype != object else h5py.string_dtype()
        layout = h5py.VirtualLayout(values.shape, kind)
        layout[...] = h5py.VirtualSource("other.h5", name, values.shape)
        file.create_virtual_dataset(name, layout)

    with h5py.File(path.with_name("other.h5"), "w") as other, h5py.File(path) as file:
        file.copy(name, other)
    swapped(name, make)(path)


def _of_every_dataset(name: str, is_text: bool) -> Iterator[tuple[str, Callable, str]]:
    yield "missing", edit(lambda file: file.__delitem__(name)), REFUSED
    yield "an external link", partial(external_link, name), REFUSED
    yield (
        "a link to nowhere",
        swapped(name, lambda f, _: f.__setitem__(name, h5py.ExternalLink("/etc/passwd", "x"))),
        REFUSED,
    )
    yield "a soft link", partial(soft_link, name), REFUSED
    yield "a link to itself", swapped(name, lambda f, _: f.__setitem__(name, h5py.SoftLink(f"/{name}"))), REFUSED
    yield "stored in /etc/passwd", partial(raw_storage, name, "/etc/passwd"), REFUSED
    yield "stored in another file", partial(raw_storage, name, "other.bin"), REFUSED
    yield "virtual", partial(virtual, name), REFUSED
    yield "a group", swapped(name, lambda file, _: file.create_group(name)), REFUSED
    yield "a named type", swapped(name, lambda file, _: file.__setitem__(name, np.dtype("f4"))), REFUSED
    yield "a scalar", swapped(name, lambda file, _: file.create_dataset(name, data=1)), REFUSED
    yield "without a shape", swapped(name, lambda file, _: file.create_dataset(name, data=h5py.Empty("f4"))), REFUSED
    yield "one row less", as_dataset(name, lambda old: old[:-1]), REFUSED
    yield "one axis more", as_dataset(name, lambda old: old[None]), REFUSED
    yield "no row", as_dataset(name, lambda old: old[:0]), REFUSED
    yield "10^12 rows", swapped(name, partial(_declared, name, 10**12)), REFUSED
    yield "10^7 rows", swapped(name, partial(_declared, name, 10**7)), REFUSED
    yield (
        "compounds",
        swapped(name, lambda f, old: f.create_dataset(name, old.shape, np.dtype([("a", "f4"), ("b", "i4")]))),
        REFUSED,
    )
    yield "references", swapped(name, lambda f, old: f.create_dataset(name, old.shape, h5py.ref_dtype)), REFUSED
    yield "lists", swapped(name, lambda f, old: f.create_dataset(name, old.shape, h5py.vlen_dtype("i4"))), REFUSED
    if not is_text:
        yield "texts", swapped(name, lambda f, old: f.create_dataset(name, old.shape, h5py.string_dtype())), REFUSED
        yield "64 bits", as_dataset(name, lambda old: old.astype("f8")), REFUSED
        yield "16 bits", as_dataset(name, lambda old: old.astype("i2")), REFUSED
        yield "complex", as_dataset(name, lambda old: old.astype("c8")), REFUSED
        yield "compressed", as_dataset(name, lambda old: old, compression="gzip", shuffle=True, fletcher32=True), SAME
        yield "another filter", as_dataset(name, lambda old: old.astype("i4"), scaleoffset=4, chunks=True), REFUSED
        yield (
            "enumerated",
            swapped(name, lambda f, old: f.create_dataset(name, old.shape, h5py.enum_dtype({"a": 1}, "u1"))),
            REFUSED,
        )


def _declared(name: str, rows: int, file: h5py.File, values: np.ndarray) -> None:
    """A dataset that says it has `rows`, and holds a few."""
    kind = values.dtype if values.dtype != object else h5py.string_dtype()
    shape = (rows, *values.shape[1:])
    file.create_dataset(name, shape, kind, chunks=(1, *values.shape[1:]), compression="gzip")[0] = values[0]


def _of_the_tasks() -> Iterator[tuple[str, Callable, str]]:
    for name, tasks in {
        "none": "", "no JSON": "Edema", "a number": "5", "numbers": "[1, 2]", "an object": '{"a": 1}', "twice": '["Edema", "Edema"]',
        "a separator": '["Edema", "../x"]', "one": '["Edema"]', "none in the list": "[]", "deep": "[" * 100_000,
        "an escape": json.dumps(["\x1b[2J"]), "many": json.dumps([f"t{n}" for n in range(5000)]), "NaN": "[NaN]",
    }.items():  # fmt: skip
        yield f"tasks {name}", edit(partial(_attribute, "tasks", tasks[:60_000])), REFUSED
    yield "tasks missing", edit(lambda file: file.attrs.__delitem__("tasks")), REFUSED
    yield "tasks as array", edit(partial(_attribute, "tasks", np.array([b"Edema"]))), REFUSED
    yield "tasks as bytes", edit(partial(_attribute, "tasks", np.bytes_(b"\xff\xfe"))), REFUSED
    yield "tasks as number", edit(partial(_attribute, "tasks", 3)), REFUSED


def _attribute(name: str, value: object, file: h5py.File) -> None:
    file.attrs[name] = value


def _of_the_ids(name: str) -> Iterator[tuple[str, Callable, str]]:
    text = h5py.string_dtype()
    for what, ids, verdict in (
        ("twice", [IDS[0]] * 3, REFUSED), ("empty", ["", *IDS[1:]], REFUSED), ("an escape", ["\x1b[2J", *IDS[1:]], REFUSED),
        ("a line's end", ["a\nb", *IDS[1:]], REFUSED), ("long", ["a" * 2_000_000, *IDS[1:]], REFUSED),
        ("outside", ["../../x", *IDS[1:]], SAFE), ("absolute", ["/etc/passwd", *IDS[1:]], SAFE),
    ):  # fmt: skip
        yield f"ids {what}", swapped(name, lambda f, _, ids=ids: f.create_dataset(name, data=ids, dtype=text)), verdict
    not_utf8 = np.array([b"\xff\xfe", b"a", b"b"], object)
    yield "ids not UTF-8", swapped(name, lambda f, _: f.create_dataset(name, data=not_utf8, dtype=text)), REFUSED
    yield (
        "ids of fixed length",
        swapped(name, lambda f, old: f.create_dataset(name, data=np.array(old.tolist(), "S40"))),
        SAME,
    )


def _of_the_bytes(world: Path, file: str) -> Iterator[tuple[str, bytes | str, str]]:
    good = (world / file).read_bytes()
    for part in (0, 1, 8, 64, 512, len(good) // 4, len(good) // 2, len(good) - 1):
        yield f"cut after {part if part < 600 else f'{100 * part // len(good)}%'}", good[:part], REFUSED
    yield "zeros", bytes(len(good)), REFUSED
    yield "JSON", "{}", REFUSED
    yield "HDF5 of other things", b"\x89HDF\r\n\x1a\n" + b"\xff" * 2000, REFUSED
    yield "behind 512 bytes", b"x" * 512 + good, SAFE
    for place in (9, 13, 24, 40, 60, 100):
        changed = bytearray(good)
        changed[place] ^= 0xFF
        yield f"byte {place} changed", bytes(changed), SAFE


def _values(kind: str) -> Iterator[tuple[str, Callable, str]]:
    def cell(name, place, value):
        return edit(lambda file: file[name].__setitem__(place, value))

    if kind == "saliency store":
        for value in (1.5, -0.5, np.inf):
            yield f"probability {value}", cell("probabilities", (0, 5), value), SAFE
        for what, size in {
            "zero": (0, 5),
            "negative": (-1, 5),
            "huge": (2**31 - 1,) * 2,
            "a line": (1, 200_000),
        }.items():
            yield f"size {what}", cell("sizes", 0, size), REFUSED
        for what, value in {
            "zero": 0,
            "negative": -1,
            "huge": 10**9,
            "a text": "32",
            "a part": 3.5,
            "a list": [32, 32],
        }.items():
            yield f"image_size {what}", edit(partial(_attribute, "image_size", value)), REFUSED
        yield "image_size missing", edit(lambda file: file.attrs.__delitem__("image_size")), REFUSED
        for value in (np.nan, np.inf, -np.inf, 3e38):
            yield f"maps of {value}", cell("maps", slice(None), value), SAFE
        yield "maps of 10^8 cells", swapped("maps", lambda f, old: f.create_dataset("maps", (3, old.shape[1], 3000, 3000), "f4", chunks=(1, 1, 3000, 3000), compression="gzip")), REFUSED  # fmt: skip
        yield "a chunk of gigabytes", swapped("maps", lambda f, old: f.create_dataset("maps", (3, old.shape[1], 3, 3), "f4", chunks=(3, old.shape[1], 3, 3), maxshape=(None,) * 4, compression="gzip")), SAFE  # fmt: skip
    if kind == "ir_labels":
        for value in (2, 7, 254):
            yield f"label {value}", cell("ir_labels", (0, 5, 3, 3), value), SAFE
            yield f"labels of {value}", cell("ir_labels", slice(None), value), REFUSED
        yield "another size", as_dataset("ir_labels", lambda old: old[..., :16, :16]), REFUSED
        yield "not square", as_dataset("ir_labels", lambda old: old[..., :16, :]), REFUSED
    if kind == "train_set":
        yield "not square", as_dataset("cxr_images", lambda old: old[..., :16, :]), REFUSED
        for value in (np.nan, np.inf, 3e38):
            yield f"maps of {value}", cell("cxr_cams", slice(None), value), SAFE


def hdf5(world: Path) -> Iterator[Case]:
    for kind, command, file, datasets, texts in FILES:
        for name in datasets:
            for what, change, verdict in _of_every_dataset(name, name == texts):
                yield Case(kind, f"{name}: {what}", command, file, change, verdict)
        for what, change, verdict in (*_of_the_tasks(), *_of_the_bytes(world, file), *_values(kind)):
            yield Case(kind, what, command, file, change, verdict)
        for what, change, verdict in _of_the_ids(texts) if texts else ():
            yield Case(kind, what, command, file, change, verdict)
        yield Case(kind, "a dataset more", command, file, edit(lambda f: f.create_dataset("more", data=[1])), SAME)
        verdict = SAFE if kind == "ir_labels" else REFUSED  # then there is one source less to choose from
        yield Case(kind, "a folder", command, file, lambda path: (path.unlink(), path.mkdir()), verdict)
        yield Case(kind, "gone", command, file, Path.unlink, verdict)
        yield Case(kind, "a text", command, file, partial(put, content="maps"))
