"""A stand-in for popdist: several instances of one program, told by the environment that poprun
sets."""

import os


def isPopdistEnvSet():
    """Whether poprun started this process."""
    return "POPDIST_NUM_TOTAL_REPLICAS" in os.environ


def init():
    """Begin."""


def getNumTotalReplicas():
    """Replicas of all instances."""
    return int(os.environ["POPDIST_NUM_TOTAL_REPLICAS"])


def getNumLocalReplicas():
    """Replicas of this instance."""
    return int(os.environ["POPDIST_NUM_LOCAL_REPLICAS"])


def getNumInstances():
    """Processes."""
    return getNumTotalReplicas() // getNumLocalReplicas()


def getInstanceIndex():
    """Which of them this is."""
    return int(os.environ["POPDIST_REPLICA_INDEX_OFFSET"]) // getNumLocalReplicas()
