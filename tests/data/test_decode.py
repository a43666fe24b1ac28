"""Every picture becomes uint8 (C, H, W) by the documented conversions, or ends in one line that
names the file."""

import csv
import io
import itertools
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from dino.data import decode
from dino.data.decode import EXTENSIONS, read_image, read_size
from dino.errors import DataError


def read_broken_manifest(shared_data: Path) -> dict[str, str]:
    """File name -> what a plain Pillow script does with it: "FORMAT MODE WxH", or an error."""
    with (shared_data / "broken_MANIFEST.csv").open(encoding="utf-8", newline="") as file:
        return {row[0]: row[-1] for row in list(csv.reader(file))[1:]}


def upright_size(name: str, behaviour: str) -> tuple[int, int]:
    """(H, W) of a sound file after its EXIF rotation."""
    width, height = map(int, behaviour.split()[-1].split("x"))
    return (
        (width, height)
        if name in {"exif_orientation_6.jpg", "exif_orientation_8.jpg"}
        else (height, width)
    )


def test_sound_odd_files_give_uint8_of_their_size(shared_data: Path) -> None:
    sound = {
        name: what
        for name, what in read_broken_manifest(shared_data).items()
        if "Error" not in what
    }
    assert len(sound) > 20
    for name, behaviour in sound.items():
        size = upright_size(name, behaviour)
        for channels in (3, 1):
            image = read_image(shared_data / "broken" / name, channels)
            assert image.shape == (channels, *size), name
            assert image.dtype == torch.uint8, name


def test_bad_files_raise_one_line_that_names_them(shared_data: Path) -> None:
    bad = [name for name, what in read_broken_manifest(shared_data).items() if "Error" in what]
    assert {"truncated_half.jpg", "zero_byte.jpg", "html_404.jpg"} <= set(bad)
    for name in bad:
        with pytest.raises(DataError) as caught:
            read_image(shared_data / "broken" / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_exif_orientation_is_applied(shared_data: Path) -> None:
    upright = read_image(shared_data / "broken" / "exif_orientation_1.jpg").float()
    for orientation in (3, 6, 8):
        turned = read_image(shared_data / "broken" / f"exif_orientation_{orientation}.jpg").float()
        lost = (turned - upright).abs().mean()  # by JPEG's compression, along other blocks
        assert lost < 4.0
        assert lost < 0.2 * (turned.flip(-1) - upright).abs().mean()
        assert lost < 0.2 * (turned.flip(-2) - upright).abs().mean()


def test_a_png_named_jpg_is_read_by_its_content(shared_data: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    shutil.copy(shared_data / "broken" / "png_named.jpg", copy)
    assert torch.equal(read_image(copy), read_image(shared_data / "broken" / "png_named.jpg"))


def test_sixteen_bit_gray_keeps_the_upper_byte(tmp_path: Path) -> None:
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
        gray = read_image(tmp_path / f"ramp.{suffix}", 1)
        assert np.array_equal(gray[0].numpy(), ramp >> 8)
        assert torch.equal(read_image(tmp_path / f"ramp.{suffix}"), gray.expand(3, -1, -1))


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    colors = np.random.RandomState(0).randint(0, 256, (6, 5, 4)).astype(np.uint8)
    colors[0, 0, 3] = 0
    Image.fromarray(colors).save(tmp_path / "alpha.png")
    assert np.array_equal(
        read_image(tmp_path / "alpha.png").permute(1, 2, 0).numpy(), colors[:, :, :3]
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGB", "RGBA"])
def test_every_mode_agrees_with_pillows_own_conversion(mode: str, tmp_path: Path) -> None:
    pixels = np.random.RandomState(1).randint(0, 256, (9, 7, 3)).astype(np.uint8)
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    Image.fromarray(pixels).convert(mode).save(path)
    for channels, wanted in ((3, "RGB"), (1, "L")):
        with Image.open(path) as picture:
            expected = np.asarray(picture.convert(wanted)).reshape(9, 7, channels)
        assert np.array_equal(read_image(path, channels).permute(1, 2, 0).numpy(), expected)


def test_pixels_lie_channels_last_in_memory(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").permute(1, 2, 0).is_contiguous()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(channels=st.sampled_from([1, 2, 3, 4, 8]), height=st.integers(1, 9), width=st.integers(1, 9))
def test_arrays_of_any_channel_count_come_back_unchanged(
    channels: int, height: int, width: int, tmp_path: Path
) -> None:
    pixels = (
        np.random.RandomState(height * 100 + width)
        .randint(0, 256, (height, width, channels))
        .astype(np.uint8)
    )
    np.save(tmp_path / "a.npy", pixels)
    assert np.array_equal(read_image(tmp_path / "a.npy", channels).permute(1, 2, 0).numpy(), pixels)


def test_arrays_named_in_upper_case_are_read(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 4), dtype=np.uint8)
    with (tmp_path / "A.NPY").open("wb") as file:
        np.save(file, pixels)
    assert read_image(tmp_path / "A.NPY", 4).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((4, 4, 3), np.float32), ((4, 4, 3), np.uint16), ((4, 4), np.uint8), ((0, 4, 3), np.uint8)],
    ids=["float", "16-bit", "no channel axis", "empty"],
)
def test_arrays_of_another_kind_are_refused(
    shape: tuple[int, ...], kind: type, tmp_path: Path
) -> None:
    np.save(tmp_path / "odd.npy", np.zeros(shape, kind))
    with pytest.raises(DataError, match=r"odd\.npy must hold uint8 \(H, W, C\) \(got "):
        read_image(tmp_path / "odd.npy")


def test_pickled_arrays_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"object\.npy cannot be decoded") as caught:
        read_image(tmp_path / "object.npy")
    assert "\n" not in str(caught.value)


