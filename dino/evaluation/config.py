"""What each evaluation is asked."""

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
    """Where an evaluation keeps its features while it needs them."""

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
    """The size of images that are searched."""

    imsize: int = setting(224, least=1)


@dataclass(frozen=True, kw_only=True)
class CopydaysBackboneConfig(BackboneConfig):
    """The paper's network for copy detection."""

    arch: str | None = derived("vit_base")
    patch_size: int | None = derived(8, least=1)


@dataclass(frozen=True, kw_only=True)
class CopydaysConfig:
    """Images beside those of Copydays; each a folder, nested or not, or a text file that lists images."""

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
    """Which features go to which file."""

    output: str | None = None
    layers: tuple[int, ...] | None = setting(None, least=1)
    patches: bool = False


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(FrozenConfig):
    """What every evaluation of a frozen backbone asks."""

    data: DataConfig = DataConfig()


@dataclass(frozen=True, kw_only=True)
class KnnConfig(EvaluationConfig):
    """Score a frozen backbone by weighted k-NN on DATA_PATH/train and DATA_PATH/val (or validation)."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    knn: VoteConfig = VoteConfig()
    store: StoreConfig = StoreConfig()


@dataclass(frozen=True, kw_only=True)
class CopyDetectionConfig(EvaluationConfig):
    """Find the originals of edited copies: DATA_PATH holds original, strong and, if there, jpegqual/* and crops/*."""

    backbone: BackboneConfig = CopydaysBackboneConfig()
    data: DataConfig = DataConfig(batch_size_per_device=16)
    store: StoreConfig = StoreConfig()
    size: ImageSizeConfig = ImageSizeConfig(imsize=320)
    copy_detection: CopydaysConfig = CopydaysConfig()


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(EvaluationConfig):
    """Find the images of the same landmark: DATA_PATH holds DATASET/gnd_DATASET.pkl and DATASET/jpg/*.jpg."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    store: StoreConfig = StoreConfig()
    size: ImageSizeConfig = ImageSizeConfig()
    retrieval: LandmarkConfig = LandmarkConfig()


@dataclass(frozen=True, kw_only=True)
class LinearConfig(EvaluationConfig):
    """Train a linear classifier on a frozen backbone, on DATA_PATH/train; score it on DATA_PATH/val (or validation)."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    linear: ProbeConfig = ProbeConfig()
    rate: RateConfig = RateConfig(lr=0.001)
    limit: LimitConfig = LimitConfig()
    run: EpochConfig = EpochConfig()


@dataclass(frozen=True, kw_only=True)
class FeatureFileConfig(EvaluationConfig):
    """Write the features of every image below DATA_PATH to one file, with file names and, of class folders, labels."""

    data: DataConfig = DataConfig(batch_size_per_device=128)
    features: FeatureConfig = FeatureConfig()


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """How driving runs start anew from true labels."""

    refresh_label_interval: int | None = derived(50, least=1)

    @property
    def chosen_interval(self) -> int:
        """Frames, where nothing else is given."""
        return int(chosen(self, "refresh_label_interval"))


@dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """Which label maps are compared, and what is written about it."""

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
    """Score predicted label maps: J and F of DAVIS 2017, or intersection over union of driving runs."""

    launch: LaunchConfig = LaunchConfig()
    metrics: MetricsConfig = MetricsConfig()
    refresh: RefreshConfig = RefreshConfig()
    report: ReportConfig = ReportConfig()


@dataclass(frozen=True, kw_only=True)
class PropagationConfig:
    """How labels go from frame to frame (paper, section 4.2.2)."""

    n_last_frames: int = setting(7, least=1)
    size_mask_neighborhood: int = setting(12, least=0)
    topk: int = setting(5, least=1)
    bs: int = setting(6, least=1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What the driving fork asks for masked-autoencoder weights."""

    path_to_mae_repo: str | None = None


@dataclass(frozen=True, kw_only=True)
class ClipsConfig(EvaluationConfig):
    """Segment clips from their first frame's labels, by a frozen backbone."""

    # Features of so many frames at a time; more only pays on a device that one frame does not fill.
    data: DataConfig = DataConfig(batch_size_per_device=1)
    propagation: PropagationConfig = PropagationConfig()
    output: OutputConfig = OutputConfig()


@dataclass(frozen=True, kw_only=True)
class DavisScoreConfig:
    """What is done with the label maps of DAVIS 2017."""

    score: bool = False


@dataclass(frozen=True, kw_only=True)
class DavisConfig(ClipsConfig):
    """Segment every sequence of DAVIS 2017's validation split from its first frame's labels, by a frozen backbone."""

    davis: DavisScoreConfig = DavisScoreConfig()


@dataclass(frozen=True, kw_only=True)
class DrivingConfig(ClipsConfig):
    """Segment driving runs, labeled every so many frames, by a frozen backbone."""

    refresh: RefreshConfig = RefreshConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
