"""Options: a validated set of values that freezes once a model is made with it."""

from __future__ import annotations

import copy
import os

import torch

from . import enums


class OptionsDict:
    """Only declared keys can be read or written, with their declared type, until it is frozen."""

    def __init__(self, **default_values):
        object.__setattr__(self, "_values", dict(default_values))
        object.__setattr__(self, "_is_frozen", False)

    def set(self, **kwargs):
        """Set declared values."""
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            if option not in self._values:
                raise AssertionError(
                    f"Invalid option {option}, valid options are {sorted(self._values)}"
                )
            wanted = type(self._values[option])
            if not isinstance(value, wanted) and not (
                issubclass(wanted, int) and isinstance(value, int)
            ):
                raise AssertionError(
                    f"Unexpected type {type(value)} for option {option}. Expected {wanted}"
                )
            self._values[option] = value

    def createOrSet(self, **kwargs):
        """Set values, declared or not."""
        for option, value in kwargs.items():
            self.checkIsFrozen(option)
            self._values[option] = value

    def exists(self, option):
        """Whether there is such a value."""
        return option in self._values

    def checkIsFrozen(self, option=None):
        """Refuse a change once frozen."""
        if self._is_frozen:
            raise AttributeError("Can't modify frozen Options")

    def _changeFreezeState(self, new_state):
        object.__setattr__(self, "_is_frozen", new_state)

    def _freeze(self):
        self._changeFreezeState(True)

    def _unfreeze(self):
        self._changeFreezeState(False)

    def __deepcopy__(self, memory):
        twin = type(self).__new__(type(self))
        object.__setattr__(
            twin, "_values", copy.deepcopy(object.__getattribute__(self, "_values"), memory)
        )
        object.__setattr__(twin, "_is_frozen", False)
        return twin

    def __setattr__(self, option, value):
        self.set(**{option: value})

    def __getattr__(self, option):
        values = object.__getattribute__(self, "_values")
        if option not in values:
            raise AttributeError(f"Invalid attribute {option}.")
        return values[option]


class _PopartOptions(OptionsDict):
    def __init__(self):
        super().__init__(options={}, patterns={})

    def set(self, key, value):
        self.checkIsFrozen(key)
        self._values["options"][key] = value
        return self


class _PrecisionOptions(OptionsDict):
    def __init__(self, popart_options):
        super().__init__(popart=popart_options)

    def enableFloatingPointExceptions(self, enabled):
        assert isinstance(enabled, bool), "enableFloatingPointExceptions needs to be set to a bool"
        self.checkIsFrozen()
        self.popart.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled):
        self.checkIsFrozen()
        self.popart.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype):
        self.checkIsFrozen()
        if dtype not in (torch.float, torch.half):
            raise ValueError("setPartialsType only supports torch.float and torch.half")
        self.popart.set("partialsTypeMatMuls", "half" if dtype == torch.half else "float")
        return self


class _TrainingOptions(OptionsDict):
    def __init__(self, popart_options):
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=enums.ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=enums.MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation):
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type):
        if reduction_type not in (enums.ReductionType.Mean, enums.ReductionType.Sum):
            raise ValueError("Unsupported reduction type")
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self


class TensorLocationSettings(OptionsDict):
    def __init__(self):
        super().__init__(location={})

    def useReplicatedTensorSharding(self, use=True):
        assert isinstance(use, bool), "use must be a bool"
        self.checkIsFrozen()
        self.location["replicatedTensorSharding"] = int(use)
        return self

    def minElementsForReplicatedTensorSharding(self, min_elements):
        assert isinstance(min_elements, int), "min_elements must be an int"
        self.checkIsFrozen()
        self.location["minElementsForReplicatedTensorSharding"] = min_elements
        return self


class _TensorLocationOptions(OptionsDict):
    def __init__(self):
        super().__init__(location_optimizer={})

    def setOptimizerLocation(self, location):
        assert isinstance(location, TensorLocationSettings), (
            "'location' must be a TensorLocationSettings"
        )
        self.createOrSet(location_optimizer=dict(location.location))
        return self


class _DistributedOptions(OptionsDict):
    def __init__(self):
        super().__init__(
            num_distributed_processes=int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")),
            distributed_process_id=int(os.environ.get("OMPI_COMM_WORLD_RANK", "0")),
            ipuof_configs={},
        )

    def configureProcessId(self, process_id, num_processes):
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    def disable(self):
        self.set(num_distributed_processes=1, distributed_process_id=0)
        return self

    @property
    def processId(self):
        return self.distributed_process_id

    @property
    def numProcesses(self):
        return self.num_distributed_processes


