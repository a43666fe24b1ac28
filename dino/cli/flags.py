"""Every flag of the project, declared once: how each setting is written on a command line.

Names and defaults are those of the Gaudi model reference, else of the original; `docs/differences.md` lists departures.
"""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.passl_recipe import LINEAR_PROBE
from dino.cli.recipes import Meaning
from dino.cli.spec import Spec
from dino.evaluation.config import LinearConfig
from dino.training.config import AlignConfig, TrainConfig

FLAGS: Mapping[str, Spec] = {
    # DeviceConfig
    "device": Spec(
        "hpu where the Habana bridge is installed, else cuda where available, else cpu",
        choices=("hpu", "cuda", "cpu", "ipu"),
    ),
    "lazy_mode": Spec("hpu only: lazy execution mode or not; lazy wherever the software has it, else compiled"),
    # PrecisionConfig
    "precision": Spec(
        "number format of forward and backward: ops means the two op lists decide; wins over the older flags below; "
        "float32, float16 are fp32, fp16; masterweight (ipu only): float32 weights in float16 ops",
        choices=("fp32", "bf16", "fp16", "ops", "float32", "float16", "masterweight"),
    ),
    "use_fp16": Spec("fp16 with loss scaling; acts on cuda only"),
    "hmp": Spec("mixed precision by op lists, the same as --precision ops", switch=True),
    "hmp_bf16": Spec("file of ops that run in bf16, one a line", spelling="--hmp-bf16"),
    "hmp_fp32": Spec("file of ops that run in fp32, one a line", spelling="--hmp-fp32"),
    "hmp_opt_level": Spec(
        "O1: the op lists decide; O2: all in bf16 but the fp32 list",
        choices=("O1", "O2"),
        spelling="--hmp-opt-level",
    ),
    "hmp_verbose": Spec("print each op's number format once", spelling="--hmp-verbose", switch=True),
    "compile": Spec(
        "compile student and teacher with torch.compile; not given: on hpu with upstream's torch, which has no lazy "
        "mode, and nowhere else",
        switch=True,
    ),
    # IpuConfig
    "pipeline": Spec("blocks of the backbone on each IPU, one number an IPU; without it all is on one IPU", least=0),
    "replica": Spec("copies of the model, each with its own part of a batch; under poprun it decides", least=1),
    "ga": Spec("micro-batches a copy accumulates before an update; the same as --accumulate_steps", least=1),
    "di": Spec("updates a call of the compiled step", least=1),
    "rts": Spec("share the optimiser's state out among copies (replicated tensor sharding)"),
    "ipu_per_replica": Spec("IPUs of a copy, told to poprun's side", least=1),
    "output_mode": Spec(
        "which micro-batches' centres and losses come back: all, or the last of each copy",
        choices=("all", "final"),
    ),
    "async_type": Spec(
        "rebatch: loader processes make --rebatched_worker_size images at a time; async and normal: whole batches",
        choices=("async", "rebatch", "normal"),
    ),
    "rebatched_worker_size": Spec("images a loader process hands over at a time with rebatch", least=1),
    "loss_scale": Spec("factor on the loss; 128 with float16 and masterweight, else 1", least=1e-6),
    "executable_cache_dir": Spec("folder of compiled programs", spelling="--executable-cache-dir"),
    "ema_so": Spec("compiled ExpMovAvg op for the teacher; without it nothing needs compiling"),
    "gelu_type": Spec("erf: the exact GELU; tanh: the device's own form", choices=("erf", "tanh")),
    "set_freq": Spec("iterations between two changes of learning rate, weight decay and momentum", least=1),
    # LaunchConfig
    "dist_url": Spec("where the processes meet: env://, tcp://host:port or file:///shared/path"),
    "local_rank": Spec("given by torch.distributed.launch; accepted, not needed", also=("--local-rank",)),
    # BackboneConfig
    "arch": Spec(
        "vit_mini, vit_tiny, vit_small, vit_base, vit_large, deit_tiny, deit_small, any torchvision classification "
        "model (resnet50), xcit_* of timm, or mae (a masked autoencoder's ViT, told by its weights)"
    ),
    "patch_size": Spec("side of a ViT patch in pixels; smaller is better and slower", least=1),
    # ChannelConfig
    "in_chans": Spec("channels of an image: 3 (colour), 1 (gray), or those of .npy files; colour ops need 3", least=1),
    # StudentConfig
    "drop_path_rate": Spec("stochastic depth of the student, 0 to 1", least=0, most=1),
    "out_dim": Spec("prototypes K, the width of the head's output; small data sets want less", least=2),
    "norm_last_layer": Spec("keep the prototypes at unit length; more stable for the small networks"),
    "use_bn_in_head": Spec("batch norm in the head's hidden layers"),
    "init_from": Spec("start a new run from these weights, as --pretrained_weights has them (not a resume)"),
    # TeacherConfig
    "momentum_teacher": Spec(
        "EMA momentum at the start, rises to 1 by a cosine; small batches want more", least=0, most=1
    ),
    "warmup_teacher_temp": Spec("teacher temperature at the start", least=1e-4, most=100),
    "teacher_temp": Spec(
        "teacher temperature after its warm-up; lower it when the loss does not fall", least=1e-4, most=100
    ),
    "warmup_teacher_temp_epochs": Spec("epochs of linear temperature warm-up", least=0),
    # RateConfig
    "lr": Spec("peak learning rate for a global batch of 256; scaled linearly with the global batch", least=0),
    # OptimConfig
    "optimizer": Spec("update rule", choices=("adamw", "sgd", "lars")),
    "eps": Spec("adamw: added to the root of the second moment", least=0),
    "warmup_epochs": Spec("epochs of linear learning-rate warm-up", least=0),
    "min_lr": Spec("learning rate at the end of the cosine", least=0),
    "weight_decay": Spec("weight decay at the start of its cosine", least=0),
    "weight_decay_end": Spec("weight decay at the end", least=0),
    "clip_grad": Spec("largest gradient norm of each parameter tensor; 0 turns clipping off", least=0),
    "freeze_last_layer": Spec("epochs during which the prototypes do not move", least=0),
    # CropConfig
    "global_crops_scale": Spec("smallest and largest area of a global crop, 0 to 1"),
    "local_crops_number": Spec("local crops per image; 0 turns multi-crop off", least=0),
    "local_crops_scale": Spec("smallest and largest area of a local crop, 0 to 1"),
    "global_crops_size": Spec("side of a global crop in pixels", least=1),
    "local_crops_size": Spec("side of a local crop in pixels", least=1),
    # SourceConfig
    "data_path": Spec(
        "a folder of images (with or without class folders), tar shards ('train-{000000..001023}.tar'), a text file "
        "that lists images, or demo"
    ),
    "num_workers": Spec("loader processes per device (by default at most one a core)", least=0),
    # DataConfig
    "batch_size_per_device": Spec("images a device sees at a time", also=("--batch_size_per_gpu",), least=1),
    # LimitConfig
    "data_limit": Spec("train on this many of the images, evenly spaced over the sorted list", least=1),
    # TrainDataConfig
    "on_bad_image": Spec("an unreadable image ends the run, or is replaced", choices=("raise", "skip")),
    "augment_on": Spec(
        "where colours, blur and normalisation are computed; host: in the loaders", choices=("device", "host")
    ),
    "synthetic_data": Spec("no images: random pixels made once on the device, to measure its speed alone", switch=True),
    # OutputConfig
    "output_dir": Spec("folder to write to; made where it is missing"),
    # EpochConfig
    "epochs": Spec("passes over the images", least=1),
    "seed": Spec("seed of weights, data order, crops and stochastic depth", least=0),
    # RunConfig
    "accumulate_steps": Spec("batches per update; the global batch grows by this factor", least=1),
    "recompute": Spec(
        "what the backward pass computes again and so need not be kept in memory, less and less: activations "
        "(normalisations, GELUs), mlp (perceptrons too), blocks; a few percent slower to a fifth",
        choices=("nothing", "activations", "mlp", "blocks"),
    ),
    "saveckp_freq": Spec("keep a numbered checkpoint every so many epochs; 0 keeps none", least=0),
    "save_every_steps": Spec("also save every so many iterations; 0 saves at the end of each epoch only", least=0),
    "keep_checkpoints": Spec("numbered checkpoints to keep, the newest ones; 0 keeps all", least=0),
    "eval_knn_every": Spec("epochs between k-NN scores on the val (or validation) folder beside the images", least=0),
    "preset": Spec(
        "auto: what is not given of out_dim, momentum, temperatures, warm-ups and lr follows from the number of "
        "images, the global batch and the epochs; each with its reason",
        choices=("auto",),
    ),
    "dry_run": Spec(
        "two steps on drawn pixels: images/s, memory, FLOPs, the share of each phase and the largest batch; no output",
        switch=True,
    ),
    # NetworkConfig
    "checkpoint_key": Spec("which network of the checkpoint: teacher or student"),
    # WeightsFileConfig
    "pretrained_weights": Spec(
        "a checkpoint or weights file (.pth, .safetensors, .pdparams), a Hugging Face folder, hub:NAME of the "
        "published weights, or timm:NAME; without it the published ones"
    ),
    # WeightsConfig
    "random_weights": Spec("evaluate an untrained network on purpose", switch=True),
    # ReportConfig
    "json": Spec("file to write the result to as one JSON object; - means a line on stdout"),
    # ComparisonConfig
    "reference": Spec("device to compare with, in fp32", choices=("hpu", "cuda", "cpu")),
    "steps": Spec("steps of training that both make", least=2),
    "tolerance": Spec(
        "largest difference that still counts as equal, over a tensor's largest number where that is above 1",
        least=0,
    ),
    # VoteConfig
    "nb_knn": Spec("numbers of neighbours to report", least=1),
    "temperature": Spec("temperature of the vote", least=1e-4),
    "index": Spec(
        "search all training images, or by cells of them (faiss), which is faster for millions and misses some",
        choices=("exact", "ivf"),
    ),
    "dump_features": Spec("folder to write features and labels to"),
    "load_features": Spec("folder to read features and labels from instead of computing them"),
    "max_batches": Spec("stop after so many batches a split, for a quick look", least=1),
    "dump_tb_events": Spec("folder for TensorBoard events of the extraction"),
    # StoreConfig
    "store_on_device": Spec("keep the features on the device; false keeps them in host memory", also=("--use_cuda",)),
    # LayerConfig
    "pretrained_linear": Spec(
        "file of the linear layer that --evaluate scores; without it OUTPUT_DIR/checkpoint.pth.tar, else the published"
    ),
    # ProbeConfig
    "n_last_blocks": Spec("join the CLS tokens of this many last blocks; ViT only (paper: 4 small, 1 base)", least=1),
    "avgpool_patchtokens": Spec(
        "join the mean patch token of the last block too; ViT only (paper: false small, true base)"
    ),
    "num_labels": Spec("classes; by default as many as class folders, which it must equal", least=1),
    "val_freq": Spec("epochs between two validations; the last epoch is always validated", least=1),
    "val_first": Spec("epoch, counted from 1, that is validated first", least=1),
    "scale_lr": Spec("--lr is for a global batch of 256 and scaled with it; false: it is the rate itself"),
    "evaluate": Spec("train nothing: score a linear layer that is there already", switch=True),
    "cache_features": Spec(
        "compute the features once, of centre crops, and train on them in seconds: no augmentation", switch=True
    ),
    # ImageSizeConfig
    "imsize": Spec(
        "copy detection: side in pixels of the square images become; retrieval: their longer side at most", least=1
    ),
    # CopydaysConfig
    "distractors_path": Spec("images that are searched too and are no copy of any (paper: 10k)"),
    "whitening_path": Spec("images from which a whitening of the features is learnt (paper: 20k)"),
    # LandmarkConfig
    "dataset": Spec("which of the two sets", choices=("roxford5k", "rparis6k")),
    "multiscale": Spec("average the features of three sizes: 1, 1/sqrt(2) and 1/2"),
    "crop_queries": Spec("cut each query to the box of its landmark, as the benchmark has it", switch=True),
    # FeatureConfig
    "output": Spec("file to write: .npz, .safetensors, .parquet or .csv"),
    "layers": Spec("blocks to take, counted from 1; without it the network's output; ViT only", least=1),
    "patches": Spec("also the grid of patch tokens; ViT only, not for .csv", switch=True),
    # ExaminationConfig
    "probe": Spec("hpu only: multiply two small matrices on a free card, in a process of its own"),
    # InspectionConfig
    "min_size": Spec(
        "an image whose shorter side has fewer pixels is tiny; the default is one patch of the usual size", least=1
    ),
    "clean_list": Spec(
        "text file to list the images in that are worth training on: without corrupt and tiny ones and repetitions; "
        "it can be a --data_path",
        spelling="--output",
    ),
    # ShardConfig
    "shard_size": Spec("images in a shard; the last one may hold fewer", least=1),
    "shorter_side": Spec(
        "scale larger pictures down until their shorter side has so many pixels; the others stay as they are",
        least=1,
    ),
    # MaskConfig
    "threshold": Spec("keep only the patches that hold this share of each head's attention, 0 to 1", least=0, most=1),
    # PictureConfig
    "image_path": Spec("one or more images or folders of images; without it a drawn one"),
    "image_size": Spec(
        "height and width in pixels that each image is stretched to; one number: its shorter side", least=1
    ),
    # VideoConfig
    "input_path": Spec("a video file or a folder of frames"),
    "output_path": Spec("folder of frames/, attention/ and the video; made where it is missing"),
    "resize": Spec(
        "height and width in pixels that each frame is stretched to; one number: its shorter side; without it as it is",
        least=1,
    ),
    "video_only": Spec("only make a video of the pictures in the folder --input_path", switch=True),
    "fps": Spec("frames a second of the video; without the flag those of the input video", least=0.1, most=1000),
    "video_format": Spec("mp4 (H.264) or avi (MPEG-4)", choices=("mp4", "avi")),
    # RefreshConfig
    "refresh_label_interval": Spec("frames of a run from one true label map to the next", least=1),
    # MetricsConfig
    "dataset_path": Spec(
        "DAVIS 2017, a folder of driving runs (RUN/image, RUN/segmentation), or one run", also=("--data_path",)
    ),
    "prediction_path": Spec("folder of the predictions, one folder of PNGs a sequence or run"),
    "layout": Spec("davis or driving; recognised by the folders", choices=("davis", "driving")),
    "num_classes": Spec("driving: classes; a label beyond them is an error", least=1, most=256),
    "ignore_label": Spec("driving: pixels of this true label do not count", least=0, most=255),
    "skip_refreshed": Spec(
        "driving: leave out each --refresh_label_interval-th frame, predicted by its own label", switch=True
    ),
    "csv": Spec("file to write all figures to as a table"),
    "pictures": Spec("folder for pictures of each frame (image, truth, prediction, error), contact sheets and videos"),
    # PropagationConfig
    "n_last_frames": Spec("frames before the current one that give it labels, besides the first one", least=1),
    "size_mask_neighborhood": Spec(
        "how far from a position its labels may come, in positions of the feature grid; 0 means any distance",
        least=0,
    ),
    "topk": Spec("most similar positions, over all of these frames, whose labels are mixed", least=1),
    "bs": Spec("accepted, as the original takes it and does not use it; see --batch_size_per_device", least=1),
    # AutoencoderConfig
    "path_to_mae_repo": Spec("accepted, not needed: --arch mae reads the weights by itself"),
    # DavisScoreConfig
    "score": Spec("score them too: J and F, as compute_segmentation_metrics.py", spelling="--evaluate", switch=True),
    # OutputFileConfig
    "file_out": Spec(
        "where to write: OUT.pth in this project's form, anything else in the other one's", spelling="--output"
    ),
    # TargetConfig
    "input_size": Spec(
        "height and width in pixels of the images to come, for which a ViT's position embedding is resampled; one "
        "number: a square; without it as it is",
        least=1,
    ),
    # FilesConfig
    "file_in": Spec("checkpoint to read", spelling="--weights"),
    # ClusterConfig
    "ngpus": Spec("devices of each node, and so its processes", least=1),
    "nodes": Spec("nodes", least=1),
    "timeout": Spec("minutes after which the job saves and is queued again", least=1),
    "partition": Spec("Slurm partition"),
    "use_volta32": Spec("GPUs with 32 GB only (Slurm constraint volta32gb)", switch=True),
    "comment": Spec("comment handed to Slurm; some clusters ask for one"),
    "gres": Spec(
        "what the cluster calls the devices, without their number, as gpu:hl225; by default hpu or ipu where that is "
        "the --device, else GPUs by Slurm's own word"
    ),
    "cluster": Spec(
        "slurm, or local for processes on this machine; slurm where srun is found", choices=("slurm", "local")
    ),
    # EvidenceConfig
    "size": Spec(
        "quick: small networks and few steps, at most four minutes; full: the real ones, at most ten; by default full "
        "on a card and quick on the cpu",
        choices=("quick", "full"),
    ),
    "only": Spec("numbers of the steps to run; all eight by default", least=1, most=8),
    "patience": Spec("factor on every time limit, for a machine that is only slow", least=0.1, most=100),
}

NESTED: Mapping[type, Mapping[str, Meaning]] = {LinearConfig: LINEAR_PROBE}  # keys of nested recipes
ALIGN = """\
Train a few steps on two devices from the same weights and pixels; a table of how far apart they end.

    python -m dino.devices.align --device ipu --reference cpu; every flag of main_dino.py may follow. Ends with 1 where
    a difference is larger than --tolerance.
"""
DESCRIPTIONS: Mapping[type, str] = {  # of commands whose configs are more than theirs
    TrainConfig: "Pre-train a vision backbone with DINO. `--data_path demo` needs no data of yours.",
    AlignConfig: ALIGN,
}
