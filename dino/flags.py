"""Every flag of the project, declared once, in groups; and the commands as compositions of groups.

Names and defaults are those of the Gaudi model reference, else of the original; `docs/differences.md` lists departures.
Numbers that change by command (a batch size, say) stand in the command's `DEFAULTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dino.options import flag
from dino.probe_keys import LINEAR_PROBE
from dino.recipes import Meaning


@dataclass(frozen=True, kw_only=True)
class DeviceFlags:
    """Where the work runs."""

    device: str | None = flag(
        None,
        "hpu where the Habana bridge is installed, else cuda where available, else cpu",
        choices=("hpu", "cuda", "cpu", "ipu"),
    )
    lazy_mode: bool | None = flag(
        None, "hpu only: lazy execution mode or not; lazy wherever the software has it, else compiled"
    )


@dataclass(frozen=True, kw_only=True)
class PrecisionFlags:
    """In which number formats training computes; the optimiser is always fp32."""

    precision: str | None = flag(
        None,
        "number format of forward and backward: ops means the two op lists decide; wins over the older flags below; "
        "float32, float16 are fp32, fp16; masterweight (ipu only): float32 weights in float16 ops",
        choices=("fp32", "bf16", "fp16", "ops", "float32", "float16", "masterweight"),
    )
    use_fp16: bool = flag(True, "fp16 with loss scaling; acts on cuda only")
    hmp: bool = flag(False, "mixed precision by op lists, the same as --precision ops", switch=True)
    hmp_bf16: str = flag("ops_bf16.txt", "file of ops that run in bf16, one a line", spelling="--hmp-bf16")
    hmp_fp32: str = flag("ops_fp32.txt", "file of ops that run in fp32, one a line", spelling="--hmp-fp32")
    hmp_opt_level: str = flag(
        "O1",
        "O1: the op lists decide; O2: all in bf16 but the fp32 list",
        choices=("O1", "O2"),
        spelling="--hmp-opt-level",
    )
    hmp_verbose: bool = flag(False, "print each op's number format once", spelling="--hmp-verbose", switch=True)
    compile: bool | None = flag(
        None,
        "compile student and teacher with torch.compile; not given: on hpu with upstream's torch, which has no lazy "
        "mode, and nowhere else",
        switch=True,
    )


@dataclass(frozen=True, kw_only=True)
class CompiledFlags:
    """What only a device asks that compiles the whole step (ipu); names and defaults of the published IPU code."""

    pipeline: tuple[int, ...] | None = flag(
        None, "blocks of the backbone on each IPU, one number an IPU; without it all is on one IPU", least=0
    )
    replica: int = flag(1, "copies of the model, each with its own part of a batch; under poprun it decides", least=1)
    ga: int | None = flag(
        None, "micro-batches a copy accumulates before an update; the same as --accumulate_steps", least=1
    )
    di: int = flag(1, "updates a call of the compiled step", least=1)
    rts: bool = flag(True, "share the optimiser's state out among copies (replicated tensor sharding)")
    ipu_per_replica: int = flag(8, "IPUs of a copy, told to poprun's side", least=1)
    output_mode: str = flag(
        "all",
        "which micro-batches' centres and losses come back: all, or the last of each copy",
        choices=("all", "final"),
    )
    async_type: str = flag(
        "normal",
        "rebatch: loader processes make --rebatched_worker_size images at a time; async and normal: whole batches",
        choices=("async", "rebatch", "normal"),
    )
    rebatched_worker_size: int = flag(128, "images a loader process hands over at a time with rebatch", least=1)
    loss_scale: float | None = flag(None, "factor on the loss; 128 with float16 and masterweight, else 1", least=1e-6)
    executable_cache_dir: str = flag("./cachedir", "folder of compiled programs", spelling="--executable-cache-dir")
    ema_so: str | None = flag(None, "compiled ExpMovAvg op for the teacher; without it nothing needs compiling")
    gelu_type: str = flag("erf", "erf: the exact GELU; tanh: the device's own form", choices=("erf", "tanh"))
    set_freq: int = flag(1, "iterations between two changes of learning rate, weight decay and momentum", least=1)


@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """How the processes of one run find each other; the launcher's environment says the rest."""

    dist_url: str = flag("env://", "where the processes meet: env://, tcp://host:port or file:///shared/path")
    local_rank: int = flag(0, "given by torch.distributed.launch; accepted, not needed", also=("--local-rank",))


