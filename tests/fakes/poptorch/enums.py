"""The enums of PopTorch that the product or its tests name."""

from enum import IntEnum


class MeanReductionStrategy(IntEnum):
    Running = 0
    Post = 1
    PostAndLoss = 2


class OutputMode(IntEnum):
    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ConnectionType(IntEnum):
    Always = 0
    OnDemand = 1
    Never = 2


class ReductionType(IntEnum):
    Sum = 0
    Mean = 1
    NoReduction = 2


class SyncPattern(IntEnum):
    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class AutoStage(IntEnum):
    SameAsIpu = 0
    AutoIncrement = 1


class CommGroupType(IntEnum):
    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3
