"""Flags of many commands: device, weights, images, output."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # DeviceConfig
    "device": Spec(
        "by default hpu if the Habana bridge is installed, else cuda if available, else cpu"
    ),
    "lazy_mode": Spec(
        "hpu only: whether to run in lazy mode; by default lazy if the software has it, else "
        "compiled"
    ),
    # PrecisionConfig
    "precision": Spec(
        "number format of forward and backward; ops: the two op lists decide; overrides the older "
        "flags below; float32 means fp32, float16 means fp16; masterweight (ipu only): float32 "
        "weights in float16 ops"
    ),
    "use_fp16": Spec("fp16 with loss scaling; has an effect on cuda only"),
    "hmp": Spec("mixed precision by op lists, the same as --precision ops", switch=True),
    "hmp_bf16": Spec("file of ops that run in bf16, one per line", spelling="--hmp-bf16"),
    "hmp_fp32": Spec("file of ops that run in fp32, one per line", spelling="--hmp-fp32"),
    "hmp_opt_level": Spec(
        "O1: the op lists decide; O2: all ops in bf16 except the fp32 list",
        spelling="--hmp-opt-level",
    ),
    "hmp_verbose": Spec(
        "print each op's number format once", spelling="--hmp-verbose", switch=True
    ),
    "compile": Spec(
        "compile student and teacher with torch.compile; by default only on hpu with upstream "
        "torch, "
        "which has no lazy mode",
        switch=True,
    ),
    "attention": Spec(
        "attention of our vision transformers in training: explicit, softmax(q k^T) v, the default "
        "on hpu, or fused, a kernel of the device, the default elsewhere; not verified on a card"
    ),
    "cuda_graph": Spec(
        "cuda only, one process, not fp16: record the whole training step as one CUDA graph and "
        "replay it, which saves the host's time; also with --compile; not verified on a card",
        switch=True,
    ),
    # LaunchConfig
    "dist_url": Spec("rendezvous of the processes: env://, tcp://host:port or file:///shared/path"),
    "local_rank": Spec(
        "set by torch.distributed.launch; accepted and ignored", also=("--local-rank",)
    ),
    "hang_timeout": Spec(
        "with several processes, seconds without a sign of life after which a process counts as "
        "frozen and all end; 0 = never"
    ),
    # BackboneConfig
    "arch": Spec(
        "vit_mini, vit_micro, vit_tiny, vit_small, vit_base, vit_large, vit_huge, deit_tiny, "
        "deit_small, timm:NAME for any model of timm, xcit_* of timm, any classification model of "
        "torchvision (resnet50), or, for weights, mae (a masked autoencoder's ViT, size inferred)"
    ),
    "patch_size": Spec("side of a ViT patch in pixels; smaller is better and slower"),
    # ChannelConfig
    "in_chans": Spec(
        "channels of an image: 3 (color), 1 (gray), or those of .npy files; color ops need 3"
    ),
    # SourceConfig
    "data_path": Spec(
        "a folder of images (with or without class folders), tar shards "
        "('train-{000000..001023}.tar'), Parquet files, a text file that lists images, or demo"
    ),
    "num_workers": Spec("loader processes per device (by default at most one per core)"),
    # DataConfig
    "batch_size_per_device": Spec("images per device and batch", also=("--batch_size_per_gpu",)),
    # PixelConfig
    "pixel_range": Spec(
        "LO,HI: the levels that become black and white in images of more than 8 bits a level; "
        "evaluations take it from the checkpoint"
    ),
    # LimitConfig
    "data_limit": Spec("use this many of the images, evenly spaced over the sorted list"),
    # OutputConfig
    "output_dir": Spec("folder to write to; created if missing"),
    # EpochConfig
    "epochs": Spec("passes over the images"),
    "seed": Spec("seed of weights, data order, crops and stochastic depth"),
    "log_to": Spec(
        "where the numbers of a log line go besides log.txt, one or more: tensorboard, jsonl "
        "(metrics.jsonl), csv (metrics.csv), wandb, mlflow, or none. Project, experiment, server "
        "and key are those of the clients' own variables, such as WANDB_PROJECT, WANDB_MODE, "
        "MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME"
    ),
    # RateConfig
    "lr": Spec(
        "peak learning rate for a global batch of 256; scaled linearly with the global batch"
    ),
    # NetworkConfig
    "checkpoint_key": Spec("network of the checkpoint: teacher or student"),
    # WeightsFileConfig
    "pretrained_weights": Spec(
        "a checkpoint or weights file (.pth, .safetensors, .pdparams), a folder of a run or of "
        "Hugging Face, hub:NAME of the published weights, or timm:NAME; by default the published "
        "weights"
    ),
    # WeightsConfig
    "random_weights": Spec("evaluate an untrained network on purpose", switch=True),
    # ReportConfig
    "json": Spec("file for the result as one JSON object; - means a line on stdout"),
    # MaskConfig
    "threshold": Spec("keep only the patches with this share of each head's attention, 0 to 1"),
    # StoreConfig
    "store_on_device": Spec(
        "keep the features on the device; false keeps them in host memory", also=("--use_cuda",)
    ),
    # ImageSizeConfig
    "imsize": Spec(
        "copy detection: side in pixels of the square to which images are resized; retrieval: "
        "largest longer side"
    ),
}