@dataclass(frozen=True, kw_only=True)
class BackboneFlags:
    """Which network."""

    arch: str = flag(
        "vit_small",
        "vit_mini, vit_tiny, vit_small, vit_base, vit_large, deit_tiny, deit_small, any torchvision classification "
        "model (resnet50), xcit_* of timm, or mae (a masked autoencoder's ViT, told by its weights)",
    )
    patch_size: int = flag(16, "side of a ViT patch in pixels; smaller is better and slower", least=1)


@dataclass(frozen=True, kw_only=True)
class ChannelFlags:
    """What an image is made of."""

    in_chans: int = flag(
        3, "channels of an image: 3 (colour), 1 (gray), or those of .npy files; colour ops need 3", least=1
    )


@dataclass(frozen=True, kw_only=True)
class StudentFlags(ChannelFlags):
    """What the student's network has beyond the backbone's name."""

    drop_path_rate: float = flag(0.1, "stochastic depth of the student, 0 to 1", least=0, most=1)
    out_dim: int = flag(65536, "prototypes K, the width of the head's output; small data sets want less", least=2)
    norm_last_layer: bool = flag(True, "keep the prototypes at unit length; more stable for the small networks")
    use_bn_in_head: bool = flag(False, "batch norm in the head's hidden layers")
    init_from: str | None = flag(
        None, "start a new run from these weights, as --pretrained_weights has them (not a resume)"
    )


@dataclass(frozen=True, kw_only=True)
class TeacherFlags:
    """How the teacher follows the student and how sharp its targets are (paper, section 3.1)."""

    momentum_teacher: float = flag(
        0.996, "EMA momentum at the start, rises to 1 by a cosine; small batches want more", least=0, most=1
    )
    warmup_teacher_temp: float = flag(0.04, "teacher temperature at the start", least=1e-4, most=100)
    teacher_temp: float = flag(
        0.04, "teacher temperature after its warm-up; lower it when the loss does not fall", least=1e-4, most=100
    )
    warmup_teacher_temp_epochs: int = flag(0, "epochs of linear temperature warm-up", least=0)


@dataclass(frozen=True, kw_only=True)
class RateFlags:
    """How large a step is."""

    lr: float = flag(
        0.0005, "peak learning rate for a global batch of 256; scaled linearly with the global batch", least=0
    )


@dataclass(frozen=True, kw_only=True)
class OptimFlags(RateFlags):
    """The optimiser and its schedules, all per iteration."""

    optimizer: str = flag("adamw", "update rule", choices=("adamw", "sgd", "lars"))
    eps: float = flag(1e-8, "adamw: added to the root of the second moment", least=0)
    warmup_epochs: int = flag(10, "epochs of linear learning-rate warm-up", least=0)
    min_lr: float = flag(1e-6, "learning rate at the end of the cosine", least=0)
    weight_decay: float = flag(0.04, "weight decay at the start of its cosine", least=0)
    weight_decay_end: float = flag(0.4, "weight decay at the end", least=0)
    clip_grad: float = flag(3.0, "largest gradient norm of each parameter tensor; 0 turns clipping off", least=0)
    freeze_last_layer: int = flag(1, "epochs during which the prototypes do not move", least=0)


@dataclass(frozen=True, kw_only=True)
class CropFlags:
    """Multi-crop: two global views and some local ones (paper, section 3.1)."""

    global_crops_scale: tuple[float, float] = flag((0.4, 1.0), "smallest and largest area of a global crop, 0 to 1")
    local_crops_number: int = flag(8, "local crops per image; 0 turns multi-crop off", least=0)
    local_crops_scale: tuple[float, float] = flag((0.05, 0.4), "smallest and largest area of a local crop, 0 to 1")
    global_crops_size: int = flag(224, "side of a global crop in pixels", least=1)
    local_crops_size: int = flag(96, "side of a local crop in pixels", least=1)


@dataclass(frozen=True, kw_only=True)
class SourceFlags:
    """Which images, and who reads them."""

    data_path: str | None = flag(
        None,
        "a folder of images (with or without class folders), tar shards ('train-{000000..001023}.tar'), a text file "
        "that lists images, or demo",
    )
    num_workers: int = flag(10, "loader processes per device (by default at most one a core)", least=0)


