"""Pictures, label PNGs and DICOM files that are damaged, far too large, or of another kind than they say."""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image

from tests.data.made_dicom import dicom
from tests.hostile.cases import EITHER, REFUSED, SAFE, Case
from tests.hostile.world import IDS, SHAPE

PIXELS = np.arange(SHAPE[0] * SHAPE[1], dtype=np.uint16).reshape(SHAPE)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int = 26, height: int = 20, *, more: bytes = b"", data: bytes | None = None, depth: int = 8, colour: int = 0
) -> bytes:
    """A PNG with other parts than an honest one."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = (
        zlib.compress(bytes((width + 1) * height) if width * height < 1 << 20 else bytes(100)) if data is None else data
    )
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@cache
def bomb(size: int = 1 << 28) -> bytes:
    """Zeros, packed to a thousandth."""
    return zlib.compress(bytes(size), 1)


def saved(mode: str, kind: str, size=(26, 20), **options) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def tiff(entries: list[tuple[int, int, int, int]], more: bytes = b"") -> bytes:
    """A TIFF of one directory of (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + struct.pack("<I", 0) + more


def _pngs() -> Iterator[tuple[str, bytes, str]]:
    for kind in (b"zTXt", b"iTXt", b"iCCP"):
        content = {b"zTXt": b"a\0\0" + bomb(), b"iTXt": b"a\0\1\0\0\0" + bomb(), b"iCCP": b"a\0\0" + bomb()}[kind]
        yield f"{kind.decode()} bomb", png(more=chunk(kind, content)), EITHER if kind == b"iCCP" else REFUSED
    yield "100,000 x 100,000", png(100_000, 100_000), REFUSED
    yield "30,000 x 30,000", png(30_000, 30_000), REFUSED
    yield "12,000 x 12,000", png(12_000, 12_000, data=bomb(12_001 * 12_000)), REFUSED
    yield "2^31 - 1 wide", png(2**31 - 1, 1), REFUSED
    yield "no width", png(0, 20), REFUSED
    yield "no data", png(data=b""), REFUSED
    yield "data of another kind", png(data=b"x" * 100), REFUSED
    yield "too little data", png(data=zlib.compress(bytes(30))), REFUSED
    yield "too much data", png(data=bomb()), SAFE
    yield "17 bits", png(depth=17), REFUSED
    yield "colour 9", png(colour=9), REFUSED
    yield "indexed without colours", png(colour=3), SAFE
    yield "no end", png()[:-12], REFUSED
    yield "a wrong checksum", png()[:-20] + b"\xff" * 4 + png()[-16:], REFUSED
    yield "a length beyond the file", png()[:33] + struct.pack(">I", 2**31 - 1) + png()[37:], REFUSED
    yield "many parts", png(more=chunk(b"tEXt", b"a\0b") * 100_000), SAFE
    yield "an animation", saved("L", "PNG", save_all=True, append_images=[Image.new("L", (26, 20), 9)]), SAFE
    yield "a filter that is none", png(data=zlib.compress((b"\x09" + bytes(26)) * 20)), REFUSED
    yield "one pixel", saved("L", "PNG", (1, 1)), SAFE


def _jpegs(good: bytes) -> Iterator[tuple[str, bytes, str]]:
    at = good.index(b"\xff\xc0") + 5
    yield "60,000 x 60,000", good[:at] + struct.pack(">HH", 60_000, 60_000) + good[at + 4 :], REFUSED
    yield "9,000 x 9,000", good[:at] + struct.pack(">HH", 9_000, 9_000) + good[at + 4 :], REFUSED
    yield "no height", good[:at] + struct.pack(">HH", 0, 26) + good[at + 4 :], REFUSED
    yield "a start alone", good[:2], REFUSED
    yield "cut in half", good[: len(good) // 2], REFUSED
    yield "cut before the end", good[:-30], REFUSED
    yield "no tables", good.replace(b"\xff\xdb", b"\xff\xfe"), REFUSED
    yield "a million comments", good[:2] + b"\xff\xfe\0\2" * 300_000 + good[2:], SAFE
    yield "CMYK", saved("CMYK", "JPEG"), SAFE
    yield "an Exif bomb", saved("L", "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x01" * 3000), SAFE


def _tiffs(good: bytes) -> Iterator[tuple[str, bytes, str]]:
    def of(width, height, **other):
        entries = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1), 273: (4, 1, 8),
                   277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, 520)}  # fmt: skip
        entries |= {int(tag): value for tag, value in other.items()}
        return tiff([(tag, *value) for tag, value in entries.items()], bytes(1000))

    yield "100,000 x 100,000", of(100_000, 100_000), REFUSED
    yield "9,000 x 9,000 of nothing", of(9_000, 9_000), REFUSED
    yield "no width", of(0, 20), REFUSED
    yield "strips outside", of(26, 20, **{"273": (4, 1, 2**31)}), REFUSED
    yield "4 billion strips", of(26, 20, **{"273": (4, 2**32 - 1, 8)}), REFUSED
    yield "an unknown compression", of(26, 20, **{"259": (3, 1, 9999)}), REFUSED
    yield "a compression that it is not", of(26, 20, **{"259": (3, 1, 5)}), REFUSED
    yield "33 bits", of(26, 20, **{"258": (3, 1, 33)}), REFUSED
    yield "60,000 samples", of(26, 20, **{"277": (3, 1, 60_000)}), REFUSED
    yield "no directory", b"II*\0\xff\xff\xff\x7f", REFUSED
    yield "a directory in itself", good[:4] + struct.pack("<I", 4) + good[8:], REFUSED
    yield "cut in half", good[: len(good) // 2], REFUSED
    yield "two pages", saved("L", "TIFF", save_all=True, append_images=[Image.new("L", (26, 20))]), REFUSED
    values = np.full(SHAPE, np.nan, np.float32)
    for name, pixels in {"nan": values, "inf": values * 0 + np.inf, "nan and one": np.where(PIXELS == 3, 1, values).astype("f4"),
                         "3e38": np.where(PIXELS == 3, 3e38, -3e38).astype("f4")}.items():  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(np.nan_to_num(pixels, nan=np.nan) if name != "inf" else np.full(SHAPE, np.inf, "f4")).save(
            file, "TIFF"
        )
        yield f"pixels {name}", file.getvalue(), SAFE


def _others() -> Iterator[tuple[str, str, bytes, str]]:
    yield "a.png", "a GIF", saved("L", "GIF"), REFUSED
    yield "a.png", "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(../ran) (w) file\n", REFUSED
    yield "a.png", "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://localhost:9/x"/></svg>', REFUSED
    yield "a.png", "PDF", b"%PDF-1.4\n", REFUSED
    yield "a.png", "empty", b"", REFUSED
    yield "a.png", "a text", b"film", REFUSED
    yield "a.png", "HTML", b"<html>404</html>", REFUSED
    yield "b.jpg", "a BMP", saved("L", "BMP"), SAFE
    yield "b.jpg", "a BMP of 2^31", b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 8, 0, 0, 0, 0, 0, 0), REFUSED  # fmt: skip
    yield "a.png", "a PPM of 10^9", b"P5 1000000000 1000000000 255\n", REFUSED
    yield "a.png", "a PPM with words", b"P5 x y z\n", REFUSED
    yield "a.png", "JPEG 2000 of nothing", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(100), REFUSED


