"""Settings of each evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import (
    EpochConfig,
    OutputConfig,
    RateConfig,
    ReportConfig,
    chosen,
    derived,
    setting,
)
from dino.data.config import DataConfig, LimitConfig
from dino.models.config import BackboneConfig, LayerConfig
from dino.runtime.config import FrozenConfig, LaunchConfig


@dataclass(frozen=True, kw_only=True)
class VoteConfig:
    """The weighted k-NN vote (paper, section 4.1)."""

    nb_knn: tuple[int, ...] = setting((10, 20, 100, 200), least=1)
    temperature: float = setting(0.07, least=0.0001)
    index: str = setting("exact", choices=("exact", "ivf"))
    dump_features: str | None = None
    load_features: str | None = None
    max_batches: int | None = setting(None, least=1)
    dump_tb_events: str | None = None


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where an evaluation keeps its features."""

    store_on_device: bool = True


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(LayerConfig):
    """The linear classifier on frozen features (paper, section 4.1)."""

    n_last_blocks: int | None = derived(4, least=1)
    avgpool_patchtokens: bool | None = derived(False)
    num_labels: int | None = setting(None, least=1)
    val_freq: int = setting(1, least=1)
    val_first: int = setting(1, least=1)
    scale_lr: bool = True
    evaluate: bool = False
    cache_features: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageSizeConfig:
    """Image size in retrieval and copy detection."""

    imsize: int = setting(224, least=1)


@dataclass(frozen=True, kw_only=True)
class CopydaysBackboneConfig(BackboneConfig):
    """The paper's network for copy detection."""

    arch: str | None = derived("vit_base")
    patch_size: int | None = derived(8, least=1)


@dataclass(frozen=True, kw_only=True)
class CopydaysConfig:
    """Images in addition to Copydays: each a folder, nested or not, or a text file of paths."""

    distractors_path: str | None = None
    whitening_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class LandmarkConfig:
    """Revisited Oxford and Paris."""

    dataset: str = setting("roxford5k", choices=("roxford5k", "rparis6k"))
    multiscale: bool = False
    crop_queries: bool = False


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Features to write, and their file."""

    output: str | None = None
    layers: tuple[int, ...] | None = setting(None, least=1)
    patches: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(FrozenConfig):
    """Settings of every evaluation of a frozen backbone."""

    data: DataConfig = DataConfig()


@dataclass(frozen=True, kw_only=True)
class KnnConfig(EvaluationConfig):
    """Score a frozen backbone by weighted k-NN on DATA_PATH/train and val (or validation)."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    knn: VoteConfig = VoteConfig()
    store: StoreConfig = StoreConfig()


@dataclass(frozen=True, kw_only=True)
class CopyDetectionConfig(EvaluationConfig):
    """Find the originals of edited copies. DATA_PATH holds original, strong and more.

    jpegqual/* and crops/* are optional.
    """

    backbone: BackboneConfig = CopydaysBackboneConfig()
    data: DataConfig = DataConfig(batch_size_per_device=16)
    store: StoreConfig = StoreConfig()
    size: ImageSizeConfig = ImageSizeConfig(imsize=320)
    copy_detection: CopydaysConfig = CopydaysConfig()


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(EvaluationConfig):
    """Find images of the same landmark. DATA_PATH holds DATASET/gnd_DATASET.pkl and jpg/*.jpg."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    store: StoreConfig = StoreConfig()
    size: ImageSizeConfig = ImageSizeConfig()
    retrieval: LandmarkConfig = LandmarkConfig()


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvaluationConfig):
    """Train a linear classifier on frozen features of DATA_PATH/train, and score it on val.

    DATA_PATH/validation is an alternative name of DATA_PATH/val.
    """

    data: DataConfig = DataConfig(batch_size_per_device=128)
    linear: ProbeConfig = ProbeConfig()
    rate: RateConfig = RateConfig(lr=0.001)
    limit: LimitConfig = LimitConfig()
    run: EpochConfig = EpochConfig()


@dataclass(frozen=True, kw_only=True)
class FeatureFileConfig(EvaluationConfig):
    """Write the features of every image below DATA_PATH to one file, with file names.

    Images in class folders get labels too.
    """

    data: DataConfig = DataConfig(batch_size_per_device=128)
    features: FeatureConfig = FeatureConfig()


@dataclass(frozen=True, kw_only=True)
class LikenessConfig:
    """What the page shows, and which images count as near-duplicates."""

    shown_images: int = setting(8, least=1, most=200)
    duplicate_similarity: float = setting(0.975, least=-1, most=1)


@dataclass(frozen=True, kw_only=True)
class LookConfig(EvaluationConfig):
    """Show on one page, index.html, what a frozen backbone makes of the images below DATA_PATH."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    limit: LimitConfig = LimitConfig(data_limit=5000)
    likeness: LikenessConfig = LikenessConfig()
    output: OutputConfig = OutputConfig()


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """When driving runs restart from true labels."""

    refresh_label_interval: int | None = derived(50, least=1)

    @property
    def chosen_interval(self) -> int:
        """The chosen number of frames, or its default."""
        return int(chosen(self, "refresh_label_interval"))


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Label maps to compare, and the files to write."""

    dataset_path: str | None = None
    prediction_path: str | None = None
    layout: str | None = setting(None, choices=("davis", "driving"))
    num_classes: int | None = derived(27, least=1, most=256)
    ignore_label: int | None = setting(None, least=0, most=255)
    skip_refreshed: bool = False
    csv: str | None = None
    pictures: str | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentationMetricsConfig:
    """Score predicted label maps: J and F of DAVIS 2017, or the IoU of driving runs."""

    launch: LaunchConfig = LaunchConfig()
    metrics: MetricsConfig = MetricsConfig()
    refresh: RefreshConfig = RefreshConfig()
    report: ReportConfig = ReportConfig()


@dataclass(frozen=True, kw_only=True)
class PropagationConfig:
    """How labels propagate from frame to frame (paper, section 4.2.2)."""

    n_last_frames: int = setting(7, least=1)
    size_mask_neighborhood: int = setting(12, least=0)
    topk: int = setting(5, least=1)
    bs: int = setting(6, least=1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The driving fork's setting for masked-autoencoder weights."""

    path_to_mae_repo: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipsConfig(EvaluationConfig):
    """Segment clips from their first frame's labels with a frozen backbone."""

    # Frames per batch. More than one pays only on a device that a single frame does not fill.
    data: DataConfig = DataConfig(batch_size_per_device=1)
    propagation: PropagationConfig = PropagationConfig()
    output: OutputConfig = OutputConfig()


@dataclass(frozen=True, kw_only=True)
class DavisScoreConfig:
    """Whether the label maps of DAVIS 2017 are scored."""

    score: bool = False


@dataclass(frozen=True, kw_only=True)
class DavisConfig(ClipsConfig):
    """Segment DAVIS 2017's validation split from first-frame labels with a frozen backbone."""

    davis: DavisScoreConfig = DavisScoreConfig()


@dataclass(frozen=True, kw_only=True)
class DrivingConfig(ClipsConfig):
    """Segment driving runs, labeled at regular frames, with a frozen backbone."""

    refresh: RefreshConfig = RefreshConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
