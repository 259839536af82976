"""Every name that users and other programs see: resources, annotations, conditions, reasons."""

from __future__ import annotations

from enum import StrEnum

from andes_sglang.objective import Metric, Statistic

__all__ = ["Condition", "Metric", "Mode", "Reason", "Statistic"]

GROUP = "andes.dev"
VERSION = "v1alpha1"
TARGETS = "qoetargets"
CLASSES = "qoeclasses"
POOLS = "qoepools"
NODES = "nodes"

OPERATOR = "andes-operator"
DRAINING = "andes.dev/draining-since"
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
CLASSES_CONFIGMAP = "andes-qoe-classes"
CLASSES_KEY = "classes.yaml"
HISTORY_KEY = "requests-per-second.json"
GROWTH_KEY = "growth.json"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
ALL_CLASSES = "*"


class Mode(StrEnum):
    AUTO = "Auto"
    ADVISORY = "Advisory"
    POOLED = "Pooled"


class Condition(StrEnum):
    """Types of conditions. The good status is True, except for Conflict and EnginesFailing."""

    READY = "Ready"
    OBSERVED = "DataAvailable"
    TARGET_FOUND = "TargetFound"
    MET = "ObjectiveMet"
    ATTAINABLE = "Attainable"
    CONFLICT = "Conflict"
    SCHEDULABLE = "Schedulable"
    ENGINES_FAILING = "EnginesFailing"


class Reason(StrEnum):
    """Why this number of replicas: ``status.reason``, a condition's reason and a metric's label."""

    FORECAST = "Forecast"
    HEADROOM = "Headroom"
    QOE_BELOW_TARGET = "QoEBelowTarget"
    QUEUE_GROWING = "QueueGrowing"
    SURPLUS = "Surplus"
    STEADY = "Steady"
    STABILIZING = "Stabilizing"
    BOUNDS = "Bounds"
    FIRST_REQUEST = "FirstRequest"
    IDLE = "Idle"
    DATA_MISSING = "DataMissing"
    DATA_STALE = "DataStale"
    DATA_CONTRADICTORY = "DataContradictory"
    NO_PREDICTION = "NoPrediction"
    PREDICTION_FAILED = "PredictionFailed"
    INVALID_SPEC = "InvalidSpec"
    UNSCHEDULABLE = "Unschedulable"
    NOT_CREATED = "NotCreated"
    ENGINES_FAILING = "EnginesFailing"
    NOT_NEEDED = "NotNeeded"
    OFFLINE_DEADLINE = "OfflineDeadline"
    CLASS_UNSEEN = "ClassUnseen"
    METRIC_UNSEEN = "MetricUnseen"
    NO_SELECTOR = "NoSelector"
    PAUSED = "Paused"
    POOL = "Pool"
    NO_POOL = "NoPool"
    MEMBER_MISSING = "MemberMissing"
    OTHER_OPERATOR = "OtherOperator"
    NODE_GOING = "NodeGoing"
    RECONCILE_FAILED = "ReconcileFailed"