def _dicoms(folder: Path) -> Iterator[tuple[str, Any, str]]:
    def made(**fields):
        return partial(_made, PIXELS * 10, fields)

    for name, fields in {
        "no pixels": {"PixelData": None}, "empty pixels": {"PixelData": b""}, "few pixels": {"PixelData": bytes(100)},
        "colour": {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "frames": {"NumberOfFrames": 2},
        "a million frames": {"NumberOfFrames": 10**6}, "negative frames": {"NumberOfFrames": -1}, "no rows": {"Rows": 0},
        "no size": {"Rows": None, "Columns": None}, "60,000 squared": {"Rows": 60_000, "Columns": 60_000},
        "7 bits": {"BitsAllocated": 7}, "64 bits": {"BitsAllocated": 64}, "no bits": {"BitsAllocated": None},
        "palette": {"PhotometricInterpretation": "PALETTE COLOR"}, "no kind": {"PhotometricInterpretation": None},
        "more stored than allocated": {"BitsStored": 40}, "a sign that is none": {"PixelRepresentation": 7},
    }.items():  # fmt: skip
        yield (
            name,
            made(**fields),
            REFUSED if name not in ("no kind", "negative frames", "more stored than allocated") else SAFE,
        )
    for name, fields in {
        "slope 0": {"RescaleSlope": "0", "RescaleIntercept": "0"}, "slope huge": {"RescaleSlope": "1e300", "RescaleIntercept": "0"},
        "slope nan": {"RescaleSlope": "nan", "RescaleIntercept": "0"},
        "window 0": {"WindowCenter": "1", "WindowWidth": "0"}, "window negative": {"WindowCenter": "1", "WindowWidth": "-5"},
        "window nan": {"WindowCenter": "nan", "WindowWidth": "nan"}, "spacing 0": {"PixelSpacing": ["0", "0"]},
        "spacing negative": {"PixelSpacing": ["-1", "-1"]}, "spacing nan": {"PixelSpacing": ["nan", "1"]}, "spacing huge": {"PixelSpacing": ["1e300", "1e300"]},
        "all padding": {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 65535}, "inverted": {"PhotometricInterpretation": "MONOCHROME1"},
        "spacing of one": {"PixelSpacing": "1"}, "magnified by nan": {"ImagerPixelSpacing": ["1", "1"], "EstimatedRadiographicMagnificationFactor": "nan"},
    }.items():  # fmt: skip
        yield name, made(**fields), SAFE
    slope = _made(PIXELS, {"RescaleSlope": "7777", "RescaleIntercept": "0"}, folder / "slope.dcm")
    yield "slope a word", slope.replace(b"7777", b"word"), SAFE
    yield "deflated bomb", _deflated, REFUSED
    yield "a look-up table of nothing", _lut, SAFE
    for syntax in (pydicom.uid.JPEG2000Lossless, pydicom.uid.JPEGBaseline8Bit, pydicom.uid.RLELossless, "1.2.3.4.5"):
        yield f"packed as {syntax}, which it is not", partial(_packed, syntax), REFUSED
    good = made()(folder / "good.dcm")
    for share in (0.02, 0.1, 0.3, 0.6, 0.95):
        yield f"cut at {share}", good[: int(share * len(good))], REFUSED
    yield "the mark alone", bytes(128) + b"DICM", REFUSED
    yield "a text", b"film", REFUSED
    yield "sequences in each other", bytes(128) + b"DICM" + b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000, REFUSED
    yield (
        "a length of 4 GB",
        good[: -len(PIXELS.tobytes()) - 4] + b"\xfe\xff\xff\xff" + good[-len(PIXELS.tobytes()) :],
        SAFE,
    )
    for place in range(140, 420, 28):
        changed = bytearray(good)
        changed[place] ^= 0x7F
        yield f"byte {place} changed", bytes(changed), SAFE


def _made(pixels: np.ndarray, fields: dict, path: Path) -> bytes:
    import warnings

    path.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pydicom.config.disable_value_validation():
            words = {
                name: value for name, value in fields.items() if value is not None and isinstance(value, (str, list))
            }
            dicom(path, pixels, **{name: value for name, value in fields.items() if name not in words})
            if words:
                found = pydicom.dcmread(path)
                for name, value in words.items():
                    setattr(found, name, value)
                found.save_as(path)
    return path.read_bytes()


def _deflated(path: Path) -> None:
    content = _made(PIXELS, {}, path)
    found = pydicom.dcmread(io.BytesIO(content))
    found.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    head = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(head, found.file_meta)
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(48)) + packer.flush()
    path.write_bytes(bytes(128) + b"DICM" + head.getvalue() + packed)