@dataclass(frozen=True, kw_only=True)
class DataFlags(SourceFlags):
    """Which images, and how they are fed."""

    batch_size_per_device: int = flag(32, "images a device sees at a time", also=("--batch_size_per_gpu",), least=1)


@dataclass(frozen=True, kw_only=True)
class LimitFlags:
    """How many of the images to train on."""

    data_limit: int | None = flag(None, "train on this many of the images, evenly spaced over the sorted list", least=1)


@dataclass(frozen=True, kw_only=True)
class TrainDataFlags(LimitFlags):
    """What only training asks of its images."""

    on_bad_image: str = flag("raise", "an unreadable image ends the run, or is replaced", choices=("raise", "skip"))
    augment_on: str = flag(
        "device", "where colours, blur and normalisation are computed; host: in the loaders", choices=("device", "host")
    )
    synthetic_data: bool = flag(
        False, "no images: random pixels made once on the device, to measure its speed alone", switch=True
    )


@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """Where results go."""

    output_dir: str = flag(".", "folder to write to; made where it is missing")


@dataclass(frozen=True, kw_only=True)
class EpochFlags(OutputFlags):
    """How long, and with which random numbers."""

    epochs: int = flag(100, "passes over the images", least=1)
    seed: int = flag(0, "seed of weights, data order, crops and stochastic depth", least=0)


@dataclass(frozen=True, kw_only=True)
class RunFlags(EpochFlags):
    """What pre-training asks besides: how large an update is, and how often to save and score."""

    accumulate_steps: int = flag(1, "batches per update; the global batch grows by this factor", least=1)
    recompute: str = flag(
        "nothing",
        "what the backward pass computes again and so need not be kept in memory, less and less: activations "
        "(normalisations, GELUs), mlp (perceptrons too), blocks; a few percent slower to a fifth",
        choices=("nothing", "activations", "mlp", "blocks"),
    )
    saveckp_freq: int = flag(20, "keep a numbered checkpoint every so many epochs; 0 keeps none", least=0)
    save_every_steps: int = flag(
        0, "also save every so many iterations; 0 saves at the end of each epoch only", least=0
    )
    keep_checkpoints: int = flag(0, "numbered checkpoints to keep, the newest ones; 0 keeps all", least=0)
    eval_knn_every: int = flag(
        0, "epochs between k-NN scores on the val (or validation) folder beside the images", least=0
    )
    preset: str | None = flag(
        None,
        "auto: what is not given of out_dim, momentum, temperatures, warm-ups and lr follows from the number of "
        "images, the global batch and the epochs; each with its reason",
        choices=("auto",),
    )
    dry_run: bool = flag(
        False,
        "two steps on drawn pixels: images/s, memory, FLOPs, the share of each phase and the largest batch; no output",
        switch=True,
    )


@dataclass(frozen=True, kw_only=True)
class NetworkFlags:
    """Which of a checkpoint's networks."""

    checkpoint_key: str = flag("teacher", "which network of the checkpoint: teacher or student")


@dataclass(frozen=True, kw_only=True)
class WeightsFileFlags:
    """Where weights are read from."""

    pretrained_weights: str | None = flag(
        None,
        "a checkpoint or weights file (.pth, .safetensors, .pdparams), a Hugging Face folder, hub:NAME of the "
        "published weights, or timm:NAME; without it the published ones",
    )