def test_an_array_with_other_channels_names_both_counts(tmp_path: Path) -> None:
    np.save(tmp_path / "four.npy", np.zeros((2, 2, 4), np.uint8))
    with pytest.raises(DataError, match=r"four\.npy has 4 channels, but `in_chans` is 3"):
        read_image(tmp_path / "four.npy", 3)


def test_a_picture_cannot_give_four_channels(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is a picture; `in_chans` 4 needs \.npy files"):
        read_image(tmp_path / "a.png", 4)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("gone.jpg", "gone.npy"):
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200), extension=st.sampled_from(EXTENSIONS))
def test_arbitrary_bytes_end_in_a_data_error(
    content: bytes, extension: str, tmp_path: Path
) -> None:
    path = tmp_path / f"noise{extension}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="noise"):
        read_image(path)


def test_a_box_is_cut_from_the_stored_picture_before_it_is_turned(tmp_path: Path) -> None:
    pixels = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # a quarter turn
    path = tmp_path / "turned.png"
    Image.fromarray(pixels).save(path, exif=exif)
    assert read_size(path) == read_image(path).shape[1:] == (30, 20)
    assert read_size(path, (5, 2, 15, 10)) == (10, 8)
    assert np.array_equal(
        read_image(path, 1, (5, 2, 15, 10))[0].numpy(), np.rot90(pixels[2:10, 5:15], -1)
    )


def test_a_box_is_cut_to_its_picture(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (30, 20)).save(path)
    assert (
        read_size(path, (25, -3, 90, 90))
        == read_image(path, 3, (25, -3, 90, 90)).shape[1:]
        == (20, 5)
    )
    for read in (read_size, lambda path, box: read_image(path, 3, box)):
        with pytest.raises(
            DataError,
            match=r"wide\.png cannot be decoded: the box \(30, 0, 40, 5\) has no pixel inside",
        ):
            read(path, (30, 0, 40, 5))


def test_sizes_from_headers_are_those_of_the_decoded_pictures(shared_data: Path) -> None:
    sound = {
        name: what
        for name, what in read_broken_manifest(shared_data).items()
        if "Error" not in what
    }
    for name, behaviour in sound.items():
        assert read_size(shared_data / "broken" / name) == upright_size(name, behaviour), name
    for name in ("text.jpg", "zero_byte.jpg", "gone.jpg"):
        with pytest.raises(DataError, match=f"{name} cannot be decoded"):
            read_size(shared_data / "broken" / name)


def test_jpegs_have_pillows_levels_whatever_their_orientation(
    shared_data: Path, tmp_path: Path
) -> None:
    photos = sorted((shared_data / "imagenet_jpegs").rglob("*.JPEG"))[::6]
    coarse = np.random.RandomState(0).randint(0, 256, (5, 7, 3)).astype(np.uint8)
    for orientation in range(10):  # a camera's 0 or 9 says nothing
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        photos.append(tmp_path / f"{orientation}.jpg")
        Image.fromarray(coarse).resize((91, 60)).save(photos[-1], exif=exif)
    for path in photos:
        with Image.open(path) as picture:
            expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
        assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), expected), path


def test_what_follows_a_jpegs_end_is_ignored_and_a_missing_end_is_not(tmp_path: Path) -> None:
    """A camera's padding is no damage; a cut picture is, also where its small preview is whole."""
    content = {}
    for side in (16, 128):
        path = tmp_path / f"{side}.jpg"
        Image.fromarray(
            np.random.RandomState(side).randint(0, 256, (side, side, 3)).astype(np.uint8)
        ).save(path)
        content[side] = path.read_bytes()
    padded, cut, preview = tmp_path / "padded.jpg", tmp_path / "cut.jpg", tmp_path / "preview.jpg"
    padded.write_bytes(content[128] + b"\0" * 100)
    cut.write_bytes(content[128][:-200])
    segment = b"\xff\xe2" + (len(content[16]) + 2).to_bytes(2, "big") + content[16]
    preview.write_bytes(content[128][:2] + segment + content[128][2:-200])
    assert torch.equal(read_image(padded), read_image(tmp_path / "128.jpg"))
    for path in (cut, preview):
        with pytest.raises(DataError, match=f"{path.name} cannot be decoded"):
            read_image(path)


