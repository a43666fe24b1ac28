"""Pictures of segmentation errors: image, truth, prediction and error as contact sheet and video.

Shapes: H, W pixels of a frame; h, w pixels of a picture with four panels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dino.data.decode import read_image
from dino.data.label_maps import ScoredClip, ScoredFrame, read_label_map
from dino.runtime.context import make_output_folder
from dino.runtime.folder_lock import hold_folder
from dino.runtime.ownership import check_own
from dino.runtime.progress import Progress
from dino.visualization.pictures import Pixels, save_picture
from dino.visualization.video import write_video

PANEL_WIDTH = 480  # pixels, at most
CAPTION = 16  # pixels, height of the caption above each panel
SHEET_FRAMES = 8
FPS = 10  # slow enough to see where an error begins
WRONG = (255, 0, 0)


def draw_clips(clips: Sequence[ScoredClip], folder: Path, *, ignored: int | None) -> None:
    """Write FOLDER/CLIP/FRAME.jpg per frame, and per clip a contact sheet and a video.

    These are CLIP.png and CLIP.mp4.

    Args:
        clips: Clips whose frames all have an image of the size of their label maps.
        folder: Created if missing.
        ignored: A true label whose pixels never count as errors.

    Raises:
        DataError: A file cannot be decoded.
        OptionError: A file cannot be written.
    """
    with hold_folder(make_output_folder(str(folder), "`pictures`"), first=True):
        check_own((path for clip in clips for path in _list_pictures(clip, folder)), "pictures")
        _draw_clips(clips, folder, ignored)


def _draw_clips(clips: Sequence[ScoredClip], folder: Path, ignored: int | None) -> None:
    progress = Progress(sum(len(clip.frames) for clip in clips), f"pictures in {folder}")
    for clip in clips:
        make_output_folder(str(folder / clip.name), flag="`pictures`")
        _draw_clip(clip, folder, ignored, progress)
    progress.close()


def _list_pictures(clip: ScoredClip, folder: Path) -> list[Path]:
    """The files that a clip's pictures replace."""
    stems = [frame.truth.stem for frame in clip.frames]
    pictures = [folder / clip.name / f"{stem}.jpg" for stem in stems]
    return [folder / f"{clip.name}.mp4", folder / f"{clip.name}.png", *pictures]


def draw_frame(frame: ScoredFrame, colors: Pixels, ignored: int | None) -> Pixels:
    """Draw image, truth and prediction as color overlays, and errors in red: (h, w, 3) uint8.

    Args:
        frame: A frame with an image.
        colors: (256, 3) uint8, the color of each label.
        ignored: A true label whose pixels never count as errors.

    Raises:
        DataError: A file cannot be decoded.
    """
    image = read_image(str(frame.image)).permute(1, 2, 0).numpy()
    truth, predicted = (read_label_map(path).labels for path in (frame.truth, frame.prediction))
    wrong = truth != predicted
    if ignored is not None:
        wrong &= truth != ignored
    gray = image.mean(axis=2, keepdims=True) / 2
    panels = (
        (frame.truth.stem, image),
        ("truth", _blend(image, colors[truth])),
        ("prediction", _blend(image, colors[predicted])),
        (f"error: {wrong.mean():.2%} of pixels", np.where(wrong[..., None], WRONG, gray)),
    )
    return _join(panels)


def read_colors(path: Path, palette: bytes) -> Pixels:
    """Colors of all labels, (256, 3) uint8: a label map's own, completed from `palette`."""
    colors: Pixels = np.frombuffer(palette, dtype=np.uint8).reshape(-1, 3).copy()
    own = np.frombuffer(read_label_map(path).palette or b"", dtype=np.uint8).reshape(-1, 3)
    colors[: len(own)] = own
    return colors


def _draw_clip(clip: ScoredClip, folder: Path, ignored: int | None, progress: Progress) -> None:
    colors = read_colors(clip.first, clip.palette)
    chosen = set(np.linspace(0, len(clip.frames) - 1, SHEET_FRAMES).round().astype(int).tolist())
    sheet = []
    with write_video(folder / f"{clip.name}.mp4", rate=FPS) as video:
        for index, frame in enumerate(progress.follow(clip.frames)):
            drawn = draw_frame(frame, colors, ignored)
            save_picture(folder / clip.name / f"{frame.truth.stem}.jpg", drawn)
            video.write(drawn)
            if index in chosen:
                sheet.append(drawn)
    save_picture(folder / f"{clip.name}.png", np.concatenate(sheet))


def _blend(image: Pixels, colors: Pixels) -> Pixels:
    return ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)


def _join(panels: Sequence[tuple[str, Pixels]]) -> Pixels:
    """Arrange captioned panels (H, W, 3) in a row, each at most PANEL_WIDTH wide."""
    height, width = panels[0][1].shape[:2]
    scale = min(1, PANEL_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    joined = Image.new("RGB", (size[0] * len(panels), size[1] + CAPTION))
    write = ImageDraw.Draw(joined)
    for index, (caption, panel) in enumerate(panels):
        picture = Image.fromarray(panel.astype(np.uint8)).resize(size, Image.Resampling.BOX)
        joined.paste(picture, (index * size[0], CAPTION))
        write.text((index * size[0] + 4, 2), caption, fill="white")
    return np.asarray(joined)