def _lut(path: Path) -> None:
    _made(PIXELS, {}, path)
    found = pydicom.dcmread(path)
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [0, 0, 16], b"", "US"
    found.ModalityLUTSequence = [table]
    found.save_as(path)


def _packed(syntax: str, path: Path) -> None:
    _made(PIXELS, {}, path)
    found = pydicom.dcmread(path)
    found.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8nothing" * 9])
    found["PixelData"].is_undefined_length = True
    found.file_meta.TransferSyntaxUID = pydicom.uid.UID(str(syntax))
    found.save_as(path, enforce_file_format=False)


def films(world: Path) -> Iterator[Case]:
    def case(kind, name, file, change, verdict):
        return Case(kind, name, "predict", f"films/{file}", change, verdict)

    for name, change, verdict in _pngs():
        yield case("PNG", name, "a.png", change, verdict)
    for name, change, verdict in _jpegs((world / "films/b.jpg").read_bytes()):
        yield case("JPEG", name, "b.jpg", change, verdict)
    for name, change, verdict in _tiffs((world / "films/c.tif").read_bytes()):
        yield case("TIFF", name, "c.tif", change, verdict)
    for file, name, change, verdict in _others():
        yield case("other pictures", name, file, change, verdict)
    for name, change, verdict in _dicoms(world.parent):
        yield case("DICOM", name, "d.dcm", change, verdict)
    for name in ("a\nb.png", "\x1b[2Jx.png", "a b.png", "x" * 240 + ".png", "-rf.png", "%2e%2e.png", "caf\udce9.png"):
        content = (world / "films/a.png").read_bytes()
        yield case("file names", ascii(name[:20]), name, partial(_written, content), SAFE)