def expect_refusal(path: Path, reason: str) -> None:
    for read in (read_image, read_size):
        with pytest.raises(
            DataError, match=rf"{path.name} cannot be decoded: .*{reason}"
        ) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_only_decoders_of_the_known_formats_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow would start Ghostscript for the first, whatever its name."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("started"))
    eps, icon = tmp_path / "eps.png", tmp_path / "icon.png"
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    Image.new("RGB", (16, 16)).save(icon, "ICO")
    for path in (eps, icon):
        expect_refusal(path, "cannot identify image file")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.tif").mkdir()
    for name in ("pipe.jpg", "endless.png", "folder.tif"):
        expect_refusal(tmp_path / name, "it is not a regular file")
    os.mkfifo(tmp_path / "pipe.npy")
    with pytest.raises(DataError, match=r"pipe\.npy cannot be decoded: it is not a regular file"):
        read_image(tmp_path / "pipe.npy")


def test_a_file_that_is_far_too_large_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "MOST_BYTES", 50)
    (tmp_path / "a.png").write_bytes(bytes(51))
    expect_refusal(tmp_path / "a.png", "it has 51 bytes, more than 50")


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("name", ["gray.jpg", "color.jpg", "color.png", "gray.png"])
def test_text_where_exif_has_numbers_does_not_matter(
    name: str, orientation: int, tmp_path: Path
) -> None:
    """Some programs write a resolution or an exposure time as text."""
    pixels = np.random.RandomState(2).randint(0, 256, (24, 16, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels).convert("L" if name.startswith("gray") else "RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(tmp_path / f"plain-{name}", exif=exif, quality=95)
    picture.save(tmp_path / name, exif=write_exif(orientation), quality=95)
    with Image.open(tmp_path / f"plain-{name}") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert np.array_equal(read_image(tmp_path / name).permute(1, 2, 0), upright)


def write_exif(orientation: int) -> bytes:
    """EXIF data with a resolution whose type is text."""
    number, text = (ExifTags.Base.Orientation, 3, 1, orientation), b"72/1\0"
    words = (ExifTags.Base.XResolution, 2, len(text), 38)  # at byte 38
    rows = struct.pack("<HHHII", 2, *number) + struct.pack("<HHII", *words)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + rows + bytes(4) + text


def test_damaged_exif_data_leave_a_picture_upright(tmp_path: Path) -> None:
    pixels = np.random.RandomState(3).randint(0, 256, (24, 16, 3)).astype(np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, exif=b"Exif\0\0no EXIF at all", quality=95)
        assert read_image(tmp_path / name).shape == (3, 24, 16)
        assert read_size(tmp_path / name) == (24, 16)


def claim(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header claims another size."""
    kinds = (b"\xff\xc0", b"\xff\xc2")  # baseline, progressive
    start = next(place for kind in kinds if (place := content.find(kind)) > 0)
    size = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return content[: start + 5] + size + content[start + 9 :]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("mode", "side"),
    [*itertools.product(["L", "RGB"], [13_300, 700, 64]), ("CMYK", 13_300), ("CMYK", 700)],
)
@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"optimize": True}])
def test_a_jpeg_that_claims_more_than_it_holds_cannot_be_decoded(
    mode: str, side: int, settings: dict[str, bool], tmp_path: Path
) -> None:
    """Decoders fill in gray and warn."""
    noise = np.random.RandomState(4).randint(0, 256, (8, 8, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(out, "JPEG", **settings)
    (tmp_path / "a.jpg").write_bytes(claim(out.getvalue(), side, side))
    for channels in (1, 3):
        with pytest.raises(DataError, match="its header claims|its data end before"):
            read_image(tmp_path / "a.jpg", channels)


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_jpegs_that_really_are_gray_are_read(settings: dict[str, object], tmp_path: Path) -> None:
    pixels = np.full((200, 300, 3), 128, np.uint8)
    pixels[:20, :20] = np.random.RandomState(5).randint(0, 256, (20, 20, 3))
    for number, levels in enumerate((pixels, pixels[100:])):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(levels).save(path, quality=95, **settings)
        with Image.open(path) as picture:
            assert np.array_equal(read_image(path).permute(1, 2, 0), np.asarray(picture))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA", "I;16"])
def test_strips_of_large_pictures_change_no_level(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.RandomState(6).randint(0, 256, (19, 7, 3)).astype(np.uint8)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture = Image.fromarray(pixels)
    (picture.convert("L") if mode == "I;16" else picture).convert(mode).save(path)
    whole = {channels: read_image(path, channels) for channels in (1, 3)}
    monkeypatch.setattr(decode, "STRIP", 7 * 4)
    for channels, image in whole.items():
        assert torch.equal(read_image(path, channels), image)


def test_too_many_pixels_and_too_little_memory_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (20_000, 20_000)).save(path)
    expect_refusal(path, r"Image size \(400000000 pixels\) exceeds limit")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "to_levels", fail)
    Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded: memory is short, MemoryError"):
        read_image(path)