@dataclass(frozen=True, kw_only=True)
class WeightsFlags(WeightsFileFlags, NetworkFlags):
    """Which trained backbone an evaluation reads."""

    random_weights: bool = flag(False, "evaluate an untrained network on purpose", switch=True)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Pre-train a vision backbone with DINO. `--data_path demo` needs no data of yours."""

    device: DeviceFlags
    precision: PrecisionFlags
    compiled: CompiledFlags
    launch: LaunchFlags
    backbone: BackboneFlags
    student: StudentFlags
    teacher: TeacherFlags
    optim: OptimFlags
    crops: CropFlags
    data: DataFlags
    train_data: TrainDataFlags
    run: RunFlags
    explicit: frozenset[str] = frozenset()
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReportFlags:
    """Results for programs; people read the log lines."""

    json: str | None = flag(None, "file to write the result to as one JSON object; - means a line on stdout")


@dataclass(frozen=True, kw_only=True)
class AlignFlags:
    """What a device is compared with."""

    reference: str = flag("cpu", "device to compare with, in fp32", choices=("hpu", "cuda", "cpu"))
    steps: int = flag(8, "steps of training that both make", least=2)
    tolerance: float = flag(
        1e-5,
        "largest difference that still counts as equal, over a tensor's largest number where that is above 1",
        least=0,
    )


@dataclass(frozen=True, kw_only=True)
class AlignOptions(TrainOptions):
    """Train a few steps on two devices from the same weights and pixels; a table of how far apart they end.

    python -m dino.devices.align --device ipu --reference cpu; every flag of main_dino.py may follow. Ends with 1 where
    a difference is larger than --tolerance.
    """

    # Small, and in float32 fit for comparison: where a gradient is 0 but for rounding (the keys' bias), a small eps
    # would make a whole step of the rounding.
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "arch": "vit_mini",
        "out_dim": 1024,
        "local_crops_number": 2,
        "batch_size_per_device": 1,
        "epochs": 2,
        "warmup_epochs": 0,
        "lr": 0.02,
        "momentum_teacher": 0.9,
        "drop_path_rate": 0.0,
        "clip_grad": 0.0,
        "eps": 1e-5,
    }

    align: AlignFlags
    report: ReportFlags


@dataclass(frozen=True, kw_only=True)
class KnnFlags:
    """The weighted k-NN vote (paper, section 4.1)."""

    nb_knn: tuple[int, ...] = flag((10, 20, 100, 200), "numbers of neighbours to report", least=1)
    temperature: float = flag(0.07, "temperature of the vote", least=1e-4)
    index: str = flag(
        "exact",
        "search all training images, or by cells of them (faiss), which is faster for millions and misses some",
        choices=("exact", "ivf"),
    )
    dump_features: str | None = flag(None, "folder to write features and labels to")
    load_features: str | None = flag(None, "folder to read features and labels from instead of computing them")
    max_batches: int | None = flag(None, "stop after so many batches a split, for a quick look", least=1)
    dump_tb_events: str | None = flag(None, "folder for TensorBoard events of the extraction")


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """Where an evaluation keeps its features while it needs them."""

    store_on_device: bool = flag(
        True, "keep the features on the device; false keeps them in host memory", also=("--use_cuda",)
    )


@dataclass(frozen=True, kw_only=True)
class LayerFlags:
    """A linear layer that is there already."""

    pretrained_linear: str | None = flag(
        None,
        "file of the linear layer that --evaluate scores; without it OUTPUT_DIR/checkpoint.pth.tar, else the published",
    )


@dataclass(frozen=True, kw_only=True)
class LinearFlags(LayerFlags):
    """The linear classifier on frozen features (paper, section 4.1)."""

    n_last_blocks: int = flag(
        4, "join the CLS tokens of this many last blocks; ViT only (paper: 4 small, 1 base)", least=1
    )
    avgpool_patchtokens: bool = flag(
        False, "join the mean patch token of the last block too; ViT only (paper: false small, true base)"
    )
    num_labels: int | None = flag(None, "classes; by default as many as class folders, which it must equal", least=1)
    val_freq: int = flag(1, "epochs between two validations; the last epoch is always validated", least=1)
    val_first: int = flag(1, "epoch, counted from 1, that is validated first", least=1)
    scale_lr: bool = flag(True, "--lr is for a global batch of 256 and scaled with it; false: it is the rate itself")
    evaluate: bool = flag(False, "train nothing: score a linear layer that is there already", switch=True)
    cache_features: bool = flag(
        False, "compute the features once, of centre crops, and train on them in seconds: no augmentation", switch=True
    )


@dataclass(frozen=True, kw_only=True)
class ImageSizeFlags:
    """The size of images that are searched."""

    imsize: int = flag(
        224, "copy detection: side in pixels of the square images become; retrieval: their longer side at most", least=1
    )


@dataclass(frozen=True, kw_only=True)
class CopyDetectionFlags:
    """Images beside those of Copydays; each a folder, nested or not, or a text file that lists images."""

    distractors_path: str | None = flag(None, "images that are searched too and are no copy of any (paper: 10k)")
    whitening_path: str | None = flag(None, "images from which a whitening of the features is learnt (paper: 20k)")


@dataclass(frozen=True, kw_only=True)
class RetrievalFlags:
    """Revisited Oxford and Paris."""

    dataset: str = flag("roxford5k", "which of the two sets", choices=("roxford5k", "rparis6k"))
    multiscale: bool = flag(False, "average the features of three sizes: 1, 1/sqrt(2) and 1/2")
    crop_queries: bool = flag(False, "cut each query to the box of its landmark, as the benchmark has it", switch=True)


@dataclass(frozen=True, kw_only=True)
class FeatureFileFlags:
    """Which features go to which file."""

    output: str | None = flag(None, "file to write: .npz, .safetensors, .parquet or .csv")
    layers: tuple[int, ...] | None = flag(
        None, "blocks to take, counted from 1; without it the network's output; ViT only", least=1
    )
    patches: bool = flag(False, "also the grid of patch tokens; ViT only, not for .csv", switch=True)


@dataclass(frozen=True, kw_only=True)
class CheckFlags:
    """What makes an image suspicious, and what becomes of the others."""

    min_size: int = flag(
        16, "an image whose shorter side has fewer pixels is tiny; the default is one patch of the usual size", least=1
    )
    clean_list: str | None = flag(
        None,
        "text file to list the images in that are worth training on: without corrupt and tiny ones and repetitions; "
        "it can be a --data_path",
        spelling="--output",
    )


@dataclass(frozen=True, kw_only=True)
class PackFlags:
    """How images become shards."""

    shard_size: int = flag(1000, "images in a shard; the last one may hold fewer", least=1)
    shorter_side: int | None = flag(
        None,
        "scale larger pictures down until their shorter side has so many pixels; the others stay as they are",
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Decode every image of a folder or list, and name what is corrupt, tiny, oddly stored or there twice.

    python -m dino.data.check PATH [flags]; ends with 1 if there is any such image.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {"num_workers": 64}

    source: SourceFlags
    channels: ChannelFlags
    check: CheckFlags
    report: ReportFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Pack a folder of images into tar shards, for training and for the webdataset library.

    python -m dino.data.pack IMAGE_FOLDER OUT [flags]; the same command goes on where it was stopped.
    """

    DEFAULTS: ClassVar[dict[str, Any]] = {"num_workers": 4}

    source: SourceFlags
    output: OutputFlags
    pack: PackFlags
    report: ReportFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class FrozenOptions:
    """What every command that runs a frozen backbone asks."""

    device: DeviceFlags
    launch: LaunchFlags
    backbone: BackboneFlags
    weights: WeightsFlags
    report: ReportFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(FrozenOptions):
    """What every evaluation of a frozen backbone asks."""

    data: DataFlags


