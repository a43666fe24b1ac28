"""Flags: attention maps, of pictures and videos."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # PictureConfig
    "image_path": Spec("one or more images or folders of images; without it a drawn one"),
    "image_size": Spec(
        "height and width in pixels that each image is stretched to; one number: its shorter side"
    ),
    # VideoConfig
    "input_path": Spec("a video file or a folder of frames"),
    "output_path": Spec("folder of frames/, attention/ and the video; made where it is missing"),
    "resize": Spec(
        "height and width in pixels that each frame is stretched to; one number: its shorter side; without it as it is"
    ),
    "video_only": Spec("only make a video of the pictures in the folder --input_path", switch=True),
    "fps": Spec("frames a second of the video; without the flag those of the input video"),
    "video_format": Spec("mp4 (H.264) or avi (MPEG-4)"),
}