class _IExecutionStrategy:
    pass


class PipelinedExecution(_IExecutionStrategy):
    def __init__(self, *args):
        self.args = args


class ShardedExecution(PipelinedExecution):
    pass


class Options(OptionsDict):
    """What a model is compiled with."""

    GROUPS = ("Training", "Precision", "TensorLocations", "Distributed", "_Popart")

    def __init__(self):
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=int(enums.OutputMode.Default),
            output_return_period=1,
            connection_type=int(enums.ConnectionType.Always),
            sync_pattern=int(enums.SyncPattern.Full),
            available_memory_proportion={},
        )
        popart = _PopartOptions()
        groups = (
            _TrainingOptions(popart),
            _PrecisionOptions(popart),
            _TensorLocationOptions(),
            _DistributedOptions(),
        )
        for name, group in zip(self.GROUPS, (*groups, popart), strict=True):
            object.__setattr__(self, f"_group_{name}", group)
        object.__setattr__(self, "_strategy", PipelinedExecution(enums.AutoStage.SameAsIpu))
        object.__setattr__(self, "_random_seed", None)

    def _group(self, name):
        return object.__getattribute__(self, f"_group_{name}")

    Training = property(lambda self: self._group("Training"))
    Precision = property(lambda self: self._group("Precision"))
    TensorLocations = property(lambda self: self._group("TensorLocations"))
    Distributed = property(lambda self: self._group("Distributed"))
    _Popart = property(lambda self: self._group("_Popart"))

    def _changeFreezeState(self, new_state):
        super()._changeFreezeState(new_state)
        for name in self.GROUPS:
            self._group(name)._changeFreezeState(new_state)

    def __deepcopy__(self, memory):
        twin = super().__deepcopy__(memory)
        for name in self.GROUPS:
            object.__setattr__(twin, f"_group_{name}", copy.deepcopy(self._group(name), memory))
        for name in ("_strategy", "_random_seed"):
            object.__setattr__(twin, name, object.__getattribute__(self, name))
        return twin

    def clone(self):
        return copy.deepcopy(self)

    def autoRoundNumIPUs(self, auto_round_num_ipus=True):
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def deviceIterations(self, device_iterations):
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor):
        self.set(replication_factor=replication_factor)
        return self

    def broadcastBuffers(self, broadcast_buffers=True):
        self.set(broadcast_buffers=broadcast_buffers)

    def setExecutionStrategy(self, strategy):
        self.checkIsFrozen()
        assert isinstance(strategy, _IExecutionStrategy), "'strategy' must be an execution strategy"
        object.__setattr__(self, "_strategy", strategy)
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion):
        found = {}
        for key, value in available_memory_proportion.items():
            assert key.startswith("IPU") and key[3:].isdigit(), f"{key} is not IPU<n>"
            found[int(key[3:])] = value
        self.set(available_memory_proportion=found)

    def enableExecutableCaching(self, path):
        self.checkIsFrozen()
        self._Popart.set("enableEngineCaching", path is not None)
        self._Popart.set("cachePath", path or "")
        return self

    def enableSyntheticData(self, enabled):
        self.checkIsFrozen()
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def outputMode(self, output_mode, output_return_period=None):
        assert isinstance(output_mode, enums.OutputMode), "must be a poptorch.OutputMode"
        if output_mode == enums.OutputMode.EveryN:
            assert output_return_period, "EveryN requires output_return_period to be set"
            raise NotImplementedError("the stand-in does not imitate OutputMode.EveryN")
        self.set(output_mode=int(output_mode), output_return_period=output_return_period or 1)
        return self

    def defaultOutputMode(self):
        return self.output_mode == enums.OutputMode.Default

    def connectionType(self, connection_type):
        assert isinstance(connection_type, enums.ConnectionType)
        self.set(connection_type=int(connection_type))
        return self

    def randomSeed(self, random_seed):
        assert isinstance(random_seed, int), "Random seed needs to be an integer"
        self.checkIsFrozen()
        torch.manual_seed(random_seed)
        object.__setattr__(self, "_random_seed", random_seed)
        return self
