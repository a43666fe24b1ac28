"""Flags: attention maps of images and videos."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # PictureConfig
    "image_path": Spec("one or more images or folders of images; by default a synthetic image"),
    "image_size": Spec(
        "height and width in pixels to which each image is resized; one number: its shorter side"
    ),
    # VideoConfig
    "input_path": Spec("a video file or a folder of frames"),
    "output_path": Spec("folder for frames/, attention/ and the video; created if missing"),
    "resize": Spec(
        "height and width in pixels to which each frame is resized; one number: its shorter side; "
        "by default frames keep their size"
    ),
    "video_only": Spec("only make a video of the images in the folder --input_path", switch=True),
    "fps": Spec("frames per second of the video; by default those of the input video"),
    "video_format": Spec("mp4 (H.264) or avi (MPEG-4)"),
}