def _written(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def labels(world: Path) -> Iterator[Case]:
    good = (world / f"png/Edema/{IDS[0]}.png").read_bytes()
    folder = "png/Edema"

    def case(name, change, verdict=REFUSED, file=f"{folder}/{IDS[0]}.png"):
        return Case("label PNG", name, "png", file, change, verdict)

    for name, change, verdict in _pngs():
        yield case(name, change, verdict)
    for name, pixels in {"three values": PIXELS % 3, "grey": PIXELS % 256}.items():
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        yield case(name, file.getvalue())
    yield case("a JPEG", saved("L", "JPEG"))
    yield case("another size", saved("L", "PNG", (5, 5)), SAFE)
    for share in (0.0, 0.3, 0.8):
        yield case(f"cut at {share}", good[: int(share * len(good))])
    for place in range(30, len(good), max(1, len(good) // 20)):
        changed = bytearray(good)
        changed[place] ^= 0x10
        yield case(f"byte {place} changed", bytes(changed), EITHER)
    for name in ("%2E%2E", "a%2Fb", "%00", "%0A", "a%5Cb", "-x", "%1B"):
        yield case(f"task {name}", good, REFUSED, f"png/{name}/{IDS[0]}.png")
    for name in ("%00", "%0A", "%1B"):
        yield case(f"id {name}", good, REFUSED, f"{folder}/{name}.png")
    for name in ("%2E%2E%2F%2E%2E%2Fx", "%2Fetc%2Fpasswd", "%3Cb%3E"):
        yield case(f"id {name}", good, SAFE, f"{folder}/{name}.png")


def segmentations(world: Path) -> Iterator[Case]:
    file = f"seg/{IDS[0]}.dcm"
    good = (world / file).read_bytes()

    def edited(change):
        def apply(path: Path) -> None:
            found = pydicom.dcmread(io.BytesIO(good))
            with pydicom.config.disable_value_validation():
                change(found)
                path.unlink()
                found.save_as(path)

        return apply

    def case(name, change, verdict=REFUSED):
        return Case("DICOM SEG", name, "seg", file, change, verdict)

    def segment(number, **values):
        return edited(lambda f: [setattr(f.SegmentSequence[number], k, v) for k, v in values.items()])

    for name, label in {
        "a separator": "Ede/ma",
        "the parent": "..",
        "empty": "",
        "a backslash": "a\\b",
        "an escape": "\x1b[2J",
    }.items():
        yield case(f"label {name}", segment(0, SegmentLabel=label))
    yield case("two of one label", segment(1, SegmentLabel="Edema"))
    yield case("two of one number", segment(1, SegmentNumber=1))
    yield case("a number of nobody", segment(1, SegmentNumber=77))
    for name, values in {
        "fractional": {"SegmentationType": "FRACTIONAL"}, "no rows": {"Rows": 0}, "60,000 squared": {"Rows": 60_000, "Columns": 60_000},
        "few pixels": {"PixelData": b"\0\0"}, "empty pixels": {"PixelData": b""}, "three frames": {"NumberOfFrames": 3},
        "a million frames": {"NumberOfFrames": 10**6}, "8 bits": {"BitsAllocated": 8, "BitsStored": 8}, "colour": {"SamplesPerPixel": 3},
    }.items():  # fmt: skip
        yield case(name, edited(lambda f, v=values: [setattr(f, k, x) for k, x in v.items()]))
    for name in (
        "SegmentSequence",
        "PerFrameFunctionalGroupsSequence",
        "Rows",
        "PixelData",
        "SegmentationType",
        "NumberOfFrames",
    ):
        verdict = SAFE if name == "NumberOfFrames" else REFUSED
        yield case(f"no {name}", edited(lambda f, n=name: delattr(f, n)), verdict)
    yield case("no groups", edited(lambda f: setattr(f, "PerFrameFunctionalGroupsSequence", [])))
    yield case("an image", (world / "films/d.dcm").read_bytes())
    for share in (0.0, 0.1, 0.5, 0.9, 0.99):
        yield case(f"cut at {share}", good[: int(share * len(good))])
    yield case("deflated bomb", _deflated)
    for place in range(150, len(good), len(good) // 25):
        changed = bytearray(good)
        changed[place] ^= 0x41
        yield case(f"byte {place} changed", bytes(changed), SAFE)
