"""An OpenAI-compatible gateway that serves text streams by quality of experience.

``app.create_app(settings)`` is the whole gateway. What decides (``routing``, ``admission``, ``forecast``, ``pacing``,
``sse``, ``resume``) is pure: time is an argument, what to do comes back as data. Nothing here imports SGLang, torch or
kopf.
"""
