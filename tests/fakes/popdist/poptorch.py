"""Options of one instance of several."""

from __future__ import annotations

import poptorch

import popdist


class Options(poptorch.Options):
    """Replication and processes come from poprun and cannot be set."""

    def __init__(self, ipus_per_replica=1):
        super().__init__()
        super().replicationFactor(popdist.getNumLocalReplicas())
        self.Distributed.configureProcessId(popdist.getInstanceIndex(), popdist.getNumInstances())

    def replicationFactor(self, replication_factor):
        raise RuntimeError("Cannot call `replicationFactor` with popdist.poptorch.Options")
