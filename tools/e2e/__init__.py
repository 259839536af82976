"""The chart on a real control plane, with pods that are real processes: for tests and for ``make demo-cluster``.

``control_plane``: etcd, API server, controllers, scheduler. ``node``: runs pods. ``traffic``: readers. ``surge``: the whole
story. ``timeline``: its picture.
"""