@dataclass(frozen=True, kw_only=True)
class KnnOptions(EvaluationOptions):
    """Score a frozen backbone by weighted k-NN on DATA_PATH/train and DATA_PATH/val (or validation)."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size_per_device": 128}

    knn: KnnFlags
    store: StoreFlags


@dataclass(frozen=True, kw_only=True)
class CopyDetectionOptions(EvaluationOptions):
    """Find the originals of edited copies: DATA_PATH holds original, strong and, if there, jpegqual/* and crops/*."""

    DEFAULTS: ClassVar[dict[str, Any]] = {
        "arch": "vit_base",
        "patch_size": 8,
        "batch_size_per_device": 16,
        "imsize": 320,
    }

    store: StoreFlags
    size: ImageSizeFlags
    copy_detection: CopyDetectionFlags


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions(EvaluationOptions):
    """Find the images of the same landmark: DATA_PATH holds DATASET/gnd_DATASET.pkl and DATASET/jpg/*.jpg."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size_per_device": 128}

    store: StoreFlags
    size: ImageSizeFlags
    retrieval: RetrievalFlags


@dataclass(frozen=True, kw_only=True)
class LinearOptions(EvaluationOptions):
    """Train a linear classifier on a frozen backbone, on DATA_PATH/train; score it on DATA_PATH/val (or validation)."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size_per_device": 128, "lr": 0.001}
    NESTED: ClassVar[Mapping[str, Meaning]] = LINEAR_PROBE

    linear: LinearFlags
    rate: RateFlags
    limit: LimitFlags
    run: EpochFlags


@dataclass(frozen=True, kw_only=True)
class FeatureFileOptions(EvaluationOptions):
    """Write the features of every image below DATA_PATH to one file, with file names and, of class folders, labels."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size_per_device": 128}

    features: FeatureFileFlags


@dataclass(frozen=True, kw_only=True)
class MaskFlags:
    """Which patches of an attention map count."""

    threshold: float | None = flag(
        None, "keep only the patches that hold this share of each head's attention, 0 to 1", least=0, most=1
    )


@dataclass(frozen=True, kw_only=True)
class PictureFlags:
    """Which images the attention maps are of."""

    image_path: tuple[str, ...] | None = flag(None, "one or more images or folders of images; without it a drawn one")
    image_size: tuple[int, ...] = flag(
        (480, 480), "height and width in pixels that each image is stretched to; one number: its shorter side", least=1
    )


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(FrozenOptions):
    """Draw what the CLS token of a vision transformer attends to: a map for each head of the last block."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"patch_size": 8}

    pictures: PictureFlags
    mask: MaskFlags
    output: OutputFlags


@dataclass(frozen=True, kw_only=True)
class VideoFlags:
    """From frames to a video."""

    input_path: str | None = flag(None, "a video file or a folder of frames")
    output_path: str = flag("./", "folder of frames/, attention/ and the video; made where it is missing")
    resize: tuple[int, ...] | None = flag(
        None,
        "height and width in pixels that each frame is stretched to; one number: its shorter side; without it as it is",
        least=1,
    )
    video_only: bool = flag(False, "only make a video of the pictures in the folder --input_path", switch=True)
    fps: float = flag(
        30.0, "frames a second of the video; without the flag those of the input video", least=0.1, most=1000
    )
    video_format: str = flag("mp4", "mp4 (H.264) or avi (MPEG-4)", choices=("mp4", "avi"))


@dataclass(frozen=True, kw_only=True)
class AttentionVideoOptions(FrozenOptions):
    """Make a video of what the CLS token of a vision transformer attends to, averaged over the heads."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"patch_size": 8}

    video: VideoFlags
    mask: MaskFlags


@dataclass(frozen=True, kw_only=True)
class RefreshFlags:
    """How driving runs start anew from true labels."""

    refresh_label_interval: int = flag(50, "frames of a run from one true label map to the next", least=1)


@dataclass(frozen=True, kw_only=True)
class SegmentationMetricsFlags:
    """Which label maps are compared, and what is written about it."""

    dataset_path: str | None = flag(
        None, "DAVIS 2017, a folder of driving runs (RUN/image, RUN/segmentation), or one run", also=("--data_path",)
    )
    prediction_path: str | None = flag(None, "folder of the predictions, one folder of PNGs a sequence or run")
    layout: str | None = flag(None, "davis or driving; recognised by the folders", choices=("davis", "driving"))
    num_classes: int = flag(27, "driving: classes; a label beyond them is an error", least=1, most=256)
    ignore_label: int | None = flag(None, "driving: pixels of this true label do not count", least=0, most=255)
    skip_refreshed: bool = flag(
        False, "driving: leave out each --refresh_label_interval-th frame, predicted by its own label", switch=True
    )
    csv: str | None = flag(None, "file to write all figures to as a table")
    pictures: str | None = flag(
        None, "folder for pictures of each frame (image, truth, prediction, error), contact sheets and videos"
    )


@dataclass(frozen=True, kw_only=True)
class SegmentationMetricsOptions:
    """Score predicted label maps: J and F of DAVIS 2017, or intersection over union of driving runs."""

    launch: LaunchFlags
    metrics: SegmentationMetricsFlags
    refresh: RefreshFlags
    report: ReportFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class PropagationFlags:
    """How labels go from frame to frame (paper, section 4.2.2)."""

    n_last_frames: int = flag(7, "frames before the current one that give it labels, besides the first one", least=1)
    size_mask_neighborhood: int = flag(
        12,
        "how far from a position its labels may come, in positions of the feature grid; 0 means any distance",
        least=0,
    )
    topk: int = flag(5, "most similar positions, over all of these frames, whose labels are mixed", least=1)
    bs: int = flag(6, "accepted, as the original takes it and does not use it; see --batch_size_per_device", least=1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderFlags:
    """What the driving fork asks for masked-autoencoder weights."""

    path_to_mae_repo: str | None = flag(None, "accepted, not needed: --arch mae reads the weights by itself")


@dataclass(frozen=True, kw_only=True)
class PropagationOptions(EvaluationOptions):
    """Segment clips from their first frame's labels, by a frozen backbone."""

    # Features of so many frames at a time; more only pays on a device that one frame does not fill.
    DEFAULTS: ClassVar[dict[str, Any]] = {"batch_size_per_device": 1}

    propagation: PropagationFlags
    output: OutputFlags


@dataclass(frozen=True, kw_only=True)
class DavisFlags:
    """What is done with the label maps of DAVIS 2017."""

    score: bool = flag(
        False, "score them too: J and F, as compute_segmentation_metrics.py", spelling="--evaluate", switch=True
    )


@dataclass(frozen=True, kw_only=True)
class DavisOptions(PropagationOptions):
    """Segment every sequence of DAVIS 2017's validation split from its first frame's labels, by a frozen backbone."""

    davis: DavisFlags


@dataclass(frozen=True, kw_only=True)
class DrivingOptions(PropagationOptions):
    """Segment driving runs, labelled every so many frames, by a frozen backbone."""

    refresh: RefreshFlags
    autoencoder: AutoencoderFlags


@dataclass(frozen=True, kw_only=True)
class OutputFileFlags:
    """Where a result goes that is one file, or a folder like one."""

    file_out: str | None = flag(
        None, "where to write: OUT.pth in this project's form, anything else in the other one's", spelling="--output"
    )


@dataclass(frozen=True, kw_only=True)
class ConversionFlags(OutputFileFlags):
    """What becomes of weights."""

    input_size: tuple[int, ...] | None = flag(
        None,
        "height and width in pixels of the images to come, for which a ViT's position embedding is resampled; one "
        "number: a square; without it as it is",
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """Weights of one project in the form of another."""

    backbone: BackboneFlags
    channels: ChannelFlags
    weights: WeightsFlags
    conversion: ConversionFlags
    report: ReportFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class FileFlags(OutputFileFlags):
    """From one file to another."""

    file_in: str | None = flag(None, "checkpoint to read", spelling="--weights")


@dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """Write the plain backbone of a checkpoint: ours, the original's, or of the published IPU code."""

    backbone: BackboneFlags
    files: FileFlags
    network: NetworkFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class IpuCheckpointOptions:
    """Turn a checkpoint of the published IPU code into one of ours, or one of ours (or the original's) into one of it.

    python -m dino.interop.ipu IN OUT
    """

    files: FileFlags
    explicit: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class SubmitFlags:
    """What to ask a cluster for, through submitit."""

    ngpus: int = flag(8, "devices of each node, and so its processes", least=1)
    nodes: int = flag(2, "nodes", least=1)
    timeout: int = flag(2800, "minutes after which the job saves and is queued again", least=1)
    partition: str = flag("learnfair", "Slurm partition")
    use_volta32: bool = flag(False, "GPUs with 32 GB only (Slurm constraint volta32gb)", switch=True)
    comment: str = flag("", "comment handed to Slurm; some clusters ask for one")
    gres: str | None = flag(
        None,
        "what the cluster calls the devices, without their number, as gpu:hl225; by default hpu or ipu where that is "
        "the --device, else GPUs by Slurm's own word",
    )
    cluster: str | None = flag(
        None, "slurm, or local for processes on this machine; slurm where srun is found", choices=("slurm", "local")
    )


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(TrainOptions):
    """Submit a pre-training run to Slurm; every flag of main_dino.py may follow.

    %j in --output_dir stands for the job's number; without the flag it is output/%j. The job's own files lie in
    OUTPUT_DIR/submitit, or, where the number is part of the path, in a folder of that name beside it.
    """

    submit: SubmitFlags


@dataclass(frozen=True, kw_only=True)
class VerifyFlags(OutputFlags):
    """What to look at, how closely and how long."""

    size: str | None = flag(
        None,
        "quick: small networks and few steps, at most four minutes; full: the real ones, at most ten; by default full "
        "on a card and quick on the cpu",
        choices=("quick", "full"),
    )
    only: tuple[int, ...] | None = flag(None, "numbers of the steps to run; all eight by default", least=1, most=8)
    patience: float = flag(1.0, "factor on every time limit, for a machine that is only slow", least=0.1, most=100)


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Find out which modes of a device compute the right numbers, and how fast: a report to send, and a page to read.

    Eight steps, each in processes of its own: facts, product of matrices, golden numbers, operator replay, alignment
    with the CPU, short training, speed, more than one card. Writes OUTPUT_DIR/verify_report.json and verify_report.txt.
    Ends with 1 where a step failed. --lazy_mode leaves out the other modes of hpu.
    """

    device: DeviceFlags
    verify: VerifyFlags
    explicit: frozenset[str] = frozenset()
